"""Values that fit a store, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from dfud.api import App, Deployment, Device, Firmware, Metadata, State, Store


def an_app(name: str = "app1", version: str = "1", **labels: str) -> App:
    return App(Metadata(name, uid=f"uid-{name}", resource_version=version, labels=labels))


def a_device(name: str = "dev1", app: str = "app1", version: str = "1", spec: Any = None, **labels: str) -> Device:
    return Device(Metadata(name, app, uid=f"uid-{name}", resource_version=version, labels=labels), spec or {})


def a_firmware(sha256: str, version: str = "1.0", app: str = "app1", sequence: int = 1) -> Firmware:
    return Firmware(
        app=app,
        version=version,
        hardware="esp32c3",
        sequence=sequence,
        size_bytes=4,
        sha256=sha256,
        manifest=b"envelope",
        kind="raw",
    )


def with_image(firmware: Firmware, sha256: str) -> Firmware:
    """Return a record with one more image, for boards of its hardware that say `rev` and the digest's first letters."""
    image = msgspec.structs.replace(firmware.first, sha256=sha256, attributes={"rev": sha256[:6]})
    return firmware.with_images([*firmware.images, image])


def a_deployment(number: int = 1, state: State = State.PENDING, device: str = "dev1") -> Deployment:
    return Deployment(
        id=f"{number:032x}",
        app="app1",
        device=device,
        version="1.0",
        sha256="00" * 32,
        state=state,
        created_s=1000.0 + number,
        updated_s=1000.0 + number,
    )


async def image_of(store: Store, sha256: str) -> bytes | None:
    """Return the bytes of a blob, or None."""
    async with store.blob(sha256) as path:
        return None if path is None else path.read_bytes()


@asynccontextmanager
async def a_blob(store: Store, data: bytes) -> AsyncIterator[str]:
    """Store a blob and yield its SHA-256; it is held until the block ends."""
    writer = await store.new_blob()
    try:
        await writer.write(data)
        yield await writer.commit()
    finally:
        await writer.aclose()
