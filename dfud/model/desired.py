"""What should run on a device: `spec.firmware` at the app and, overriding it whole, at the device.

`spec.firmware` is `{"version": "1.2.3"}` with optional `"hold": true` (decided, but not to be sent now; `"reason"` says
why) and `"downloadOnly": true` (write it, do not switch). Other keys are stores' names of Drogue's (docs/drogue.md): a
plugin may resolve them; what nobody resolves is a problem shown at the device, never ignored. Beside a version they are
refused; any other key there is kept and means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

KNOWN_KEYS = frozenset({"version", "hold", "reason", "downloadOnly"})
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

    code: stable, why `problem` keeps the target from being sent: "recalled" or "no-path"; "" for others. steps: how many versions
    have to be installed, one after the other, until it runs `version`; the next of them is the target.
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


def desired_of(app_spec: Mapping[str, Any], device_spec: Mapping[str, Any]) -> Desired:
    """Return what the specs ask for; never raises: an unreadable spec gives a Desired with a problem and no version."""
    origin = "device" if "firmware" in device_spec else "app"
    firmware = device_spec.get("firmware", app_spec.get("firmware"))
    if firmware is None:
        return Desired()
    if not isinstance(firmware, Mapping):
        return Desired(problem="spec.firmware is not an object", origin=origin)
    version = firmware.get("version")
    unknown = sorted(str(key) for key in firmware if key not in KNOWN_KEYS)
    if version is None and unknown:
        return Desired(problem=f"spec.firmware: {', '.join(unknown)[:120]} is not understood", origin=origin)
    if both := sorted(DROGUE_KEYS.intersection(firmware)):
        problem = f"spec.firmware: version and {', '.join(both)} stand side by side; keep the version alone"
        return Desired(problem=problem, origin=origin)
    if not isinstance(version, str) or not version:
        return Desired(problem="spec.firmware.version is missing or not text", origin=origin)
    for key, kind in (("hold", bool), ("downloadOnly", bool), ("reason", str)):
        if key in firmware and not isinstance(firmware[key], kind):
            return Desired(problem=f"spec.firmware.{key} is not a {kind.__name__}", origin=origin)
    return Desired(
        version,
        firmware.get("hold", False),
        firmware.get("reason", ""),
        firmware.get("downloadOnly", False),
        "",
        origin,
    )
