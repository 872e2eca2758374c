"""Capability tokens: the contract's vectors, what is refused, and that a token only ever narrows."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from contextlib import suppress
from itertools import pairwise

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trio_swarm._state.caveats import Scope
from trio_swarm._state.grants import (
    ROLE_VERBS,
    VERBS,
    Grant,
    TokenError,
    TokenExhausted,
    TokenExpired,
    TokenForged,
    TokenMalformed,
    UseCounts,
)
from trio_swarm._state.token import CapabilityToken, attenuate, mint, verify
from trio_swarm.errors import BadTokenError
from trio_swarm.limits import MAX_CAVEATS, MAX_TOKEN

SECRET = b"conformance-secret"
NONCE = "00112233445566778899aabbccddeeff"
NOW = 1_700_000_100
FIELDS = {
    "agent_id": "worker-of-T-0a1b2c3d4e5f6071",
    "role": "worker",
    "scopes": ["*"],
    "issued_at": 1_700_000_000,
    "expire_at": 1_700_001_800,
    "max_uses": None,
    "nonce": NONCE,
}

# Operators contract, 5.1: fields, signature input, signature, fingerprint of the nonce.
VECTORS = [
    (
        FIELDS,
        "worker-of-T-0a1b2c3d4e5f6071|Worker|*|1700000000|1700001800|None|00112233445566778899aabbccddeeff",
        "9ca83c2a40f5d269187d6e0a656eee340e08366215905c78f2060463e320006c",
        "5947d7c33d783f94b3b4c1a96ebc8991ed28f1b069b71e03376cba8caa98a720",
    ),
    (
        {
            "agent_id": "one-shot",
            "role": "worker",
            "scopes": ["a", "b"],
            "issued_at": 1_700_000_000,
            "expire_at": 1_700_000_060,
            "max_uses": 3,
            "nonce": "ffeeddccbbaa99887766554433221100",
        },
        "one-shot|Worker|a,b|1700000000|1700000060|Some(3)|ffeeddccbbaa99887766554433221100",
        "fcf4a4d05b85bde3c8ad96dcf5a6997355891494b87ad926a625feb1bb273690",
        None,
    ),
]


def minted(**changes):
    return mint(secret=SECRET, **{**FIELDS, **changes})


def wire(value):
    """As an original writes a token: not by our code."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def signed(**changes):
    """A whole token as an original's JSON, signed by hand whatever its fields are."""
    fields = {**FIELDS, **changes}
    uses = "None" if fields["max_uses"] is None else f"Some({fields['max_uses']})"
    scopes = ",".join(fields["scopes"])
    text = f"{fields['agent_id']}|{fields['role'].capitalize()}|{scopes}|{fields['issued_at']}|"
    text += f"{fields['expire_at']}|{uses}|{fields['nonce']}"
    return {**fields, "sig_hex": hmac.new(SECRET, text.encode(), hashlib.sha256).hexdigest()}


def granted(token, now=NOW):
    return verify(token, secret=SECRET, now=now)


NAMES = st.sampled_from(["a", "ab", "abc", "b", "é x"])


def scope_text(verb, task, attempt, out):
    selected = {"task": task, "attempt": attempt, "out": out}
    selectors = [f"{key}={value}" for key, value in selected.items() if value]
    return f"{verb}@{'&'.join(selectors)}" if selectors else verb


SCOPES = st.builds(
    scope_text,
    st.sampled_from(["*", "post_result", "emit_output", "fetch_prompt"]),
    st.sampled_from(["", "T-1", "T-2"]),
    st.sampled_from(["", "1", "2"]),
    st.just("") | NAMES | st.sampled_from(["*", "a*", "ab*", "b*"]),
)
LISTS = st.lists(SCOPES, min_size=1, max_size=3)
ACTS = st.tuples(
    st.sampled_from(["post_result", "emit_output", "fetch_prompt", "start_task", "mark_pass"]),
    st.sampled_from([None, "T-1", "T-2", "T-3"]),
    st.sampled_from([None, 1, 2, 3]),
    st.none() | NAMES,
)
STEPS = st.fixed_dictionaries(
    {}, optional={"scopes": LISTS, "expire_at": st.integers(NOW, NOW + 99), "max_uses": st.integers(0, 9)}
).filter(bool)


