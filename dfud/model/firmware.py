"""Firmware: one published image of an app."""

from __future__ import annotations

from typing import Literal

import msgspec


class Firmware(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What dfud knows of a published image. Identity: (app, version).

    sha256 is lower-case hexadecimal and names the blob. manifest is the envelope of docs/protocol.md; its fields agree
    with the ones here. signed is true if a key of the app signed it.
    """

    app: str
    version: str
    hardware: str
    sequence: int
    size_bytes: int
    sha256: str
    manifest: bytes
    kind: Literal["esp-image", "raw"] = "esp-image"
    signed: bool = False
    created: str = ""
    uploaded_by: str = ""
    notes: str = ""
