"""What a spec asks for, and how a hawkBit action is written into one. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from dfud.api import DeviceView
from dfud_hawkbit.text import acceptable, cut

ATTRIBUTES_MAX = 100  # hawkBit's quota, of 128 characters each
ATTRIBUTE_CHARS = 128
OWNER = "dfud.owner"
HOLD = "waits to be confirmed in hawkBit"


class Wish(msgspec.Struct, frozen=True):
    """version "" : none that can be read. there: spec.firmware is there at all."""

    version: str = ""
    there: bool = False


def wish_of(spec: Mapping[str, Any]) -> Wish:
    firmware = spec.get("firmware")
    version = firmware.get("version") if isinstance(firmware, Mapping) else None
    return Wish(version if isinstance(version, str) else "", firmware is not None)


def with_mode(spec: dict[str, Any], version: str | None, mode: str) -> dict[str, Any]:
    """Return the spec with what hawkBit wants. mode: "" now, "download" or "window" write only, "confirm" not yet.

    What dfud's users say of the app firmware stays: hawkBit knows nothing of it.
    """
    rest = {key: value for key, value in spec.items() if key != "firmware"}
    held = spec.get("firmware")
    app = {"app": held["app"]} if isinstance(held, Mapping) and "app" in held else {}
    if version is None:
        return {**rest, "firmware": app} if app else rest
    firmware: dict[str, Any] = {"version": version, **app}
    if mode == "confirm":
        firmware |= {"hold": True, "reason": HOLD}
    elif mode:
        firmware["downloadOnly"] = True
    return {**rest, "firmware": firmware}


def attributes_of(view: DeviceView, owner: str) -> dict[str, str]:
    """Return what hawkBit shows of a device: what dfud knows first, then its own attributes, then the user's labels.

    owner: the mark of the dfud that speaks for it.
    """
    found: dict[str, str] = {OWNER: owner}
    actual = view.actual
    if actual is not None:
        found |= {
            "dfud.version": actual.version,
            "dfud.sha256": actual.sha256,
            "dfud.hardware": actual.hardware,
            "dfud.transport": actual.transport,
        }
        found |= {
            str(key): str(value) for key, value in sorted(actual.attributes.items()) if not key.startswith("dfud.")
        }
    found |= {f"label.{key}": value for key, value in sorted(view.device.metadata.labels.items())}
    kept = [(k, cut(acceptable(v), ATTRIBUTE_CHARS)) for k, v in found.items() if v and _is_key(k)]
    return dict(kept[:ATTRIBUTES_MAX])


def _is_key(text: str) -> bool:
    return text == acceptable(text) == cut(text, ATTRIBUTE_CHARS)


def digest_of(attributes: Mapping[str, str]) -> str:
    return hashlib.sha256(msgspec.json.encode(sorted(attributes.items()))).hexdigest()[:16]