# -- 5.1 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "text", "signature", "fingerprint"), VECTORS)
def test_vectors(fields, text, signature, fingerprint):
    """Minted and verified as the contract has them; the vector's own text is what is signed."""
    token = mint(secret=SECRET, **fields)

    assert hmac.new(SECRET, text.encode(), hashlib.sha256).hexdigest() == signature
    assert token.sig_hex == signature
    assert fingerprint is None or token.fingerprint == fingerprint
    received = CapabilityToken.decode(wire({**fields, "sig_hex": signature}))
    assert received == token
    assert verify(received, secret=SECRET, now=1_700_000_001).agent_id == fields["agent_id"]


def test_encode_decode_round_trips():
    """T1: nothing of ordinary base64 in it; equal, and it still verifies."""
    token = minted(agent_id="é worker/of+things ÿÿÿ", scopes=["*@out=~~?>"])

    text = token.encode()

    assert not set(text) & set("+/=")
    assert CapabilityToken.decode(text) == token
    assert granted(CapabilityToken.decode(text)).agent_id == token.agent_id


def test_a_plain_token_has_the_original_keys_only():
    """An original's strict reader of our token finds its own eight fields."""
    text = minted().encode()

    fields = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    assert set(fields) == {*FIELDS, "sig_hex"}


def test_unknown_keys_are_tolerated():
    """Whatever they hold; and a missing max_uses is none."""
    fields = {**signed(), "future": {"a": [1, None]}, "x": "y"}
    del fields["max_uses"]

    assert CapabilityToken.decode(wire(fields)) == minted()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        "a",
        "not a token",
        "eyJ9+/",
        "e30=",
        "wh-1a2b3c4d",
        "é",
        "\ud800",
        "e30\n",
        "e31",  # bits behind the last byte
        wire(b"\xff\xfe"),
        wire(b"{"),
        wire(b'{"a":NaN}'),
        wire(b'{"agent_id":1e999}'),
        wire(b'{"issued_at":' + b"9" * 5000 + b"}"),
        wire(b"[" * 3000),
        wire(b'{"a":' * 1000 + b"1" + b"}" * 1000),
        wire(b'{"a":1,"a":2}'),
        wire(b'{"agent_id":"\\ud800"}'),
        wire([]),
        wire(1),
        wire(None),
        wire({}),
        wire({"hello": "world"}),
        wire({**signed(), "pad": "x" * MAX_TOKEN}),
        "A" * (MAX_TOKEN + 1),
    ],
)
def test_decode_rejects_garbage(text):
    """T2, T3: one error, which quotes nothing of the text and hides no other."""
    with pytest.raises(TokenMalformed) as caught:
        CapabilityToken.decode(text)

    assert caught.value.kind == "malformed"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("key", [*FIELDS, "sig_hex", "caveats"])
@pytest.mark.parametrize(
    "value", [None, True, 1, -1, 1.0, 2**64, 2**200, "worker", "", [], [1], ["a", None], {}, {"a": 1}]
)
def test_a_field_of_another_type_is_malformed_or_its_token_forged(key, value):
    """No value of any field gets through but the signed one."""
    fields = {**signed(), key: value}
    if fields == signed() or (key == "caveats" and value == []):
        assert granted(CapabilityToken.decode(wire(fields)))
        return
    with pytest.raises((TokenMalformed, TokenForged)):
        granted(CapabilityToken.decode(wire(fields)))


