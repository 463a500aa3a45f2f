"""When devices come back: not all of them at once, whatever they have in common. Pure."""

from __future__ import annotations

import zlib

from dfud.wire.messages import Command, Type

SPREAD_FROM_S = 60  # a shorter wait is for something that is being made


def spread_s(command: Command, app: str, device: str, share: float) -> int:
    """Return the command's time until the next poll made longer or shorter by up to `share` of it.

    By how much is the device's own and stays: so two of them that started together drift apart, and one that asks twice is told
    the same.
    """
    if not share or command.poll_s < SPREAD_FROM_S or command.type not in (Type.SYNC, Type.WAIT):
        return command.poll_s
    place = zlib.crc32(f"{app}\0{device}".encode("utf-8", "surrogatepass")) / 0xFFFFFFFF * 2 - 1
    return max(1, round(command.poll_s * (1 + share * place)))
