"""What counts as one address."""

from __future__ import annotations

from dfud_coap.peer import Peer


def test_limits_count_a_network_of_ipv6_and_an_ipv4_address_on_an_ipv6_socket_as_one_each() -> None:
    def counted(address: str) -> str:
        return Peer(address, address, print, 0).counted

    assert counted("2001:db8:1:2:3:4:5:6") == counted("2001:db8:1:2:ffff::") != counted("2001:db8:1:3::1")
    assert counted("::ffff:192.0.2.1") == counted("192.0.2.1") != counted("::ffff:192.0.2.2")
