import uuid

from hypothesis import given
from hypothesis import strategies as st

from dfud.model.ids import ordered_id

TIMES = st.floats(0, 2**47 / 1000, allow_nan=False)


@given(TIMES)
def test_an_ordered_id_is_a_uuid_of_version_7_with_its_time(now_s: float) -> None:
    text = ordered_id(now_s)
    found = uuid.UUID(text)
    assert (found.hex, found.version, found.variant) == (text, 7, uuid.RFC_4122)
    assert found.int >> 80 == int(now_s * 1000)


@given(TIMES, TIMES)
def test_ids_that_are_made_later_sort_behind(one_s: float, other_s: float) -> None:
    before, after = sorted((one_s, other_s))
    if after - before > 0.001:
        assert ordered_id(before) < ordered_id(after)


def test_ids_of_one_moment_are_different() -> None:
    assert len({ordered_id(1.5) for _ in range(1000)}) == 1000


def test_a_time_before_the_epoch_or_far_away_still_gives_an_id() -> None:
    assert len({len(ordered_id(now_s)) for now_s in (-1.0, 0.0, 1e15)}) == 1