def test_a_token_has_one_text():
    """The bits behind the last byte must be zero: a list of texts is not got around by another one."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for name in ("a", "ab", "abc"):
        text = minted(agent_id=name).encode()
        if len(text) % 4:
            other = text[:-1] + alphabet[alphabet.index(text[-1]) + 1]
            assert base64.urlsafe_b64decode(other + "==") == base64.urlsafe_b64decode(text + "==")
            with pytest.raises(TokenMalformed):
                CapabilityToken.decode(other)
    assert {len(minted(agent_id=name).encode()) % 4 for name in ("a", "ab", "abc")} == {0, 2, 3}


@given(st.one_of(st.text(), st.binary().map(wire), st.text(alphabet="ABCdef019-_", max_size=60)))
def test_decode_of_anything(text):
    """A token, or `TokenMalformed`: nothing else comes out."""
    try:
        CapabilityToken.decode(text)
    except TokenMalformed:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {}, optional={key: JSON | st.just(value) for key, value in {**signed(), "caveats": []}.items()}
    )
)
@settings(max_examples=400)
def test_decode_and_verify_of_any_json(fields):
    """Only `TokenError` comes out of reading and verifying what anybody sent."""
    try:
        granted(CapabilityToken.decode(wire(fields)))
    except TokenError:
        return
    assert {**{"max_uses": None}, **fields} in (signed(), {**signed(), "caveats": []})


@given(st.data())
@settings(max_examples=500)
def test_one_changed_character_of_the_text(data):
    """No other token comes out of it, but where it is in a key that means nothing then."""
    token = attenuate(minted(), scopes=["post_result"], max_uses=2)
    text = token.encode()
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("ABCXYZabcxyz0189-_+/=").filter(lambda each: each != text[at]))
    try:
        changed = CapabilityToken.decode(text[:at] + other + text[at + 1 :])
        granted(changed)
    except (TokenMalformed, TokenForged):
        return
    assert changed == token


PRINTABLE = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="|,"), min_size=1, max_size=60
)


@given(
    PRINTABLE,
    st.sampled_from(sorted(ROLE_VERBS)),
    LISTS,
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.none() | st.integers(0, 2**32 - 1),
    st.binary(min_size=16, max_size=16).map(bytes.hex),
    st.binary(min_size=1, max_size=64),
)
@settings(max_examples=400)
def test_whatever_is_minted_travels_and_verifies(agent_id, role, scopes, start, end, uses, nonce, secret):
    """With its secret and no other; and its JSON, written in another order, is the same token."""
    token = mint(
        secret=secret, agent_id=agent_id, role=role, scopes=scopes,
        issued_at=start, expire_at=end, max_uses=uses, nonce=nonce,
    )  # fmt: skip
    text = token.encode()
    fields = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))

    assert CapabilityToken.decode(text) == token
    assert CapabilityToken.decode(wire(dict(reversed(fields.items())))) == token
    with pytest.raises(TokenForged):
        verify(token, secret=secret + b"x", now=0)
    if end:
        grant = verify(token, secret=secret, now=0)
        assert (grant.agent_id, grant.role, grant.scopes) == (agent_id, role, (tuple(scopes),))
        assert (grant.max_uses, grant.fingerprint) == (uses, token.fingerprint)


# -- the grammar -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("agent_id", ""),
        ("agent_id", "a|b"),
        ("agent_id", "a,b"),
        ("agent_id", "a\nb"),
        ("agent_id", "a\0"),
        ("agent_id", "a\x7f"),
        ("agent_id", "a\u2028b"),
        ("agent_id", "\ud800"),
        ("agent_id", "x" * 257),
        ("role", "Worker"),
        ("role", "root"),
        ("scopes", []),
        ("scopes", ["*"] * 65),
        ("scopes", [""]),
        ("scopes", ["a|b"]),
        ("scopes", ["a,b"]),
        ("scopes", ["a\tb"]),
        ("scopes", ["Fetch"]),
        ("scopes", ["a@"]),
        ("scopes", ["a@b"]),
        ("scopes", ["a@b=1"]),
        ("scopes", ["a@task="]),
        ("scopes", ["a@task=a b"]),
        ("scopes", ["a@attempt=0"]),
        ("scopes", ["a@attempt=01"]),
        ("scopes", ["a@attempt=-1"]),
        ("scopes", ["a@attempt=١"]),
        ("scopes", ["a@attempt=4294967296"]),
        ("scopes", ["a@out="]),
        ("scopes", ["a@out=x*y"]),
        ("scopes", ["a@out=**"]),
        ("scopes", ["a@task=x&task=x"]),
        ("scopes", ["a@task=x&"]),
        ("scopes", ["**"]),
        ("issued_at", -1),
        ("issued_at", 2**64),
        ("expire_at", 2**64),
        ("expire_at", 1.5),
        ("expire_at", True),
        ("max_uses", -1),
        ("max_uses", 2**32),
        ("nonce", ""),
        ("nonce", NONCE.upper()),
        ("nonce", NONCE + "0"),
        ("nonce", NONCE + "\n"),
        ("nonce", "x" * 32),
    ],
)
def test_the_grammar_holds_at_mint_and_at_verify(field, value):
    """A token outside it is not made; and is refused even if somebody signed it."""
    with pytest.raises(ValueError, match=r".") as caught:
        minted(**{field: value})
    assert not isinstance(caught.value, UnicodeError)
    assert NONCE not in str(caught.value)

    fields = signed() if isinstance(value, str) and "\ud800" in value else signed(**{field: value})
    token = CapabilityToken(**{**fields, "scopes": tuple(fields["scopes"])})
    with pytest.raises(TokenForged):
        granted(attrs.evolve(token, **{field: value if field != "scopes" else tuple(value)}))


def test_fields_do_not_shift_over_the_bars():
    """An observer's token cannot be read as an operator's without end, though the joined text is one."""
    shifted = signed(agent_id="x", role="operator", scopes=["*"], issued_at=1, expire_at=99_999_999_999)
    text = f"x|Operator|*|1|99999999999|None|{NONCE}"
    evil = f"x|Operator|*|1|99999999999|None|{NONCE}|Observer|*|1|2|None"
    assert shifted["sig_hex"] == hmac.new(SECRET, text.encode(), hashlib.sha256).hexdigest()
    with pytest.raises(ValueError, match=r"\|"):
        minted(agent_id=evil, role="observer")
    with pytest.raises(TokenForged):
        granted(CapabilityToken.decode(wire(signed(agent_id=evil, role="observer"))))


def test_what_would_not_fit_is_not_minted():
    """The bound of decode holds for encode too."""
    with pytest.raises(ValueError, match="characters, more than"):
        minted(scopes=[f"*@out={'x' * 240}{n}" for n in range(60)])


@pytest.mark.parametrize("secret", [b""])
def test_without_a_secret_there_is_nothing(secret):
    """An empty one would verify what anybody signs."""
    with pytest.raises(ValueError, match="secret"):
        mint(secret=secret, **FIELDS)
    with pytest.raises(ValueError, match="secret"):
        verify(minted(), secret=secret, now=NOW)


# -- 5.2 ---------------------------------------------------------------------------------------


def test_the_signature_comes_before_the_time():
    """A forged token that is expired is forged; an honest one is expired from expire_at on."""
    token = minted()
    with pytest.raises(TokenForged) as forged:
        verify(token, secret=b"another", now=token.expire_at)
    with pytest.raises(TokenExpired) as expired:
        granted(token, token.expire_at)

    assert granted(token, token.expire_at - 0.001)
    assert (forged.value.kind, expired.value.kind) == ("forged", "expired")
    for error in (forged.value, expired.value):
        assert isinstance(error, BadTokenError)
        assert error.fingerprint == token.fingerprint[:12]
        assert token.fingerprint[:12] in str(error)
        assert token.fingerprint[:13] not in str(error)


def test_an_operators_token_ends_with_its_session_not_by_time():
    """E3 to E6; but where somebody attenuated it, by the caveat's time."""
    token = minted(role="operator", expire_at=NOW - 1)
    assert granted(token).allows("start_task", task_id=None, attempt=None)
    assert granted(token).expire_at is None

    short = attenuate(token, expire_at=NOW + 10)
    assert granted(short).expire_at == NOW + 10
    with pytest.raises(TokenExpired):
        granted(short, NOW + 10)
    for role in ("worker", "observer", "senior"):
        with pytest.raises(TokenExpired):
            granted(minted(role=role, expire_at=NOW))


