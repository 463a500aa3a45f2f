"""Ways between versions, over all small cases and against a search that knows nothing but the rules."""

from __future__ import annotations

import itertools

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from dfud.model.firmware import Firmware, Recall, Requires
from dfud.model.steps import Ladder, no_way, way


def version(sequence: int, requires: tuple[int, int] | None = None, *, stop: bool = False, recalled: bool = False) -> Firmware:
    made = Firmware(
        app="app",
        version=f"v{sequence}",
        hardware="esp32c3",
        sequence=sequence,
        size_bytes=10,
        sha256=f"{sequence:02x}",
        manifest=b"m",
        stop=stop,
    )
    return msgspec.structs.replace(
        made, requires=Requires(*requires) if requires else None, recalled=Recall("bad") if recalled else None
    )


def names(found: list[Firmware] | None) -> list[str] | None:
    return None if found is None else [f.version for f in found]


def test_without_rules_every_way_is_direct() -> None:
    every = [version(n) for n in (9, 10, 11)]
    assert Ladder(every).free and names(way(1, every[2], every)) == ["v11"]
    assert names(way(11, every[0], every)) == ["v9"], "also backwards"


def test_a_stop_is_not_skipped_and_a_range_is_kept() -> None:
    every = [version(2, stop=True), version(3), version(4, (3, 3)), version(5, stop=True), version(9)]
    assert names(way(1, every[4], every)) == ["v2", "v5", "v9"]
    assert names(way(2, every[4], every)) == ["v5", "v9"]
    assert names(way(7, every[4], every)) == ["v9"]
    assert names(way(1, every[2], every)) == ["v2", "v3", "v4"]
    assert names(way(9, every[1], every)) == ["v3"], "backwards nothing is skipped"
    assert names(way(9, every[2], every)) is None and "takes sequences 3 to 3, the device runs sequence 9" in no_way(
        9, every[2], every
    )


def test_what_is_recalled_is_no_step_and_a_recalled_stop_bars_the_way() -> None:
    every = [version(2, stop=True, recalled=True), version(3)]
    assert way(1, every[1], every) is None and "v2, which may not be skipped, is recalled" in no_way(1, every[1], every)
    every = [version(2, recalled=True), version(3), version(9, (2, 3))]
    assert names(way(1, every[2], every)) == ["v3", "v9"]


def test_only_versions_with_an_image_for_the_device_count() -> None:
    other = msgspec.structs.replace(version(2, stop=True), hardware="esp32s3")
    ladder = Ladder([other, version(3)])
    assert names(way(1, version(3), ladder.of("esp32c3", {}))) == ["v3"] and not ladder.free


bounds = st.none() | st.tuples(st.integers(0, 7), st.integers(0, 7)).map(lambda pair: (min(pair), max(pair)))
fleets = st.lists(st.tuples(bounds, st.booleans(), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=300)
@given(fleets, st.integers(0, 7))
def test_the_way_is_the_shortest_that_the_rules_allow(said: list[tuple[tuple[int, int] | None, bool, bool]], start: int) -> None:
    every = [version(n + 1, r, stop=s, recalled=b) for n, (r, s, b) in enumerate(said)]
    target = msgspec.structs.replace(every[-1], recalled=None)
    every[-1] = target

    def allowed(steps: tuple[Firmware, ...]) -> bool:
        at = start
        for step in steps:
            stops = [f for f in every if f.stop and at < f.sequence < step.sequence]
            if stops or (step.recalled and step is not target) or (step.requires and not step.requires.admits(at)):
                return False
            at = step.sequence
        return True

    between = [f for f in every if start < f.sequence < target.sequence]
    possible = [
        (*chosen, target)
        for n in range(len(between) + 1)
        for chosen in itertools.combinations(between, n)
        if allowed((*chosen, target))
    ]
    found = way(start, target, every)
    if not possible:
        assert found is None and target.version in no_way(start, target, every)
    else:
        assert found is not None and allowed(tuple(found)) and len(found) == min(map(len, possible))
