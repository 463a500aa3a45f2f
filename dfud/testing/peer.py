"""A device's end of a transport, for the kit: written by whoever tests a transport."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import msgspec

from dfud.api import Code, Reply
from dfud.testing.fake_endpoint import AUTHORIZATION


class Publish(msgspec.Struct, frozen=True):
    """What a peer is asked to send. query: ct, as, application, device, data_schema."""

    channel: str
    body: bytes = b""
    query: Mapping[str, str] = msgspec.field(default_factory=dict)
    authorization: bytes = AUTHORIZATION


class TransportPeer(abc.ABC):
    """A device's end of the transport. Every call is one exchange on one new connection to `url`.

    datagrams: the transport's URL is one for UDP; what the kit throws at it goes in datagrams then.
    """

    datagrams = False

    def samples(self) -> Sequence[bytes]:
        """Return whole requests as bytes, of every kind there is: the kit sends them cut off, garbled and half."""
        return ()

    @abc.abstractmethod
    async def publish(self, url: str, publish: Publish) -> Reply:
        """Send and return the answer: code, command and body are looked at. Cancellation hangs up."""

    @abc.abstractmethod
    async def fetch(
        self, url: str, package: str, first: int, last: int, *, authorization: bytes = AUTHORIZATION
    ) -> tuple[Code, bytes]:
        """Fetch the chunks first..last and return COMMAND for success, and the bytes."""