CONTRACT_VERBS = {
    "operator": "start_task dispatch_attempt mint_worker_token read_task_state cancel_task query_senior "
    "mark_pass mark_blocked attach_session detach_session heartbeat poll_task",
    "worker": "fetch_prompt fetch_data post_result verify_token emit_output start_task dispatch_attempt "
    "read_task_state poll_task cancel_task",
    "observer": "subscribe_events read_trace read_task_state",
    "senior": "answer_query override_verdict pause_loop resume_loop inject_directive",
}


def test_the_table_of_roles_is_the_contracts():
    """Role by role, verb by verb, as 5.2 has them."""
    assert {role: set(verbs.split()) for role, verbs in CONTRACT_VERBS.items()} == ROLE_VERBS


@pytest.mark.parametrize("role", ROLE_VERBS)
@pytest.mark.parametrize("verb", sorted({*VERBS, "", "*", "unknown", "FETCH_PROMPT"}))
def test_roles_and_verbs(role, verb):
    """The table; and a star is no verb."""
    assert granted(minted(role=role)).allows(verb, task_id="T-1", attempt=1) is (verb in ROLE_VERBS[role])


@pytest.mark.parametrize(
    ("scopes", "verb", "where", "allowed"),
    [
        (["*"], "post_result", {}, True),
        (["post_result"], "post_result", {}, True),
        (["post_result"], "fetch_prompt", {}, False),
        (["fetch_prompt", "post_result"], "post_result", {}, True),
        (["*@task=T-1"], "post_result", {}, True),
        (["*@task=T-1"], "post_result", {"task_id": "T-12"}, False),
        (["*@task=T-1"], "post_result", {"task_id": None}, False),
        (["*@attempt=1"], "post_result", {}, True),
        (["*@attempt=1"], "post_result", {"attempt": 2}, False),
        (["*@attempt=1"], "post_result", {"attempt": None}, False),
        (["*@task=T-1&attempt=1"], "post_result", {}, True),
        (["*@task=T-1&attempt=2"], "post_result", {}, False),
        (["*@task=T-2", "*@attempt=1"], "post_result", {}, True),
        (["emit_output@out=log"], "emit_output", {"output": "log"}, True),
        (["emit_output@out=log"], "emit_output", {"output": "log2"}, False),
        (["emit_output@out=log"], "emit_output", {}, False),
        (["emit_output@out=log*"], "emit_output", {"output": "log2"}, True),
        (["emit_output@out=log*"], "emit_output", {"output": "lo"}, False),
        (["emit_output@out=*"], "emit_output", {"output": "x"}, True),
        (["emit_output@out=*"], "emit_output", {}, False),
        (["emit_output@out=a=b@c"], "emit_output", {"output": "a=b@c"}, True),
        (["start_everything"], "start_task", {}, False),
        (["mint_worker_token"], "mint_worker_token", {}, False),
    ],
)
def test_scopes(scopes, verb, where, allowed):
    """Verbs, tasks, attempts and output names; a role's own verbs at most."""
    grant = granted(minted(scopes=scopes))

    assert grant.allows(verb, **{"task_id": "T-1", "attempt": 1, **where}) is allowed


