"""What a server answered, in words that can be shown to a person."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_swarm._io.http_peer import Address, Reply

NGINX = (
    b"<html>\r\n<head><title>502 Bad Gateway</title><style>a {b: c}</style></head>\r\n<body>\r\n"
    b"<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx/1.24.0</center>\r\n</body></html>"
)


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("text/html", NGINX, "502 Bad Gateway 502 Bad Gateway nginx/1.24.0"),
        (
            "",
            b"\n <!doctype html><p>gone<script>if (1 < 2) '</b>'</script> away<!-- \n not -->",
            "gone away",
        ),
        ("text/html", b"a<b", "a"),
        ("text/html", b"<script>for ever", ""),
        ("application/json", b'{"error": "no room\\u001b[31m\\nhere", "x": 1}', "no room [31m here"),
        ("application/json", b'{"error": 5}', '{"error": 5}'),
        ("text/plain", b"", ""),
        ("text/plain", "caf\u00e9\t\u202e\x1b[2Jx".encode(), "café [2Jx"),
        ("text/plain", b"\xff\xfe\x00", "��"),
        ("text/plain", b"word " * 100, ("word " * 24).strip() + " ..."),
        ("application/json", b"[" * 100_000, "[" * 120 + "..."),
    ],
)
def test_the_words_of_an_answer(kind, body, words) -> None:
    """One line, printable, not long."""
    reply = Reply(502, (("content-type", kind),) if kind else (), body)
    assert reply.words == words
    assert reply.words.isprintable()


def test_a_page_of_any_size_takes_no_time() -> None:
    for piece in (b"<", b"<script", b"<!--", b"<script></style>"):
        assert len(Reply(500, (("content-type", "text/html"),), piece * 1_000_000).words) <= 123


def test_a_socket_leads_there_whatever_the_url_says() -> None:
    """It names the server in errors; the URL says the rest."""
    plain = Address.parse("http://h:81/p/")
    assert (plain.uds, plain.name, plain.secure) == (None, "h:81", False)
    there = Address.parse("https://h/p/", Path("/run/s"))
    assert (there.uds, there.name, there.secure) == ("/run/s", "/run/s", True)
    assert (there.authority, there.path, there.ws_url("/ws")) == ("h", "/p", "wss://h/p/ws")


@pytest.mark.parametrize(
    ("uds", "why"),
    [
        ("", "'' is not the path of a socket"),
        (b"/s", "b'/s' is not the path of a socket"),
        ("/" + "x" * 103, "104 bytes, more than 103"),
        ("\0abstract", "NUL"),
        ("/\ud800", "surrogates"),
    ],
)
def test_a_path_that_no_socket_can_be_at(uds, why) -> None:
    """Known before anything is connected to."""
    with pytest.raises(ValueError, match=why):
        Address.parse("http://localhost", uds)
