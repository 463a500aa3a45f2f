"""Who sent a datagram, and one request of theirs. Values only."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import count
from typing import Any

from dfud.api import limited
from dfud_coap.message import ACK, CON
from dfud_coap.oscore import Context
from dfud_coap.translate import Fetching

_numbers = count()


class Peer:
    """One address and port, or one DTLS session. `send` must not block or raise; `scope` is what requests with the same bytes
    must have in common to mean the same; `number` is its own alone, for what is looked up with every datagram."""

    __slots__ = (
        "address",
        "certificate",
        "counted",
        "encrypted",
        "fetching",
        "key",
        "next_id",
        "number",
        "scope",
        "send",
    )

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
        self.number = next(_numbers) << 16
        self.address = address
        self.counted = limited(address)
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
    def place(self) -> int:
        """What the same message would have if it came again."""
        return self.peer.number | self.message_id

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
