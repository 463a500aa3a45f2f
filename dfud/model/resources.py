"""The registry's resources: app and device, in Drogue's v1alpha1 shape.

`spec` is the user's: free JSON, of which dfud reads the keys that docs/registry.md names. `status` is written by dfud
alone; in a stored resource it is empty, and the registry fills it in when somebody reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Metadata(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Drogue's metadata, and no field more: its clients refuse unknown ones.

    creation_timestamp and deletion_timestamp are RFC 3339 in UTC. generation grows when `spec` changes,
    resource_version changes with every effective write.
    """

    name: str
    application: str = ""
    uid: str = ""
    creation_timestamp: str = ""
    generation: int = 0
    resource_version: str = ""
    deletion_timestamp: str = ""
    finalizers: list[str] = []
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class App(msgspec.Struct, frozen=True, gc=False):
    metadata: Metadata
    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return self.metadata.name


class Device(msgspec.Struct, frozen=True, gc=False):
    metadata: Metadata
    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def app(self) -> str:
        return self.metadata.application


# Of a device's spec: what log-ins rest on.
ACCESS = ("authentication", "credentials", "alias", "gatewaySelector", "core")


def same_access(one: Device, other: Device) -> bool:
    """Say whether whoever may log in as the one device may do so as the other."""
    same = one.metadata.uid == other.metadata.uid and one.name == other.name
    return same and all(one.spec.get(key) == other.spec.get(key) for key in ACCESS)


def is_disabled(spec: Mapping[str, Any]) -> bool:
    """Say whether the spec of an app or a device refuses it: `core.disabled` is true."""
    core = spec.get("core")
    return isinstance(core, Mapping) and core.get("disabled") is True
