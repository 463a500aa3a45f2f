"""What the user plane's routes work with; also what a plugin's UserRoutes.register() is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    async def explain(self, app: str, device: str) -> msgspec.Struct:
        """Return why it runs what it runs: code, sentences, todo, values."""


class RolloutDesk(Protocol):
    """Owns the rollouts; the controller's. `also` is committed with what is asked or not at all."""

    def all_of(self, app: str) -> list[Rollout]: ...

    def get(self, app: str, name: str) -> Rollout: ...

    async def counts(self, uid: str) -> dict[int, WaveCounts]: ...

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
    rollouts: RolloutDesk
    config: RegistryConfig
    now: Callable[[], float]
    ready: Callable[[], str]
    metrics: Callable[[], bytes]
    version: str
    oidc: Oidc | None = None
