"""Who sent a datagram, and one request of theirs. Values only."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

from dfud_coap.message import ACK, CON
from dfud_coap.oscore import Context
from dfud_coap.translate import Fetching

WINDOW_S = 60.0
ADDRESSES_MAX = 100_000


def counted(address: str) -> str:
    """Return what limits count for an address: one of IPv6 with all that its owner can take as well, its /64."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(address)) >> 64 << 64))
    except ValueError:
        return address


class Peer:
    """One address and port, or one DTLS session. `send` must not block or raise; `scope` is what requests with the same bytes
    must have in common to mean the same."""

    __slots__ = ("address", "certificate", "counted", "encrypted", "fetching", "key", "next_id", "scope", "send")

    def __init__(
        self,
        key: Hashable,
        address: str,
        send: Callable[[bytes], None],
        first_id: int,
        *,
        encrypted: bool = False,
        certificate: bytes = b"",
    ) -> None:
        self.key = key
        self.address = address
        self.counted = counted(address)
        self.send = send
        self.next_id = first_id & 0xFFFF
        self.encrypted = encrypted
        self.certificate = certificate
        self.fetching: Fetching | None = None
        self.scope: Hashable = (address, certificate) if encrypted else address

    def new_id(self) -> int:
        self.next_id = (self.next_id + 1) & 0xFFFF
        return self.next_id


class Exchange:
    """A request and what is needed to answer it once. security: the OSCORE context and what aiocoap wants back."""

    __slots__ = ("acknowledged", "answered", "code", "data", "kind", "late", "message_id", "peer", "security", "token")

    def __init__(self, peer: Peer, kind: int, code: int, message_id: int, token: bytes, data: bytes) -> None:
        self.peer = peer
        self.kind = kind
        self.code = code
        self.message_id = message_id
        self.token = token
        self.data = data
        self.security: tuple[Context, Any] | None = None
        self.acknowledged = False
        self.answered = False
        self.late: Any = None

    @property
    def confirmable(self) -> bool:
        return self.kind == CON

    @property
    def answer_kind(self) -> int:
        """The type of an answer that goes out now: piggybacked, or as the request was."""
        return ACK if self.kind == CON and not self.acknowledged else self.kind

    @property
    def who(self) -> Hashable:
        """Whom the request is from: with OSCORE independent of the address."""
        return self.peer.key if self.security is None else self.security[0].id_context


class Strangers:
    """How many errors each address was told in the current minute."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: Counter[str] = Counter()
        self._window = -1

    def may_tell(self, address: str, now_s: float) -> bool:
        """Count one more error; return whether it may be sent."""
        window = int(now_s / WINDOW_S)
        if window != self._window:
            self._window = window
            self._counts.clear()
        count = self._counts[address] + 1
        if count > self._limit or (len(self._counts) > ADDRESSES_MAX and count == 1):
            return False
        self._counts[address] = count
        return True

    def is_silenced(self, address: str, now_s: float) -> bool:
        return int(now_s / WINDOW_S) == self._window and self._counts.get(address, 0) >= self._limit
