"""What is kept in memory of the links."""

from __future__ import annotations

from dfud_hawkbit.known import SPARE, Known
from dfud_hawkbit.records import Link

from dfud.api import DeviceAddress


def test_an_address_is_kept_of_a_device_that_speaks_before_its_target_is_there() -> None:
    known = Known()
    known.heard(DeviceAddress("a", "d", "203.0.113.7"))
    known.note("a/d", Link(registered=True))
    assert known.addresses == {"a/d": "203.0.113.7"}
    known.note("a/d", None)
    assert known.addresses == {} and known.targets == {}


def test_addresses_of_devices_without_a_target_are_bounded() -> None:
    known = Known()
    for number in range(SPARE + 10):
        known.heard(DeviceAddress("a", f"d{number}", "203.0.113.7"))
    assert len(known.addresses) == SPARE
    known.heard(DeviceAddress("a", "d0", "203.0.113.8"))
    assert known.addresses["a/d0"] == "203.0.113.8", "those that are known go on being heard"


def test_what_a_link_no_longer_says_is_forgotten() -> None:
    known = Known()
    known.note("a/d", Link(True, action=5, mode="window", problem="no", foreign="x"))
    assert (known.bound, known.problems) == ({"a/d": 5}, {"a/d": "no"})
    assert known.windows == known.foreign == {"a/d"}
    known.note("a/d", Link(True))
    assert not (known.bound or known.problems or known.windows or known.foreign)
    assert known.targets == {"a:d": "a/d"}
