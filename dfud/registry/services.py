"""What the user plane's routes work with; also what a plugin's UserRoutes.register() is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec

from dfud.api import Bus, Change, Metadata, Rollout, Store
from dfud.model.counts import WaveCounts
from dfud.registry.claims import Claims
from dfud.registry.config import RegistryConfig
from dfud.registry.firmware import FirmwareRegistry
from dfud.registry.oidc import Oidc
from dfud.registry.registry import Registry
from dfud.registry.users import Users


class CommandSender(Protocol):
    """Takes a user's command to a device; the endpoint."""

    async def send(
        self,
        app: str,
        device: str,
        uid: str,
        name: str,
        payload: bytes,
        *,
        expires_s: float | None = None,
        gateways: Sequence[str] = (),
        also: Sequence[Change] = (),
    ) -> bool:
        """Return whether the command was handed to a waiting device or is stored for it; `also` is committed with it."""


class Updates(Protocol):
    """Does what a user asks of a device's update; the controller. `also` is committed with it or not at all."""

    async def retry(self, app: str, device: str, by: str, also: Sequence[Change] = ()) -> None: ...

    async def cancel(self, app: str, device: str, by: str, also: Sequence[Change] = ()) -> None: ...


class Insight(Protocol):
    """Says why devices run what they run; the controller's."""

    async def drift(self, app: str) -> msgspec.Struct:
        """Return which devices are not where they should be, by the code that explains them."""

    async def attention(self, app: str) -> msgspec.Struct:
        """Return which deployments have stood still for too long, by why."""

    async def explain(self, app: str, device: str) -> msgspec.Struct:
        """Return why it runs what it runs: code, sentences, todo, values."""


class FleetNumbers(Protocol):
    """Counts the devices of an app; the controller's."""

    async def numbers(self, app: str, *, hours: int = 168, points: int = 60) -> dict[str, Any]:
        """Return devices by version, state and code, when they were seen, adoption over `hours`, the most common crashes."""

    async def crash(self, app: str, fingerprint: str) -> dict[str, Any]:
        """Return one kind of crash, with what the first device said."""


class OutboxDesk(Protocol):
    """What waits to be told to event sinks, and what they did not take; the controller's."""

    def status(self) -> list[dict[str, Any]]: ...

    async def letters(self, sink: str, *, after: str = "", limit: int = 1000) -> list[tuple[str, Any]]: ...

    async def retry(self, sink: str, keys: list[str] | None = None) -> int: ...

    async def drop(self, sink: str, keys: list[str] | None = None) -> int: ...


class Planning(Protocol):
    """Says what a rollout would do; the controller's."""

    async def size(self, app: str, spec: dict[str, Any]) -> int: ...

    async def plan(
        self,
        app_name: str,
        spec: dict[str, Any],
        *,
        name: str = "",
        silent_days: float = 30,
        prepare: bool = True,
        progress: Callable[[int], None] = ...,
    ) -> dict[str, Any]: ...

    def begin(self, work: Callable[[Callable[[int], None]], Awaitable[dict[str, Any]]]) -> Any:
        """Start a forecast beside the request: `read`, `done`, `result`, `error`, `scope`."""


class RolloutDesk(Protocol):
    """Owns the rollouts; the controller's. `also` is committed with what is asked or not at all."""

    def all_of(self, app: str) -> list[Rollout]: ...

    def get(self, app: str, name: str) -> Rollout: ...

    async def counts(self, uid: str) -> dict[int, WaveCounts]: ...

    async def failed(self, uid: str) -> list[dict[str, Any]]: ...

    async def create(
        self,
        app_name: str,
        metadata: Metadata,
        spec: dict[str, Any],
        by: str,
        *,
        draft: bool,
        also: Sequence[Change] = (),
    ) -> Rollout: ...

    async def delete(self, app: str, name: str, also: Sequence[Change] = ()) -> None: ...

    async def act(
        self,
        app_name: str,
        name: str,
        action: str,
        by: str,
        reason: str = "",
        also: Sequence[Change] = (),
        *,
        call_back: bool = False,
    ) -> Rollout: ...


class Services(msgspec.Struct, frozen=True):
    """now: seconds since the epoch. ready: empty, or why dfud does not serve. metrics: Prometheus text."""

    registry: Registry
    firmware: FirmwareRegistry
    users: Users
    claims: Claims
    store: Store
    bus: Bus
    commands: CommandSender
    updates: Updates
    insight: Insight
    fleet: FleetNumbers
    outbox: OutboxDesk
    planner: Planning
    rollouts: RolloutDesk
    config: RegistryConfig
    now: Callable[[], float]
    ready: Callable[[], str]
    metrics: Callable[[], bytes]
    version: str
    oidc: Oidc | None = None
