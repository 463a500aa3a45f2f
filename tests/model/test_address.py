"""What counts as one address where attempts are limited."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.model.address import client_of, is_loopback, limited, networks


@pytest.mark.parametrize(
    ("peer", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
        ("no address", "no address"),
    ],
)
def test_an_ipv6_subscriber_counts_as_one(peer: str, counted: str) -> None:
    assert limited(peer) == counted


@given(st.text(max_size=50))
def test_no_peer_raises(peer: str) -> None:
    assert isinstance(limited(peer), str)


@pytest.mark.parametrize(
    ("host", "is_one"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("x", False)],
)
def test_loopback_is_an_address_or_its_name(host: str, is_one: bool) -> None:
    assert is_loopback(host) is is_one


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("198.51.100.1", ["203.0.113.9"], "198.51.100.1"),  # whoever is no proxy speaks for himself alone
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),  # what stands further left may be made up
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9, 10.2.3.4"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        ("10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", ["203.0.113.9, unknown"], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("fd00::1", ["203.0.113.9"], "203.0.113.9"),
        ("", ["203.0.113.9"], ""),
        ("10.0.0.1", [",".join(["10.0.0.9"] * 100_000)], "10.0.0.9"),
    ],
)
def test_only_a_trusted_proxy_is_believed_who_asks(peer: str, forwarded: list[str], client: str) -> None:
    assert client_of(peer, forwarded, networks(["10.0.0.0/8", "fd00::1"])) == client


def test_without_proxies_nobody_is_believed() -> None:
    assert client_of("127.0.0.1", ["203.0.113.9"], networks([])) == "127.0.0.1"


@pytest.mark.parametrize("text", ["", "example.com", "10.0.0.0/33", "10.0.0"])
def test_what_is_no_network_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        networks(["10.0.0.0/8", text])
