"""What the plugin remembers, as documents of the records store. All of it is committed together with what it tells of."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from dfud.api import DeleteDocument, PutDocument, Store

LINKS = "hawkbit.link"  # app/device -> Link
DIRTY = "hawkbit.dirty"  # app/device -> b"": hawkBit has yet to be told; app/ for a whole app
DIRTY_FIRMWARE = "hawkbit.dirty-firmware"  # app/version -> b"": the same for a firmware
SETS = "hawkbit.set"  # app/version -> FirmwareSet
GONE = "hawkbit.gone"  # app/version -> b"": deleted; hawkBit keeps the name
T = TypeVar("T", bound=msgspec.Struct)


class FirmwareSet(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a firmware is in hawkBit. name, set_version: of the distribution set, which a person may have named."""

    set_id: int = 0
    name: str = ""
    set_version: str = ""
    module: int = 0
    sha256: str = ""
    problem: str = ""


class Link(msgspec.Struct, frozen=True, omit_defaults=True):
    """One device and its target.

    wish: the version that both sides agreed on last; whoever differs from it has changed. mode: what a hawkBit action put
    beside the version ("", "download", "window", "confirm"). action: the one that is open; version, sha256: what it is about,
    deployment: dfud's record of it, kind: "update" or "confirm", retried: hawkBit asks once more for what had failed.
    sent, step, said_s, told_s: intermediate feedbacks, the last progress step, until when history was told, when.
    installed: what hawkBit believes to run; attributes: digest of what was sent, and attributes_s when. problem: what
    hawkBit refused, for people.
    """

    registered: bool = False
    wish: str = ""
    mode: str = ""
    action: int = 0
    kind: str = ""
    version: str = ""
    sha256: str = ""
    deployment: str = ""
    state: str = ""
    bound_s: float = 0.0
    sent: int = 0
    step: int = 0
    said_s: float = 0.0
    told_s: float = 0.0
    full: bool = False
    installed: str = ""
    attributes: str = ""
    attributes_s: float = 0.0
    problem: str = ""


def device_key(app: str, device: str) -> str:
    return f"{app}/{device}"


def firmware_key(app: str, version: str) -> str:
    return f"{app}/{version}"


def split(key: str) -> tuple[str, str]:
    app, _, rest = key.partition("/")
    return app, rest


def put(collection: str, key: str, value: msgspec.Struct) -> PutDocument:
    return PutDocument(collection, key, msgspec.msgpack.encode(value))


async def get(store: Store, collection: str, key: str, kind: type[T]) -> T | None:
    found = await store.document(collection, key)
    return None if found is None else msgspec.msgpack.decode(found, type=kind)


async def forget(store: Store, collection: str, key: str) -> list[DeleteDocument]:
    """Return the change that deletes a document, if it is there."""
    return [DeleteDocument(collection, key)] if await store.document(collection, key) is not None else []


def dirty(key: str) -> PutDocument:
    """Return the change that says: hawkBit has yet to hear of this device."""
    return PutDocument(DIRTY, key, b"")
