"""WebSocket frames as bytes: messages, control frames, violations; limits at the header."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.io.hostile import BINARY, CLOSE, PING, PONG, TEXT, frame, header
from trio_swarm._io.wsframes import FrameReader, Goodbye, text_frames

STREAM = (
    frame(TEXT, "één".encode())
    + frame(PING, b"p" * 125)
    + frame(TEXT, b"x" * 200 + "é".encode()[:1], fin=False)
    + frame(PONG)
    + frame(0, "é".encode()[1:] + b"y" * 70_000, mask=b"\xff\0\x7f\x80")
    + frame(BINARY, b"\xff\xfe", fin=False)
    + frame(0)
    + frame(TEXT)
    + frame(CLOSE, b"\x03\xe8bye")
    + frame(TEXT, b"too late")
)
MESSAGES = ["één", "x" * 200 + "é" + "y" * 70_000, ""]
CONTROL = frame(PING, b"p" * 125) + frame(PONG) + frame(CLOSE, b"\x03\xe8bye")


def reader(**options):
    return FrameReader(**{"masked": True, "max_message": 100_000, **options})


def fed(frames, data):
    """All that `feed` passed on, as one."""
    return b"".join(frames.feed(data))


def check_all(frames, control):
    assert control == CONTROL
    assert frames.unread == sum(len(message.encode()) for message in MESSAGES)
    assert frames.take_all() == MESSAGES
    assert (frames.unread, frames.take_all()) == (0, [])
    assert frames.ignored == 1
    assert frames.goodbye == Goodbye(1000, "bye")
    assert frames.violation is None


def test_messages_are_taken_out_and_control_frames_passed_on():
    frames = reader()
    check_all(frames, fed(frames, STREAM))


def test_byte_by_byte_is_the_same():
    frames = reader()
    check_all(frames, b"".join(fed(frames, STREAM[at : at + 1]) for at in range(len(STREAM))))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=400))
def test_the_same_however_the_bytes_are_cut(steps):
    frames, position, control = reader(), 0, b""
    for step in steps:
        control += fed(frames, STREAM[position : position + step])
        position += step
    check_all(frames, control + fed(frames, STREAM[position:]))


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (header(TEXT, 2**62), 1009),
        (header(TEXT, 101), 1009),
        (frame(TEXT, b"x" * 60, fin=False) + header(0, 41), 1009),
        (frame(BINARY, b"x" * 60, fin=False) + header(0, 41), 1009),
        (frame(TEXT, fin=False) + frame(0, fin=False) * 3 + header(0, 0), 1009),
        (header(3, 0), 1002),
        (header(TEXT, 0, bits=0x10), 1002),
        (header(TEXT, 0, mask=None), 1002),
        (header(PING, 126), 1002),
        (header(PING, 0, fin=False), 1002),
        (header(0, 0), 1002),
        (frame(TEXT, fin=False) + header(TEXT, 0), 1002),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),
        (frame(TEXT, b"\xc3", fin=False) + frame(0, b"x"), 1007),
        (frame(CLOSE, b"x"), 1002),
        (frame(CLOSE, (999).to_bytes(2, "big")), 1002),
        (frame(CLOSE, (1006).to_bytes(2, "big")), 1002),
        (frame(CLOSE, (5000).to_bytes(2, "big")), 1002),
        (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    ],
)
def test_a_violation_is_found_and_nothing_after_it_counts(bad, code):
    good = frame(TEXT, b"fine")
    for size in (1, 2, 1000):
        frames, control = reader(max_message=100, max_fragments=4), b""
        data = good + bad + frame(TEXT, b"after") + frame(PING)
        for start in range(0, len(data), size):
            control += fed(frames, data[start : start + size])
        assert frames.violation is not None
        assert frames.violation.code == code
        assert frames.take_all() == ["fine"]
        assert control == b""
        assert frames.goodbye is None


def test_limits_themselves_pass():
    frames = reader(max_message=100, max_fragments=4)
    frames.feed(
        frame(TEXT, b"x" * 100) + frame(TEXT, fin=False) + frame(0, fin=False) * 2 + frame(0, b"y" * 100)
    )

    assert frames.take_all() == ["x" * 100, "y" * 100]


def test_what_is_declared_is_not_waited_for_when_it_is_too_large():
    for size in (101, 1000, 2**16):
        frames = reader(max_message=100)
        whole = header(TEXT, size, mask=b"")
        frames.feed(whole[:-1])
        assert frames.violation is None
        frames.feed(whole[-1:])
        assert frames.violation is not None


def test_when_deaf_only_the_close_frame_is_of_interest():
    frames = reader()
    frames.deaf = frames.closing = True

    assert frames.feed(frame(TEXT, b"x") + frame(PING, b"x") + frame(CLOSE)) == [frame(CLOSE)]
    assert frames.take_all() == []
    assert frames.goodbye == Goodbye(1005, "")


@given(st.lists(st.text(max_size=300)), st.booleans())
def test_what_is_written_is_read(messages, masked):
    frames = reader(masked=masked)

    assert frames.feed(text_frames(messages, mask=masked)) == []
    assert frames.take_all() == messages


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_every_width_of_length_is_written_as_it_is_read(size):
    plain = text_frames(["x" * size], mask=False)
    frames = reader(masked=False)
    frames.feed(plain)

    assert plain == frame(TEXT, b"x" * size, mask=None)
    assert frames.take_all() == ["x" * size]


def test_each_frame_has_a_mask_of_its_own():
    first, second = text_frames(["x" * 50], mask=True), text_frames(["x" * 50], mask=True)

    assert first[:2] == second[:2]
    assert first[2:6] != second[2:6]


@given(st.binary(max_size=2000), st.booleans())
def test_any_bytes_give_messages_or_a_violation_and_never_an_exception(data, masked):
    frames = reader(masked=masked)
    whole = fed(frames, data)
    bytewise = reader(masked=masked)
    pieces = b"".join(fed(bytewise, data[at : at + 1]) for at in range(len(data)))

    assert whole == pieces
    assert frames.take_all() == bytewise.take_all()
    assert (frames.violation, frames.goodbye) == (bytewise.violation, bytewise.goodbye)
