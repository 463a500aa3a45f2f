"""A server in the hands of an attacker: it answers devices as it likes. It has all that dfud has, and no publisher's key."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from dfud_http.config import HttpConfig
from dfud_http.transport import HttpTransport

from devicefw.sim.board import Board
from devicefw.sim.firmware import build, program
from devicefw.sim.flash import partition
from dfud.api import Chunks, Code, Credentials, Endpoint, Reply, Request, Waiting
from dfud.package.build import build_full
from dfud.wire.messages import Command, Kind, Result, Status, Type, decode_status_untrusted, encode_command

APP = "lamps"
PAYLOAD = 4112


def firmware(version: str, kind: str = "good") -> bytes:
    return build(program(kind, version), version)


@dataclass
class Offer:
    """What the server sends: an envelope, and the package of an image, which need not belong together."""

    name: str
    envelope: bytes
    image: bytes
    kind: int = Kind.FULL
    base: bytes | None = None
    size: int | None = None
    chunks: list[bytes] | None = None
    sent: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.sent = self.chunks if self.chunks is not None else list(build_full(self.image, PAYLOAD).chunks)

    def command(self) -> bytes:
        size = self.size if self.size is not None else len(self.image)
        total = sum(map(len, self.sent))
        fields: dict[str, Any] = {"version": "9.9", "manifest": self.envelope, "package": self.id, "kind": self.kind}
        return encode_command(
            Command(Type.UPDATE, 0, **fields, size=size, chunks=len(self.sent), total_bytes=total, base=self.base or b"")
        )

    @property
    def id(self) -> bytes:
        return hashlib.sha256(self.name.encode()).digest()[:16]


class HostileEndpoint(Endpoint):
    """Makes the offers one behind the other: the next one when the device has told how the last one ended.

    `results` and `fetched` are by the offer's name; `authorizations` is all that devices showed.
    """

    def __init__(self, offers: list[Offer]) -> None:
        self.offers = offers
        self.results: dict[str, Result] = {}
        self.fetched: dict[str, int] = {}
        self.statuses: list[Status] = []
        self.authorizations: set[bytes] = set()
        self._at = 0

    def quick(self, request: Request) -> Reply | Waiting | None:
        return None

    async def post(self, request: Request) -> Reply | Waiting:
        self.authorizations.add(request.credentials.authorization)
        status = decode_status_untrusted(request.body)
        self.statuses.append(status)
        if status.result is not None and self._at < len(self.offers):
            self.results.setdefault(self.offers[self._at].name, status.result)
            self._at += 1
        if self._at == len(self.offers) or status.trial:
            return Reply(Code.COMMAND, "dfu", encode_command(Command(Type.WAIT, 1)))
        return Reply(Code.COMMAND, "dfu", self.offers[self._at].command())

    def quick_chunks(self, peer: str, credentials: Credentials, package: str, first: int, last: int) -> Chunks | Reply | None:
        offer = next(o for o in self.offers if o.id.hex() == package)
        self.fetched[offer.name] = self.fetched.get(offer.name, 0) + 1
        return Chunks(package, first, [offer.sent[first]])

    async def chunks(self, peer: str, credentials: Credentials, package: str, first: int, last: int) -> Chunks | Reply:
        raise AssertionError("quick_chunks answers")

    async def key_for(self, transport: str, identity: str) -> bytes | None:
        return None

    def key_for_cached(self, transport: str, identity: str) -> bytes | None:
        return None

    def done(self) -> bool:
        return self._at == len(self.offers)


@asynccontextmanager
async def hostile_server(endpoint: HostileEndpoint) -> AsyncIterator[str]:
    """Yield the URL of a listener that gives devices to `endpoint`."""
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(HttpTransport(HttpConfig(port=0)).run, endpoint)
        yield url
        nursery.cancel_scope.cancel()


def board_at(directory: Path, url: str, image: bytes, **config: Any) -> Board:
    """Return a board with `image` in slot 0 whose agent talks to `url`."""
    settings = {"url": url, "app": APP, "device": "lamp1", "secret": "its own secret", "confirm_s": 30}
    settings |= {"backoff_ms": 100, "update_backoff_ms": 100}
    return Board(directory, {**settings, "wait_s": 1, **config}, image=image)


def slot_bytes(board: Board, slot: int, size: int) -> bytes:
    return board.flash.read(partition(f"ota_{slot}")[0], size)