# -- attenuation -------------------------------------------------------------------------------


def test_attenuate_narrows():
    """Each of the three; offline; and an attenuated one can be attenuated again."""
    token = minted(max_uses=9)

    once = attenuate(token, scopes=["emit_output@out=log*", "post_result"])
    twice = attenuate(once, scopes=["emit_output@out=log-a"], expire_at=NOW + 10, max_uses=3)
    grant = granted(CapabilityToken.decode(twice.encode()))

    assert twice.caveats == (
        "scopes=emit_output@out=log*,post_result",
        "scopes=emit_output@out=log-a",
        f"expire_at={NOW + 10}",
        "max_uses=3",
    )
    assert grant.allows("emit_output", task_id="T-1", attempt=1, output="log-a")
    assert not grant.allows("emit_output", task_id="T-1", attempt=1, output="log-b")
    assert not grant.allows("post_result", task_id="T-1", attempt=1)
    assert (grant.expire_at, grant.max_uses, grant.fingerprint) == (NOW + 10, 3, token.fingerprint)
    with pytest.raises(TokenExpired):
        granted(twice, NOW + 10)


@pytest.mark.parametrize(
    "change",
    [
        {"scopes": ["*"]},
        {"scopes": ["post_result"]},
        {"scopes": ["emit_output"]},
        {"scopes": ["emit_output@out=b*"]},
        {"scopes": ["emit_output@out=*"]},
        {"scopes": ["emit_output@task=T-1"]},
        {"scopes": ["emit_output@out=ab", "emit_output"]},
        {"scopes": []},
        {"scopes": ["no scope"]},
        {"scopes": ["emit@out=ab"]},
        {"expire_at": NOW + 51},
        {"expire_at": -1},
        {"max_uses": 6},
        {"max_uses": -1},
        {},
    ],
)
def test_attenuate_refuses_to_widen(change):
    """It is not merely without effect."""
    token = attenuate(minted(), scopes=["emit_output@out=a*"], expire_at=NOW + 50, max_uses=5)

    with pytest.raises(ValueError, match=r"scope|expire_at|max_uses"):
        attenuate(token, **change)


