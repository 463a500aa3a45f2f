"""What should run on a device: `spec.firmware` at the app and, overriding it whole, at the device.

`spec.firmware` is `{"version": "1.2.3", "app": "3.2"}`, the system and the app firmware, either of which may stand alone, with
optional `"hold": true` (decided, but not to be sent now; `"reason"` says why) and `"downloadOnly": true` (write it, do not
switch). Other keys are stores' names of Drogue's (docs/drogue.md): a plugin may resolve them; what nobody resolves is a
problem shown at the device, never ignored. Beside a version they are refused; any other key there is kept and means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dfud.model.kinds import APP, SYSTEM, Kind

KNOWN_KEYS = frozenset({"version", "app", "hold", "reason", "downloadOnly"})
# Each of them says by itself what should run; beside a version nobody could tell which one counts.
DROGUE_KEYS = frozenset({"container", "oci", "hawkbit", "file"})


class Held(msgspec.Struct, frozen=True):
    """Why a device is not told yet. code: stable, for programs; until_s: when that may change, 0: nobody knows."""

    code: str
    until_s: float = 0.0


class Desired(msgspec.Struct, frozen=True):
    """version "" means: nothing is desired. problem is a sentence for the device's condition, or "".

    origin: who says so: "device", "app", "rule n" or "rollout name". rollout, wave: uid and number of the rollout's wave, "" and 0
    if it is none; held: what keeps a device that was not told from being told; back: it is to go back from that rollout.
    retries: how often the rollout's failures were forgiven so far; attempts, backoff_s: its own, 0: those of the configuration.
    forced: the device's application is not asked.

    code: stable, why `problem` keeps the target from being sent: "recalled", "no-path", "range" or "no-banks"; "" for others. steps:
    how many versions have to be installed, one after the other, until it runs `version`; the next of them is the target.

    kind: of the firmware that `version` is; other: what is desired of the other kind, None: it is left as it is. then: the other
    kind's version that its rollout brings after this one; counted: as in Deployment.
    """

    version: str = ""
    hold: bool = False
    reason: str = ""
    download_only: bool = False
    problem: str = ""
    origin: str = ""
    rollout: str = ""
    wave: int = 0
    held: Held | None = None
    back: bool = False
    retries: int = 0
    attempts: int = 0
    backoff_s: float = 0.0
    forced: bool = False
    code: str = ""
    steps: int = 1
    kind: Kind = SYSTEM
    other: Desired | None = None
    then: str = ""
    counted: str = ""

    def of(self, kind: Kind) -> Desired | None:
        """Return what is desired of a kind alone, or None."""
        found = self if self.kind == kind else self.other
        return found.alone if found is not None else None

    @property
    def alone(self) -> Desired:
        return msgspec.structs.replace(self, other=None) if self.other is not None else self

    def beside(self, other: Desired | None) -> Desired:
        """Return the same with what is desired of the other kind."""
        return msgspec.structs.replace(self, other=other.alone if other is not None else None)

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions that are desired, of either kind."""
        found = (self.version, self.other.version if self.other is not None else "")
        return tuple(version for version in found if version)


def joined(system: Desired, app: Desired) -> Desired:
    """Return what is desired of both kinds as one: the system's, with the app's behind it; the app's where nothing else is said."""
    if not app.version and not app.problem:
        return system
    return system.beside(app) if system.version or system.problem else app


def desired_of(app_spec: Mapping[str, Any], device_spec: Mapping[str, Any]) -> Desired:
    """Return what the specs ask for; never raises: an unreadable spec gives a Desired with a problem and no version."""
    origin = "device" if "firmware" in device_spec else "app"
    firmware = device_spec.get("firmware", app_spec.get("firmware"))
    if firmware is None:
        return Desired()
    if not isinstance(firmware, Mapping):
        return Desired(problem="spec.firmware is not an object", origin=origin)
    named = [key for key in ("version", "app") if firmware.get(key) is not None]
    unknown = sorted(str(key) for key in firmware if key not in KNOWN_KEYS)
    if not named and unknown:
        return Desired(problem=f"spec.firmware: {', '.join(unknown)[:120]} is not understood", origin=origin)
    if both := sorted(DROGUE_KEYS.intersection(firmware)):
        problem = f"spec.firmware: {named[0]} and {', '.join(both)} stand side by side; keep the {named[0]} alone"
        return Desired(problem=problem, origin=origin)
    for key in named or ["version"]:
        if not isinstance(firmware.get(key), str) or not firmware[key]:
            return Desired(problem=f"spec.firmware.{key} is missing or not text", origin=origin)
    for key, kind in (("hold", bool), ("downloadOnly", bool), ("reason", str)):
        if key in firmware and not isinstance(firmware[key], kind):
            return Desired(problem=f"spec.firmware.{key} is not a {kind.__name__}", origin=origin)
    kinds: dict[str, Kind] = {"version": SYSTEM, "app": APP}
    found = [
        Desired(
            version=firmware[key],
            hold=firmware.get("hold", False),
            reason=firmware.get("reason", ""),
            download_only=firmware.get("downloadOnly", False),
            origin=origin,
            kind=kinds[key],
        )
        for key in named
    ]
    return found[0] if len(found) == 1 else found[0].beside(found[1])
