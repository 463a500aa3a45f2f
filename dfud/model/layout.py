"""How large an image may be: dfud's own layout of the flash, or what an app says of another one. Pure.

spec.layout of an app: {"imageMaxBytes": {hardware: bytes}}, where hardware is a name as firmware has it (`esp32c3-board1`) or the
chip's (`esp32c3`), which stands for all of its boards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dfud.errors import PeerError
from dfud.model.espimage import hardware_name
from dfud.model.names import check_name
from dfud.model.text import visible

# bootloader/FORMAT.md, "Map, 4 MB" and "Slot": the slot's last sector is the trailer's.
SLOT_BYTES = {"esp32c3": 0x1B0000}
TRAILER_BYTES = 4096
HARDWARE_MAX = 64
BYTES_MAX = (1 << 32) - 1
PLACE = "spec.layout.imageMaxBytes"


def limits_untrusted(spec: Mapping[str, Any]) -> dict[str, int]:
    """Return what an app says of its hardware's slots, by the hardware's canonical name. Raises PeerError that names the place."""
    layout = spec.get("layout")
    if not isinstance(layout, Mapping) or "imageMaxBytes" not in layout:
        return {}
    said = layout["imageMaxBytes"]
    if not isinstance(said, Mapping):
        raise PeerError(f'{PLACE}: expected an object of hardware and bytes, such as {{"esp32c3": 1961984}}')
    if len(said) > HARDWARE_MAX:
        raise PeerError(f"{PLACE}: {len(said)} kinds of hardware, expected at most {HARDWARE_MAX}")
    found: dict[str, int] = {}
    for name, limit in said.items():
        place = f"{PLACE}[{visible(str(name)[:80])!r}]"
        try:
            check_name("hardware", name)
        except PeerError as error:
            raise PeerError(f"{PLACE}: {error}") from None
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= BYTES_MAX:
            raise PeerError(f"{place}: expected an integer from 1 to {BYTES_MAX}")
        canonical = hardware_name(name)
        if canonical in found:
            raise PeerError(f"{place}: {canonical} is there twice, expected once")
        found[canonical] = limit
    return found


def too_large(spec: Mapping[str, Any], hardware: str, size: int) -> str:
    """Say why an image of `size` bytes has no place on this hardware, or "". Raises PeerError for a spec that cannot be read."""
    limits = limits_untrusted(spec)
    canonical = hardware_name(hardware)
    chip = canonical.split("-")[0]
    limit = limits.get(canonical, limits.get(chip))
    if limit is not None:
        if size <= limit:
            return ""
        return f"the image has {size} bytes, expected at most {limit} for {hardware} ({PLACE} of the app)"
    slot = SLOT_BYTES.get(chip)
    if slot is None or size <= slot - TRAILER_BYTES:
        return ""
    return (
        f"the image has {size} bytes, expected at most {slot - TRAILER_BYTES} for {hardware}: a slot of dfud's layout has {slot}, "
        f"its last {TRAILER_BYTES} are the trailer's. Build a smaller image, or, if the devices have another layout, say so in "
        f"{PLACE} of the app"
    )