def test_attenuate_refuses_a_verb_that_no_role_has():
    """A typing mistake would make a token for nothing; what the token itself names is let be."""
    with pytest.raises(ValueError, match="'fetch_promt': no role has that verb"):
        attenuate(minted(scopes=["*"]), scopes=["fetch_promt"])
    assert attenuate(minted(scopes=["a", "b"]), scopes=["a"]).caveats == ("scopes=a",)


@given(SCOPES, SCOPES, st.lists(ACTS, min_size=1, max_size=30))
@settings(max_examples=500)
def test_a_scope_covers_only_what_it_allows(outer, inner, acts):
    """What `attenuate` takes for a narrowing is one by itself, without the other lists' help."""
    wide, narrow = Scope.parse(outer), Scope.parse(inner)
    if wide.covers(narrow):
        for act in acts:
            assert wide.allows(*act) or not narrow.allows(*act)
    assert wide.covers(wide)
    assert Scope.parse("*").covers(wide)


def chained(token, *caveats):
    """What a thief who ignores `attenuate` can make: any text, chained properly."""
    signature = bytes.fromhex(token.sig_hex)
    for text in caveats:
        signature = hmac.new(signature, text.encode(), hashlib.sha256).digest()
    return attrs.evolve(token, sig_hex=signature.hex(), caveats=(*token.caveats, *caveats))


def test_a_widening_caveat_has_no_effect():
    """Chained by hand, and verified; all of them hold at once."""
    token = attenuate(minted(), scopes=["fetch_prompt"], expire_at=NOW + 5, max_uses=1)

    grant = granted(chained(token, "scopes=*", "expire_at=99999999999", "max_uses=1000"))

    assert (grant.expire_at, grant.max_uses) == (NOW + 5, 1)
    assert not grant.allows("post_result", task_id="T-1", attempt=1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "scopes=",
        "scopes",
        "expire_at=",
        "expire_at=01",
        "expire_at=-1",
        "expire_at=99999999999999999999",
        "max_uses=4294967296",
        "max_uses=None",
        "role=operator",
        "Scopes=*",
        "scopes=*|x",
        "expire_at=1 ",
        "\ud800",
    ],
)
def test_a_caveat_that_is_not_understood_is_refused(text):
    """It may have taken anything away."""
    token = minted() if "\ud800" in text else chained(minted(), text)
    with pytest.raises(TokenForged):
        granted(attrs.evolve(token, caveats=(text,)))


def test_a_chain_has_an_end():
    """So many caveats at most, at attenuate and at verify."""
    token = minted()
    for left in range(MAX_CAVEATS, 0, -1):
        token = attenuate(token, max_uses=left)
    assert granted(token).max_uses == 1
    with pytest.raises(ValueError, match="at most 16 caveats"):
        attenuate(token, max_uses=1)
    with pytest.raises(TokenForged):
        granted(chained(token, "max_uses=1"))


def test_what_could_not_verify_is_not_attenuated():
    """A signature that is none."""
    with pytest.raises(ValueError, match="64 hex"):
        attenuate(attrs.evolve(minted(), sig_hex="zz"), max_uses=1)


def can(grant: Grant, act):
    verb, task_id, attempt, output = act
    return grant.allows(verb, task_id=task_id, attempt=attempt, output=output)


def narrowed(token, steps):
    """The chain of all steps that are narrowings, and each token on the way."""
    way = [token]
    for step in steps:
        try:
            way.append(attenuate(way[-1], **step))
        except ValueError:
            continue
    return way


@given(LISTS, st.lists(STEPS, max_size=5), st.lists(ACTS, min_size=1, max_size=20))
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_a_chain_of_attenuations_only_narrows(scopes, steps, acts):
    """Whatever a token allows, each one before it in its chain allows; it ends no later."""
    way = narrowed(minted(scopes=scopes, expire_at=NOW + 100, max_uses=10), steps)
    for parent, child in pairwise(way):
        wide, narrow = granted(parent, NOW - 1), granted(CapabilityToken.decode(child.encode()), NOW - 1)

        assert narrow.expire_at <= wide.expire_at
        assert narrow.max_uses <= wide.max_uses
        assert set(wide.use_limits) <= set(narrow.use_limits)
        for act in acts:
            assert can(wide, act) or not can(narrow, act)


