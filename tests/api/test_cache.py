"""Nothing is kept that changed while it was read; whatever the order of events, a cache answers with what is true or nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.api import Cache

Key = tuple[str, int]


def cache(limit: int = 100) -> Cache[Key, int | None]:
    return Cache(limit, group_of=lambda key: key[0])


async def test_what_changed_while_it_was_read_is_returned_and_not_kept() -> None:
    c = cache()

    async def read() -> int:
        c.forget(("a", 1))
        return 7

    assert await c.load(("a", 1), read) == 7
    assert c.get(("a", 1)) is None


async def test_a_group_that_changed_is_forgotten_and_the_others_are_not() -> None:
    c = cache()
    c.put(("a", 1), 1)
    c.put(("b", 1), 2)
    reading = c.begin(("a", 2))
    c.forget_group("a")
    assert not c.end(reading, 5)
    assert c.get(("a", 1)) is None
    assert c.get(("b", 1)) == 2


async def test_none_is_a_value_and_a_failed_read_leaves_nothing() -> None:
    c = cache()
    reads = 0

    async def nothing() -> None:
        nonlocal reads
        reads += 1

    async def fails() -> int:
        raise OSError

    await c.load(("a", 1), nothing)
    await c.load(("a", 1), nothing)
    assert reads == 1
    with pytest.raises(OSError):
        await c.load(("a", 2), fails)
    assert c._readings == {}


def test_the_least_used_goes_first() -> None:
    c = cache(limit=2)
    c.put(("a", 1), 1)
    c.put(("a", 2), 2)
    c.get(("a", 1))
    c.put(("a", 3), 3)
    assert (c.get(("a", 1)), c.get(("a", 2)), c.get(("a", 3))) == (1, None, 3)


STEPS = st.lists(
    st.tuples(st.sampled_from(["begin", "end", "write", "group", "all", "get"]), st.sampled_from("ab"), st.integers(0, 2))
)


@given(STEPS, st.integers(1, 4))
def test_it_never_gives_what_was_true_before(steps: list[tuple[str, str, int]], limit: int) -> None:
    c = cache(limit)
    truth = {(group, n): 0 for group in "ab" for n in range(3)}
    readings = []
    for what, group, n in steps:
        key = (group, n)
        if what == "begin":
            readings.append((c.begin(key), key, truth[key]))
        elif what == "end" and readings:
            reading, _, seen = readings.pop(n % len(readings))
            c.end(reading, seen)
        elif what == "write":
            truth[key] += 1
            c.forget(key)
        elif what == "group":
            for other in range(3):
                truth[(group, other)] += 1
            c.forget_group(group)
        elif what == "all":
            truth = {k: v + 1 for k, v in truth.items()}
            c.forget_all()
        assert c.get(key) in (None, truth[key])
        assert len(c) <= limit
    for reading, _, seen in readings:
        c.end(reading, seen)
    for key, value in truth.items():
        assert c.get(key) in (None, value)


def test_what_has_to_go_for_another_is_told_and_what_is_forgotten_is_not() -> None:
    dropped: list[tuple[str, int]] = []
    cache: Cache[str, int] = Cache(2, dropped=lambda key, value: dropped.append((key, value)))
    for number, key in enumerate("abc"):
        cache.put(key, number)
    cache.forget("b")
    cache.forget_all()
    assert dropped == [("a", 0)]
