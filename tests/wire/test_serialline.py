"""The bridge's decoder of a serial line: any bytes, in any pieces; and what is kept of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.errors import PeerError
from dfud.wire.serialline import (
    FRAME_MAX_BYTES,
    QUESTION_MAX_BYTES,
    Answer,
    Frames,
    Link,
    Question,
    Text,
    framed,
    question_untrusted,
    unframed_untrusted,
)
from dfud.wire.subset import encode

ID = b"\x00\x01\x02\x03"
GOOD = {0: 0, 1: "lamp1@lamps:secret", 2: b"status", 3: 60, 4: 512, 5: 6304}
VALUES = st.one_of(st.integers(0, 2**40), st.text(max_size=20), st.binary(max_size=40), st.booleans(), st.none())


def asked(**changed: object) -> bytes:
    return b"A" + ID + encode(GOOD | {int(key[1:]): value for key, value in changed.items()})


def taken(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    """Return the frames, and the text between them put together."""
    lines, frames, text = Frames(), [], b""
    for piece in pieces:
        for found in lines.feed(piece):
            if isinstance(found, Text):
                text += found.data
            else:
                frames.append(found)
    return frames, text


@given(st.binary(max_size=400), st.binary(min_size=5, max_size=60), st.integers(1, 30))
def test_a_frame_is_found_whole_in_pieces_and_with_a_tail(noise: bytes, data: bytes, size: int) -> None:
    data = b"M" + data
    line = noise + framed(data) + b"lamp: on\n"
    whole, _ = taken([line])
    assert whole[-1:] == [data]
    assert taken([line[i : i + 1] for i in range(len(line))])[0] == whole
    assert taken([line[i : i + size] for i in range(0, len(line), size)])[0] == whole


@given(st.lists(st.binary(max_size=300), max_size=30))
def test_no_bytes_end_the_link_or_are_kept_without_bound(pieces: list[bytes]) -> None:
    link = Link()
    for piece in pieces:
        for found in link.heard(piece):
            assert isinstance(found, bytes | Question | Text)
        assert len(link._lines._rest) <= FRAME_MAX_BYTES


def test_a_line_that_never_ends_a_frame_is_kept_for_so_long() -> None:
    lines = Frames()
    text = sum(len(found.data) for _ in range(1000) for found in lines.feed(b"A" * 100) if isinstance(found, Text))
    assert text > 100_000 - FRAME_MAX_BYTES - 100 and len(lines._rest) <= FRAME_MAX_BYTES
    frames, _ = taken([b"A" * 50_000, framed(b"M" + ID + bytes(4))])
    assert frames == [b"M" + ID + bytes(4)], "the next frame is found all the same"


def test_a_frame_that_is_too_long_is_none_whatever_its_crc() -> None:
    frames, _ = taken([framed(bytes(FRAME_MAX_BYTES))])
    assert frames == []


@given(st.dictionaries(st.integers(0, 7), VALUES, max_size=8), st.binary(max_size=50))
def test_a_question_is_judged_field_by_field_or_refused(said: dict[int, object], tail: bytes) -> None:
    message = b"A" + ID + encode(dict(sorted((GOOD | said).items()))) + tail
    try:
        found = question_untrusted(message)
    except PeerError:
        return
    assert not tail
    assert 32 <= found.piece <= 4096 and found.room <= 256 * 1024 and len(found.login) <= 400 and found.number < 2**32


@given(st.binary(max_size=400))
def test_any_bytes_as_a_question_are_refused_with_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(PeerError):
        question_untrusted(b"A" + ID + data)


WRONG = [(0, 3), (0, True), (0, 1), (1, "a\nb"), (1, b"x"), (2, "status"), (3, 86401), (4, 31), (4, 5000), (5, 0)]


@pytest.mark.parametrize("wrong", [{f"_{key}": value} for key, value in WRONG])
def test_a_wrong_question_gets_an_answer_that_says_so_and_asks_nobody(wrong: dict[str, object]) -> None:
    found = list(Link().heard(framed(asked(**wrong))))
    assert len(found) == 1 and isinstance(found[0], bytes)
    data = unframed_untrusted(found[0][1:-1])
    assert data[:5] == b"d" + ID and data[9:11] == (504).to_bytes(2, "big")


def test_a_question_may_be_as_long_as_it_may_and_no_longer() -> None:
    assert any(isinstance(found, Question) for found in Link().heard(framed(asked(_2=bytes(QUESTION_MAX_BYTES - 100)))))
    assert not any(isinstance(found, Question) for found in Link().heard(framed(asked(_2=bytes(QUESTION_MAX_BYTES)))))


def test_the_same_question_again_is_asked_once_and_an_old_answer_goes_nowhere() -> None:
    link = Link()
    (first, question) = link.heard(framed(asked()))
    assert isinstance(question, Question) and unframed_untrusted(first[1:-1]) == b"w" + ID  # type: ignore[index]
    assert list(link.heard(framed(asked()))) == [first], "it is being done"
    other = b"A" + b"next" + asked()[5:]
    (_, second) = link.heard(framed(other))
    assert isinstance(second, Question)
    assert link.answered(question, Answer(200, b"late")) == b"", "that question is over"
    assert link.waits
    assert unframed_untrusted(link.answered(second, Answer(200, b"body"))[1:-1])[-4:] == b"body"
    assert list(link.heard(framed(b"M" + ID + bytes(4)))) == [framed(b"l" + ID)]


def test_a_name_is_shown_without_its_secret() -> None:
    found = question_untrusted(asked())
    assert found.name == "lamp1@lamps" and repr(found) == "<STATUS of lamp1@lamps>"
