"""Whether an update may be installed here. Not kept in RAM: it is needed once an update."""

import asyncio
import gc
import hashlib

from dfu import records
from dfu.errors import BASE, DOWNGRADE, HARDWARE, INTERNAL, SIGNATURE, TOO_LARGE, UpdateError
from dfu.update import DELTA, FULL, MAPPED

CONTEXT = b"dfud manifest 1\0"
ALLOW_DOWNGRADE = 1


async def judge(update, slots, app, hardware):
    """Raise UpdateError unless this device may install what `update` brings. Nothing is written before.

    Without a key in dfu_keys the device is open, and the signature is not looked at.
    """
    m = update.manifest
    own = slots.manifest
    if m.sha256 == slots.digest and (own is None or m.sequence <= own.sequence):
        # Whoever repeats it makes the device write its fallback over, and reset, for nothing. A newer manifest has another floor or
        # other keys, and is confirmed with a copy of the image.
        raise UpdateError(INTERNAL, "this image is running already")
    keys, state = records.keys(slots.trusted), slots.state
    if keys is None:
        raise UpdateError(SIGNATURE, "the key log cannot be read")
    if keys:
        known = [key for key in keys if hashlib.sha256(key).digest()[:8] == m.key]
        if not known or len(m.signature) != 64 or not await _verify(known[0], CONTEXT + m.signed, m.signature):
            raise UpdateError(SIGNATURE, "no trusted key signed the manifest")
    if m.app != app:
        raise UpdateError(SIGNATURE, "the manifest is for app " + m.app)
    if m.hardware != hardware:
        raise UpdateError(HARDWARE, "the manifest is for " + m.hardware)
    if m.floor > m.sequence:
        # Once confirmed, the bootloader would refuse the very image that raised the floor.
        raise UpdateError(DOWNGRADE, "floor %d is above the manifest's own sequence %d" % (m.floor, m.sequence))
    if m.sequence < state.floor:
        # The bootloader would not boot it, and the fallback would be lost to it.
        raise UpdateError(DOWNGRADE, "sequence %d, the floor is %d" % (m.sequence, state.floor))
    if m.sequence < state.accept and not m.flags & ALLOW_DOWNGRADE:
        raise UpdateError(DOWNGRADE, "sequence %d, at least %d is accepted" % (m.sequence, state.accept))
    other = slots.slots if update.app else slots.apps
    runs = other.manifest.sequence if other is not None and other.manifest is not None else 0
    low, high = m.range
    if not low <= runs <= high:
        # 14 is `with`, of the result codes; a name of its own would stay in RAM.
        raise UpdateError(14, "it runs beside sequences %d to %d of the other kind, here runs %d" % (low, high, runs))
    if m.size > slots.capacity:
        raise UpdateError(TOO_LARGE, "%d bytes, there is room for %d" % (m.size, slots.capacity))
    if m.size != update.size:
        raise UpdateError(SIGNATURE, "the manifest has another size than the package")
    if not FULL <= update.kind <= (DELTA if update.app else MAPPED):
        raise UpdateError(BASE, "package kind %d" % update.kind)
    if update.kind != FULL and (update.base != slots.digest or not slots.running_size):
        raise UpdateError(BASE, "the package starts from another image")
    m.signed = m.key = m.signature = m.range = None


async def _verify(key, message, signature):
    gc.collect()
    from dfu.ed25519 import verifying

    # Its numbers are a megabyte of garbage: with collections as rare as the heap allows it takes half the time.
    kept = gc.threshold()
    gc.threshold(-1)
    try:
        for good in verifying(key, message, signature):
            await asyncio.sleep(0)
        return good
    finally:
        gc.threshold(kept)
