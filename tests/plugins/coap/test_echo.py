"""Echo values and the addresses that have shown that they receive."""

from __future__ import annotations

from dfud_coap.echo import ECHO_LIFETIME_S, VERIFIED_S, Echo, Verified


def test_an_echo_is_good_for_one_purpose_and_a_while() -> None:
    echo = Echo(b"k" * 16)
    value = echo.make(b"purpose", 100.0)
    assert echo.check_untrusted(value, b"purpose", 100.0 + ECHO_LIFETIME_S) == 100.0
    assert echo.check_untrusted(value, b"purpose", 100.1 + ECHO_LIFETIME_S) is None
    assert echo.check_untrusted(value, b"purpose", 99.0) is None
    assert echo.check_untrusted(value, b"another", 100.0) is None
    assert Echo(b"j" * 16).check_untrusted(value, b"purpose", 100.0) is None
    for bit in range(len(value) * 8):
        forged = bytes(b ^ (1 << bit % 8 if bit // 8 == at else 0) for at, b in enumerate(value))
        assert echo.check_untrusted(forged, b"purpose", 100.0) is None
    for broken in (None, b"", value[:-1], value + b"\0", bytes(16), b"\xff" * 16):
        assert echo.check_untrusted(broken, b"purpose", 100.0) is None


def test_verified_addresses_are_bounded_in_number_and_time() -> None:
    verified = Verified(2)
    for number in range(3):
        verified.add(number, 0)
    assert [verified.has(n, 1) for n in range(3)] == [False, True, True] and len(verified) == 2
    assert not verified.has(2, VERIFIED_S)
