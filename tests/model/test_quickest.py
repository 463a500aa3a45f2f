"""Which package is sent: by time where time is what counts, by bytes where those do."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dfud.errors import PeerError
from dfud.model.quickest import (
    RATE_MAX,
    RATE_MIN,
    SLOWNESS_MAX,
    SLOWNESS_MIN,
    Candidate,
    Link,
    Measured,
    Pace,
    choose,
    learned,
    link_of,
    link_untrusted,
    pace_of,
    sample,
    sentence_of,
    worthwhile,
)

# As an emulated chip decoded them: a mapped delta of a large change, and the full package.
MAPPED = Candidate("aa" * 16, 3, 465_000, 205_000)
FULL = Candidate("bb" * 16, 1, 946_000, 26_000)
BOTH = (MAPPED, FULL)


def test_the_quicker_one_is_sent_and_why_is_said() -> None:
    found = choose(BOTH, Pace(rate=100_000, of_rate="shown"))
    assert (found.package, found.why, found.seconds) == (FULL.package, "quickest", 35)
    assert sentence_of(found) == (
        "It is sent a full package: 35 s (946000 bytes), estimated with a link of 100000 bytes a second, as its transfers have "
        "shown; mapped delta 210 s (465000 bytes)."
    )
    slow = choose(BOTH, Pace(rate=1000))
    assert (slow.kind, slow.seconds, slow.others[0].seconds) == (3, 670, 972), "bytes decide on a slow link"
    assert choose(BOTH, Pace(rate=100_000, slowness=20)).kind == 3, "and on a device that decodes quickly"
    assert choose(BOTH, Pace(rate=5000, slowness=3000)).kind == 1


def test_on_a_metered_link_the_smallest_one_is_sent() -> None:
    found = choose(BOTH, Pace(rate=10_000_000, metered=True, of_rate="told"))
    assert (found.kind, found.why) == (3, "metered") and "for its link is metered" in sentence_of(found)


def test_what_saves_little_time_is_not_worth_its_bytes() -> None:
    near = (Candidate("aa" * 16, 3, 100_000, 20_000), Candidate("bb" * 16, 2, 200_000, 14_000))
    assert choose(near, Pace(rate=100_000)).kind == 2
    assert choose(near, Pace(rate=20_000)).kind == 3
    assert choose(near, Pace(rate=40_000)).kind == 2, "22.5 and 19 s"
    assert choose(near, Pace(rate=25_000)).kind == 3, "24 and 22 s"


def test_of_packages_without_their_work_the_smallest_is_sent() -> None:
    old = (Candidate("aa" * 16, 3, 465_000), FULL)
    found = choose(old, Pace(rate=100_000))
    assert (found.kind, found.why, found.seconds) == (3, "only", 0) and sentence_of(found) == ""
    assert choose((Candidate("cc" * 16, 0, 0),), Pace()).package == "cc" * 16


def test_only_what_may_be_chosen_is_kept() -> None:
    worse = Candidate("cc" * 16, 2, 500_000, 210_000)
    hardly = Candidate("dd" * 16, 2, 500_000, 200_000)
    assert worthwhile((FULL, worse, hardly, MAPPED)) == [MAPPED, FULL]
    for seed in range(50):
        rng = random.Random(seed)
        every = [Candidate(f"{n:032x}", 2, rng.randrange(1, 9) * 10_000, rng.randrange(1, 9) * 1000) for n in range(6)]
        kept = worthwhile(every)
        assert kept == sorted(kept, key=lambda c: c.total_bytes) == sorted(kept, key=lambda c: -c.work_ms), f"seed {seed}"
        for pace in (Pace(rate=1000), Pace(rate=20_000), Pace(rate=1_000_000), Pace(metered=True)):
            most = 1.1 * pace.seconds(min(every, key=pace.seconds))
            chosen = next(c for c in kept if c.package == choose(kept, pace).package)
            assert pace.metered or pace.seconds(chosen) <= 1.1 * most, f"seed {seed}"


def test_what_is_known_of_a_device_goes_before_what_is_known_of_its_kind() -> None:
    assert pace_of(Link(), None, None, 7000) == Pace(7000, 1000, False, "assumed", "assumed")
    usual = Measured(50_000, 1500)
    assert pace_of(Link(), None, usual) == Pace(50_000, 1500, False, "others", "others")
    assert pace_of(Link(), Measured(9000, 0), usual) == Pace(9000, 1500, False, "shown", "others")
    assert pace_of(Link(300, True), Measured(9000, 700), usual) == Pace(300, 700, True, "told", "shown")


def test_a_transfer_shows_what_it_is_long_enough_for() -> None:
    assert sample(946_000, 18_400, 52_000, 26_000, 946_000) == Measured(51_000, 2000)
    assert sample(2000, 400, 3000, 2000, 2000) == Measured(0, 1500), "of a small one the link says little"
    assert sample(473_000, 9200, 13_000, 26_000, 946_000) == Measured(51_000, 1000), "what was fetched after a restart"
    assert sample(946_000, 18_400, 52_000, 0, 946_000) == Measured(51_000, 0), "its work was not counted"
    assert sample(0, 0, 0, 26_000, 0) == Measured()


def test_numbers_of_hostile_devices_stay_within_bounds() -> None:
    most = (1 << 32) - 1
    rng = random.Random(3)
    known = None
    for _ in range(2000):
        said = [rng.choice((0, 1, 200, 8192, 1_000_000, most)) for _ in range(3)]
        shown = sample(said[0], said[1], said[2], rng.choice((0, 1, 205_000, 10**9)), rng.choice((0, 1, 465_000, most)))
        known = learned(known, shown)
        assert known.rate == 0 or RATE_MIN <= known.rate <= RATE_MAX
        assert known.slowness == 0 or SLOWNESS_MIN <= known.slowness <= SLOWNESS_MAX
        assert choose(BOTH, pace_of(Link(), known, None)).seconds >= 1


def test_the_same_again_is_no_news() -> None:
    shown = sample(946_000, 18_432, 52_345, 26_000, 946_000)
    once = learned(None, shown)
    assert learned(once, shown) == once
    assert learned(once, Measured()) == once
    assert learned(Measured(10_000, 0), Measured(20_000, 900)) == Measured(15_000, 900)


@pytest.mark.parametrize(
    ("link", "where"),
    [
        (7, "spec.link: expected an object"),
        ({"rate": 7}, "spec.link: expected an object"),
        ({"bytesPerSecond": 0}, "spec.link.bytesPerSecond: found 0"),
        ({"bytesPerSecond": True}, "spec.link.bytesPerSecond: found True"),
        ({"bytesPerSecond": "20kB"}, "spec.link.bytesPerSecond: found 20kB"),
        ({"bytesPerSecond": 10**12}, "expected an integer from 1 to 1000000000"),
        ({"metered": 1}, "spec.link.metered: found 1, expected true or false"),
    ],
)
def test_a_link_that_cannot_be_is_refused(link: Any, where: str) -> None:
    with pytest.raises(PeerError, match=where):
        link_untrusted({"link": link})
    assert link_of({}, {"link": link}) == Link(), "and says nothing where it was stored by older rules"


def test_a_devices_own_link_goes_before_its_apps() -> None:
    app = {"link": {"metered": True}}
    assert link_of(app, {}) == Link(0, True)
    assert link_of(app, {"link": {"bytesPerSecond": 20_000}}) == Link(20_000, False)
    assert link_of({}, {}) == Link()
