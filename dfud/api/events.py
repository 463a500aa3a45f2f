"""What happens inside dfud, for every part that wants to know. In-process, in order, nothing kept."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import trio

from dfud.api.guard import note
from dfud.model.deployment import Actual, Deployment, HistoryEntry
from dfud.model.firmware import Firmware
from dfud.model.rollout import Rollout


class ChangeEvent(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A change of a deployment or a rollout as it is told to an EventSink; it is stored already.

    kind: "deployment" (subject: the device) or "rollout" (subject: its name). id: the same each time that it is told. data: what
    docs/events.md says of that kind, all of it JSON.
    """

    kind: str
    app: str
    subject: str
    at_s: float
    data: dict[str, Any]
    id: str = ""


class AppChanged(msgspec.Struct, frozen=True):
    """An app was created, changed or deleted; whatever was derived from its spec is stale."""

    app: str
    deleted: bool = False


class PolicyChanged(msgspec.Struct, frozen=True):
    """What devices of an app should run may have changed, by a rollout; its spec has not."""

    app: str


class RolloutChanged(msgspec.Struct, frozen=True):
    """A rollout was made, went on, stopped or was deleted; it is stored already. told: what event sinks are told of that."""

    rollout: Rollout
    deleted: bool = False
    told: tuple[ChangeEvent, ...] = ()


class DeviceChanged(msgspec.Struct, frozen=True):
    """access: whether who may log in as it may have changed; False: only what it is to run, or how it is described."""

    app: str
    device: str
    deleted: bool = False
    access: bool = True


class FirmwareChanged(msgspec.Struct, frozen=True):
    firmware: Firmware
    deleted: bool = False


class DeploymentChanged(msgspec.Struct, frozen=True):
    """A deployment was made or changed its state; it is stored already. tells: makes what event sinks are told of that."""

    deployment: Deployment
    entry: HistoryEntry
    tells: Callable[[], ChangeEvent] | None = None

    @property
    def told(self) -> ChangeEvent | None:
        """What event sinks are told; made where somebody asks for it, for most often nobody does."""
        return self.tells() if self.tells is not None else None


class ProgressChanged(msgspec.Struct, frozen=True):
    """A deployment's progress moved within one state; not necessarily stored."""

    deployment: Deployment


class ActualChanged(msgspec.Struct, frozen=True):
    """A device said something new about itself."""

    actual: Actual


class DeviceSeen(msgspec.Struct, frozen=True):
    """A device made contact; published at a bounded rate per device."""

    app: str
    device: str
    at_s: float


class DeviceAddress(msgspec.Struct, frozen=True):
    """A device said how it is from this address: its own, or that of the gateway that speaks for it."""

    app: str
    device: str
    address: str


class DeviceDenied(msgspec.Struct, frozen=True):
    """Somebody was turned away. app, device: as they were named, perhaps empty, perhaps anything; reason: one of a few words."""

    reason: str
    app: str
    device: str
    peer: str


class Telemetry(msgspec.Struct, frozen=True):
    """A device published on a channel. sender is the authenticated device, device the one it spoke for."""

    app: str
    device: str
    sender: str
    channel: str
    body: bytes
    content_type: str
    data_schema: str
    at_s: float
    id: str


class RetryRequested(msgspec.Struct, frozen=True):
    """A user wants a firmware that a device left, or that failed there, to be sent to it again."""

    app: str
    device: str
    by: str


class CancelRequested(msgspec.Struct, frozen=True):
    app: str
    device: str
    by: str


class DeviceStateChanged(msgspec.Struct, frozen=True):
    """Another process has stored what a device said, or a step of its deployment."""

    app: str
    device: str


class DocumentChanged(msgspec.Struct, frozen=True):
    """Another process has put or deleted a document with `tell`."""

    collection: str
    key: str


class Told(msgspec.Struct, frozen=True):
    """Another process on the same store said something (Store.tell)."""

    topic: str
    body: bytes


class Missed(msgspec.Struct, frozen=True):
    """What other processes changed may not have been heard: whatever is remembered of the store is to be forgotten.

    app: of this app only; "": of everything.
    """

    app: str = ""


class Aged(msgspec.Struct, frozen=True):
    """What is remembered of the store may have become untrue without a word, so it is to be forgotten. Nobody need be woken."""


E = TypeVar("E")


class Bus:
    """Delivers events to callbacks and streams. A callback must not block; what it raises is contained."""

    def __init__(self) -> None:
        self._callbacks: dict[type[Any], list[Callable[[Any], None]]] = {}

    def publish(self, event: Any) -> None:
        """Call every callback of the event's type, in the order of subscription."""
        for callback in tuple(self._callbacks.get(type(event), ())):
            # Not contained(): a device that is told costs a dozen of these, and what cannot wait cannot be cancelled.
            try:
                callback(event)
            except Exception as error:
                note("bus.subscriber", error, event=type(event).__name__)

    def hears(self, kind: type[Any]) -> bool:
        """Say whether anybody hears events of a type: for those that would be made for every report of a device."""
        return bool(self._callbacks.get(kind))

    def subscribe(self, kind: type[E], callback: Callable[[E], None]) -> Callable[[], None]:
        """Have `callback` called for each event of exactly type `kind`; return what ends that."""
        callbacks = self._callbacks.setdefault(kind, [])
        callbacks.append(callback)
        return lambda: callbacks.remove(callback) if callback in callbacks else None

    @asynccontextmanager
    async def stream(
        self, *kinds: type[Any], capacity: int | float = math.inf
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Any]]:
        """Yield a channel of events of these types. With a finite `capacity`, events that do not fit are dropped."""
        send, receive = trio.open_memory_channel[Any](capacity)

        def put(event: Any) -> None:
            try:
                send.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                return

        ends = [self.subscribe(kind, put) for kind in kinds]
        try:
            async with receive:
                yield receive
        finally:
            for end in ends:
                end()
            send.close()
