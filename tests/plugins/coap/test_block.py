"""Bodies in blocks: cut up, put together, kept, bounded."""

from __future__ import annotations

import pytest
from dfud_coap.block import LIFETIME_S, Block, BlockError, Bodies, Kept, cut, szx_of
from dfud_coap.message import Code
from hypothesis import given
from hypothesis import strategies as st


@given(st.binary(min_size=1, max_size=3000), st.integers(0, 6), st.integers(0, 6))
def test_what_is_cut_up_is_put_together_again(body: bytes, asked: int, largest: int) -> None:
    got, number, szx = b"", 0, asked
    bodies = Bodies(10, 10, 4096)
    while True:
        part, block = cut(body, Block(number, False, szx), largest)
        assert block is not None and block.szx <= largest and len(part) <= block.size
        got += part
        whole = bodies.add("k", "a", block, part, 0)
        assert (whole is None) is block.more
        if whole is not None:
            assert whole == got == body and len(bodies) == 0
            return
        szx, number = block.szx, block.number + 1


def test_an_answer_of_one_block_has_no_option_unless_it_was_asked_for() -> None:
    assert cut(b"x" * 1024, None, 6) == (b"x" * 1024, None)
    assert cut(b"x" * 1025, None, 6) == (b"x" * 1024, Block(0, True, 6))
    assert cut(b"x", Block(0, False, 6), 6) == (b"x", Block(0, False, 6))
    assert cut(b"", Block(0, False, 6), 6) == (b"", Block(0, False, 6))
    assert cut(b"x" * 200, Block(1, False, 3), 1) == (b"x" * 32, Block(4, True, 1))  # smaller, from the same byte on
    with pytest.raises(BlockError):
        cut(b"x" * 128, Block(1, False, 3), 6)
    assert [szx_of(n) for n in (16, 17, 31, 32, 1023, 1024)] == [0, 0, 0, 1, 5, 6]


def test_a_body_that_is_too_large_or_has_a_gap_is_forgotten_or_refused() -> None:
    bodies = Bodies(2, 2, 40)
    assert bodies.add("k", "a", Block(0, True, 0), b"a" * 16, 0) is None
    with pytest.raises(BlockError) as gap:
        bodies.add("k", "a", Block(2, False, 0), b"c", 0)
    assert gap.value.code is Code.INCOMPLETE and len(bodies) == 1
    assert bodies.add("k", "a", Block(1, True, 0), b"b" * 16, 0) is None
    with pytest.raises(BlockError) as large:
        bodies.add("k", "a", Block(2, True, 0), b"c" * 16, 0)
    assert large.value.code is Code.TOO_LARGE and len(bodies) == 0
    with pytest.raises(BlockError) as short:
        bodies.add("k", "a", Block(0, True, 0), b"c" * 15, 0)
    assert short.value.code is Code.BAD_REQUEST
    bodies.add("k", "a", Block(0, True, 0), b"a" * 16, 0)
    bodies.add("k", "a", Block(1, True, 0), b"b" * 16, 0)
    assert bodies.add("k", "a", Block(0, True, 0), b"z" * 16, 0) is None  # block 0 begins again
    with pytest.raises(BlockError):
        bodies.add("k", "a", Block(2, False, 0), b"", 0)


def test_bodies_are_bounded_in_total_for_an_address_and_in_time() -> None:
    bodies = Bodies(3, 2, 100)
    for key, address in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c")):
        bodies.add(key, address, Block(0, True, 0), b"x" * 16, 0)
    assert (
        len(bodies) == 3
        and set(bodies._held) == {"a3", "b1", "c1"}
        and dict(bodies._counts) == {"a": 1, "b": 1, "c": 1}
    )
    with pytest.raises(BlockError):
        bodies.add("b1", "b", Block(1, False, 0), b"", LIFETIME_S)
    assert len(bodies) == 0 and not bodies._counts


def test_kept_answers_are_bounded_in_number_and_time() -> None:
    kept: Kept[str] = Kept(2)
    for name in ("a", "b", "c"):
        kept.keep(name, name, 0)
    assert (kept.get("a", 1), kept.get("b", 1), kept.get("c", 1)) == (None, "b", "c")
    assert kept.get("c", LIFETIME_S) is None and len(kept) == 0
