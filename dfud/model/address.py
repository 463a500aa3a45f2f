"""Which address counts for limits, and which is this machine. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache

PREFIX_V6 = 64  # what one subscriber is given at least (RFC 6177); he may use every address in it


@lru_cache(maxsize=8192)
def limited(peer: str) -> str:
    """Return what stands for `peer` where attempts are counted: an IPv4 address, or the /64 of an IPv6 one.

    A stranger with IPv6 has 2^64 addresses of his own: counted one by one, a limit would never hold him. Text that is no
    address stands for itself.
    """
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, PREFIX_V6), strict=False))


def is_loopback(host: str) -> bool:
    """Say whether `host`, an address or a name from the configuration, is this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
HOPS_MAX = 32  # proxies in a row; what a header says beyond that is nobody's


def networks(texts: Iterable[str]) -> Networks:
    """Return the networks of a configuration: `10.0.0.0/8`, or an address for itself. Raises ValueError with the text."""
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text.strip(), strict=False))
        except ValueError:
            raise ValueError(text) from None
    return found


def is_in(peer: str, trusted: Networks) -> bool:
    """Say whether an address is in one of the networks; text that is no address is in none."""
    address = _address(peer)
    return address is not None and any(address in network for network in trusted)


def client_of(peer: str, forwarded: Iterable[str], trusted: Networks) -> str:
    """Return who asks: `peer`, or where that is a trusted proxy, whom its X-Forwarded-For names.

    forwarded: the values of that header. Each proxy has added the address that it was asked from at the right, so the last one
    that is no trusted proxy itself is the client; whatever stands left of it the client may have made up.
    """
    client = peer
    if not trusted or not is_in(peer, trusted):
        return client
    for text in reversed(",".join(forwarded).rsplit(",", HOPS_MAX)[-HOPS_MAX:]):
        address = _address(_without_port(text.strip()))
        if address is None:
            break
        client = str(address)
        if not is_in(client, trusted):
            break
    return client


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
