"""Which address counts for limits, and which is this machine. Pure."""

from __future__ import annotations

import ipaddress
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