@given(LISTS, st.lists(STEPS, max_size=4), LISTS, st.lists(ACTS, min_size=1, max_size=20))
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_a_caveat_by_hand_only_narrows(scopes, steps, more, acts):
    """Nor does anything that `attenuate` would refuse."""
    token = narrowed(minted(scopes=scopes, max_uses=10), steps)[-1]
    try:
        wide = granted(token, NOW - 1)
    except TokenExpired:
        return
    narrow = granted(chained(token, f"scopes={','.join(more)}", "max_uses=99"), NOW - 1)

    assert narrow.max_uses == wide.max_uses
    for act in acts:
        assert can(wide, act) or not can(narrow, act)


OTHER = {
    "agent_id": "worker-of-T-2",
    "role": "operator",
    "scopes": ("fetch_prompt",),
    "issued_at": 1,
    "expire_at": NOW + 101,
    "max_uses": None,
    "nonce": "0" * 32,
}


@given(st.lists(STEPS, min_size=1, max_size=5), st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_no_edit_of_a_chain_verifies(steps, data):
    """A caveat left out, put in, changed, moved or doubled; the chain cut anywhere; another field."""
    token = narrowed(minted(max_uses=10, expire_at=NOW + 100), steps)[-1]
    caveats = list(token.caveats)
    edit = data.draw(st.sampled_from(["drop", "cut", "swap", "double", "insert", "replace", "field"]))
    changes: dict[str, object] = {}
    at = data.draw(st.integers(0, max(len(caveats) - 1, 0)))
    if edit == "field":
        key = data.draw(st.sampled_from(sorted(OTHER)))
        changes[key] = OTHER[key]
    elif edit == "cut":
        caveats = caveats[:at]
    elif edit == "drop":
        del caveats[at : at + 1]
    elif edit == "swap":
        other = data.draw(st.integers(0, max(len(caveats) - 1, 0)))
        if caveats:
            caveats[at], caveats[other] = caveats[other], caveats[at]
    elif edit == "double":
        caveats[at:at] = caveats[at : at + 1]
    elif edit == "insert":
        caveats.insert(at, "max_uses=3")
    elif caveats:
        caveats[at] = data.draw(
            st.sampled_from(["scopes=*", "max_uses=4294967295", f"expire_at={NOW + 100}"])
        )
    edited = attrs.evolve(token, caveats=tuple(caveats), **changes)
    if edited == token:
        assert granted(edited, NOW - 1)
        return
    with pytest.raises(TokenForged):
        granted(edited, NOW - 1)


def test_a_cut_chain_with_any_signature_seen_later_is_refused():
    """A thief of a child token knows its signature, and no other that would verify."""
    parent = attenuate(minted(), scopes=["fetch_prompt"])
    child = attenuate(parent, max_uses=1)

    for caveats in (parent.caveats, (), child.caveats[1:], (*child.caveats, *child.caveats)):
        with pytest.raises(TokenForged):
            granted(attrs.evolve(child, caveats=caveats))


# -- uses --------------------------------------------------------------------------------------


def test_uses_are_counted_against_every_limit():
    """A child's uses count for its parent; a parent's earlier ones not for its child; siblings alone."""
    counts = UseCounts()
    token = minted(max_uses=4)
    one, other = attenuate(token, max_uses=1), attenuate(token, max_uses=2)
    counts.use(granted(token))

    counts.use(granted(one))
    with pytest.raises(TokenExhausted) as caught:
        counts.use(granted(one))
    counts.use(granted(other))
    counts.use(granted(other))
    with pytest.raises(TokenExhausted):
        counts.use(granted(token))
    assert caught.value.kind == "exhausted"


def test_narrowing_further_gives_no_new_uses():
    """Not even with the same caveat again."""
    counts = UseCounts()
    token = attenuate(minted(), max_uses=1)
    counts.use(granted(token))

    for again in (attenuate(token, max_uses=1), attenuate(token, scopes=["*"]), chained(token, "max_uses=9")):
        with pytest.raises(TokenExhausted):
            counts.use(granted(again))


def test_a_refused_use_is_not_counted_at_all():
    """The parent's count stays when the child has none left."""
    counts = UseCounts()
    token = minted(max_uses=1)
    with pytest.raises(TokenExhausted):
        counts.use(granted(attenuate(token, max_uses=0)))

    counts.use(granted(token))


def test_counters_are_bounded():
    """Somebody who makes many limited tokens of one is refused, not remembered."""
    counts = UseCounts(most=3)
    token = minted()
    for uses in (1, 2, 3):
        counts.use(granted(attenuate(token, max_uses=uses)))
    with pytest.raises(TokenExhausted, match="more than 3 limits"):
        counts.use(granted(attenuate(token, max_uses=4)))
    counts.use(granted(attenuate(token, max_uses=3)))
    for _ in range(100):
        counts.use(granted(token))


def test_one_branch_does_not_use_up_the_counters_of_the_others():
    """A helper that has a narrowed token makes limited ones of it, as many as it likes."""
    counts = UseCounts()
    token = minted()
    helper, honest = attenuate(token, scopes=["fetch_data"]), attenuate(token, max_uses=5)
    below, beside = attenuate(helper, scopes=["fetch_data@out=a"]), attenuate(helper, expire_at=NOW + 50)
    for branch in (below, helper):
        with pytest.raises(TokenExhausted, match="made of one token"):
            for uses in range(1, 2000):
                counts.use(granted(attenuate(branch, max_uses=uses)))
        if branch is below:
            counts.use(granted(attenuate(beside, max_uses=5)))
    counts.use(granted(honest))
    assert len(counts) <= counts.most // 2 + 1


@pytest.mark.parametrize("in_turns", [True, False])
def test_branches_together_do_not_use_up_the_counters_of_the_others(in_turns):
    """They take what they can; there is still something for who comes after them."""
    counts = UseCounts()
    token = minted()
    branches = [attenuate(token, scopes=[f"fetch_data@out={number}"]) for number in range(5)]
    tries = [(uses, branch) for uses in range(1, 700) for branch in branches]
    if not in_turns:
        tries.sort(key=lambda each: branches.index(each[1]))
    for uses, branch in tries:
        with suppress(TokenExhausted):
            counts.use(granted(attenuate(branch, max_uses=uses)))
    assert len(counts) <= 1024 - 1024 // (6 if in_turns else 2**5)
    for uses in range(1, 5):
        counts.use(granted(attenuate(token, max_uses=uses)))


def test_the_longest_chain_of_limits_is_counted():
    """Also where little is left for a single branch."""
    counts = UseCounts()
    token = minted()
    for uses in range(MAX_CAVEATS, 0, -1):
        token = attenuate(token, max_uses=uses)
    counts.use(granted(token))
    with pytest.raises(TokenExhausted, match="all of 1 uses"):
        counts.use(granted(token))


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=30), st.lists(st.integers(0, 6), min_size=5, max_size=5)
)
def test_uses_of_a_chain_are_a_subset(picks, limits):
    """No token of a chain is used more often than any limit before it says."""
    way = [minted(max_uses=20)]
    for limit in limits[1:]:
        way.append(chained(way[-1], f"max_uses={limit}"))
    counts, used = UseCounts(), [0] * len(way)
    for pick in picks:
        try:
            counts.use(granted(way[pick]))
        except TokenExhausted:
            continue
        used[pick] += 1
    for at, limit in enumerate([20, *limits[1:]]):
        assert sum(used[at:]) <= limit


# -- secrecy -----------------------------------------------------------------------------------


def test_secrets_are_not_shown():
    """Neither by repr nor by any error."""
    token = attenuate(minted(), max_uses=1)
    shown = [repr(token), str(token), repr(granted(token)), repr(UseCounts())]
    for act in (
        lambda: verify(token, secret=b"x", now=NOW),
        lambda: granted(token, NOW * 2),
        lambda: granted(attrs.evolve(token, agent_id="|")),
        lambda: CapabilityToken.decode(token.encode() + "="),
        lambda: CapabilityToken.decode(token.encode()[:-8]),
        lambda: attenuate(token, max_uses=2),
    ):
        with pytest.raises((TokenError, ValueError)) as caught:
            act()
        shown += [str(caught.value), repr(caught.value)]
    for text in shown:
        assert NONCE not in text
        assert token.sig_hex not in text
        assert token.encode()[:-8] not in text
