"""What strangers are told, and what counts as one address."""

from __future__ import annotations

from dfud_coap.peer import Strangers, counted


def test_strangers_hear_so_much_in_a_minute_and_then_nothing() -> None:
    strangers = Strangers(2)
    assert [strangers.may_tell("a", 0) for _ in range(3)] == [True, True, False]
    assert strangers.is_silenced("a", 59) and not strangers.is_silenced("b", 59) and strangers.may_tell("b", 59)
    assert not strangers.is_silenced("a", 60) and strangers.may_tell("a", 60)


def test_limits_count_a_network_of_ipv6_as_one_address() -> None:
    assert counted("192.0.2.1") == "192.0.2.1" and counted("no:address") == "no:address"
    assert counted("2001:db8:1:2:3:4:5:6") == counted("2001:db8:1:2:ffff::") == "2001:db8:1:2::"
    assert counted("2001:db8:1:3::1") != counted("2001:db8:1:2::1")
