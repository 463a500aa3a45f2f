"""What is read of counters, and that folding them changes no sum."""

from __future__ import annotations

import random
from collections import Counter

from dfud.model.tally import HOUR_S, adoption, folded, moved, of_kind, seen_within

NOW = 500_000 * HOUR_S + 1800.0


def test_a_move_takes_away_what_was_added_and_notes_the_version_by_the_hour() -> None:
    first, second = ("version/1.0", "state/done", "hour/9"), ("version/1.1", "state/done", "hour/10")
    assert moved((), first, NOW) == {"version/1.0": 1, "state/done": 1, "hour/9": 1, "at/500000/1.0": 1}
    assert moved(first, second, NOW) == {
        "version/1.0": -1, "version/1.1": 1, "hour/9": -1, "hour/10": 1, "at/500000/1.0": -1, "at/500000/1.1": 1,
    }  # fmt: skip
    assert moved(second, second, NOW) == {}
    back = Counter(moved((), first, NOW))
    back.update(moved(first, (), NOW))
    assert not any(back.values())


def test_kinds_are_told_apart_by_their_whole_name() -> None:
    counts = {"version/1": 3, "version/a/b": 9, "versions/2": 5, "state/done": 1, "version/gone": 0, "version/odd": -1}
    assert of_kind(counts, "version") == {"a/b": 9, "1": 3}


def test_seen_is_to_the_hour() -> None:
    counts = {"hour/500000": 1, "hour/499999": 2, "hour/499998": 4, "hour/499976": 8, "hour/499975": 16, "hour/0": 32}
    assert (seen_within(counts, NOW, 1), seen_within(counts, NOW, 24), seen_within(counts, NOW, 168)) == (3, 15, 31)


def test_adoption_adds_up_to_what_runs_now() -> None:
    counts = {"at/499990/1.0": 10, "at/499995/1.0": -4, "at/499995/1.1": 4, "at/500000/1.0": -6, "at/500000/1.1": 6}
    points = adoption(counts, NOW, 10, 11)
    assert [p.versions.get("1.1", 0) for p in points] == [0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 10]
    assert points[-1].versions == {"1.1": 10} and points[-1].at_s == NOW
    assert len(adoption(counts, NOW, 1000, 20)) <= 21
    assert adoption({"at/500009/2": 1}, NOW, 2, 3)[-1].versions == {"2": 1}, "a clock that was set back loses nothing"


def test_folding_keeps_every_sum_whenever_and_by_however_many_it_is_done() -> None:
    rng = random.Random(7)
    for _ in range(30):
        counts: Counter[str] = Counter()
        for _ in range(300):
            hour = 500_000 - int(rng.expovariate(1 / 2000))
            counts[f"at/{hour}/{rng.choice(('1.0', '1/1', 'é'))}"] += rng.randrange(-3, 9)
            counts[f"hour/{hour}"] += rng.randrange(5)
        before = (
            adoption(counts, NOW, 24, 25),
            [seen_within(counts, NOW, hours) for hours in (1, 24, 168)],
            sum(n for name, n in counts.items() if name.startswith("hour/")),
        )
        for change in (folded(counts, NOW), folded(counts, NOW), {}):
            counts.update(change)  # the first twice: two processes that have read the same
            counts.update(folded(counts, NOW))
        after = (
            adoption(counts, NOW, 24, 25),
            [seen_within(counts, NOW, hours) for hours in (1, 24, 168)],
            sum(n for name, n in counts.items() if name.startswith("hour/")),
        )
        assert after == before
        assert folded(counts, NOW) == {}
        left = [name for name, n in counts.items() if n]
        assert len(left) < 200 * 4 + 400 * 3


def test_a_counter_whose_name_is_no_counters_costs_itself() -> None:
    odd = {"hour/x": 5, "hour/": 5, "hour/\u00b2": 5, "hour/-3": 5, "at/": 5, "at/x/1.0": 5, f"at/{'9' * 5000}/1.0": 5, "/": 5, "": 5}
    good = {"hour/1000": 2, "at/1000/1.0": 3}
    now_s = 1000.5 * 3600
    assert seen_within(odd | good, now_s, 1) == seen_within(good, now_s, 1) == 2
    assert adoption(odd | good, now_s, 24, 5) == adoption(good, now_s, 24, 5)
    assert folded(odd | good, now_s + 500 * 86400) == folded(good, now_s + 500 * 86400) != {}
