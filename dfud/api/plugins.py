"""The hooks. A hook is called once at start, synchronously, and returns objects; I/O is in their async methods."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pluggy
import trio

from dfud.api.config import Config, Section
from dfud.api.endpoint import Reply, Request, Transport
from dfud.api.events import Bus, ChangeEvent, Telemetry
from dfud.api.places import BlobPlace
from dfud.api.store import Store
from dfud.errors import BugError
from dfud.model.deployment import Actual
from dfud.model.desired import Desired
from dfud.model.firmware import Firmware

PROJECT = "dfud"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class DialectSession(abc.ABC):
    """What a dialect may ask and tell about the one authenticated device whose message it reads."""

    app: str
    device: str

    @abc.abstractmethod
    async def report(
        self, actual: Actual, *, sha256: str = "", offset: int | None = None, version: str = "", swap: bool = False
    ) -> bool:
        """Tell what the device said: what runs, and how far it is: `offset` bytes of `version`; `swap`: told to boot.

        Return whether the firmware that `target()` gives may be sent to it now: not one that was left here, is on hold or
        waits for another attempt.
        """

    @abc.abstractmethod
    async def target(self, *, pinned_version: str = "") -> tuple[Desired, Firmware | None]:
        """What this device should run now. With `pinned_version`, that one as long as it is published."""

    @abc.abstractmethod
    async def image(self, firmware: Firmware, offset: int, size: int) -> bytes:
        """Read a piece of a firmware's image."""

    @abc.abstractmethod
    def poll_s(self) -> int:
        """How long this device should wait before it asks again."""


class Dialect(abc.ABC):
    """Another update protocol on the channel dfu."""

    name: str

    @abc.abstractmethod
    def recognises(self, content_type: str, body: bytes) -> bool:
        """Cheap and certain: dfu/1 is asked first, then the dialects in the order of the config."""

    @abc.abstractmethod
    async def answer(self, request: Request, session: DialectSession) -> Reply:
        """Answer one message. Raises PeerError for a malformed one."""


class EventSink(abc.ABC):
    """Where telemetry goes, and changes of deployments and rollouts. telemetry, changes: which of them it wants."""

    name: str
    telemetry: bool = True
    changes: bool = False

    @abc.abstractmethod
    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None: ...

    @abc.abstractmethod
    async def take(self, telemetry: Telemetry) -> None:
        """Take over one event; when this returns the sink answers for it. Raises StoreError(retryable) if it cannot."""

    async def tell(self, event: ChangeEvent) -> None:
        """Take over one change; when this returns the sink answers for it. Called again until it has, in order for each subject.

        Raises StoreError: retryable if the sink is away for a while, else if it will not take this one.
        """
        raise BugError(f"sink {self.name} wants changes and does not take them")


V = TypeVar("V", bound=Callable[..., Any])


def open_to_all(view: V) -> V:
    """Mark a view of the user plane that needs no token; put it below the route's decorator."""
    view.open_to_all = True  # type: ignore[attr-defined]  # functions take attributes
    return view


class UserRoutes(abc.ABC):
    """Routes that a plugin adds to the user plane. Their views need a token unless they are `open_to_all`."""

    name: str

    @abc.abstractmethod
    def register(self, app: Any, services: Any) -> None:
        """Add routes to the quart_trio.QuartTrio `app`. `services` is dfud.registry.services.Services."""


class Hooks:
    """Every hook of dfud, with its exact signature."""

    @hookspec
    def dfud_config_sections(self) -> Iterable[Section]:
        """Declare the sections of dfud.toml that belong to this plugin."""
        return ()

    @hookspec
    def dfud_stores(self, config: Config) -> Iterable[Store]:
        """Return the stores this plugin offers; `[daemon] store` chooses one by name."""
        return ()

    @hookspec
    def dfud_blob_places(self, config: Config) -> Iterable[BlobPlace]:
        """Return places for the bytes of images, for a store that names one."""
        return ()

    @hookspec
    def dfud_transports(self, config: Config) -> Iterable[Transport]:
        """Return the transports this plugin offers; all are run."""
        return ()

    @hookspec
    def dfud_dialects(self, config: Config) -> Iterable[Dialect]:
        """Return the update protocols this plugin understands beside dfu/1."""
        return ()

    @hookspec
    def dfud_event_sinks(self, config: Config) -> Iterable[EventSink]:
        """Return where telemetry goes."""
        return ()

    @hookspec
    def dfud_user_routes(self, config: Config) -> Iterable[UserRoutes]:
        """Return routes for the user plane."""
        return ()
