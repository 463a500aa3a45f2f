"""What the plugin remembers, as documents of the records store. All of it is committed together with what it tells of."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TypeVar

import msgspec

from dfud.api import DeleteDocument, PutDocument, Store, read_record

LINKS = "hawkbit.link"  # app/device -> Link
DIRTY = "hawkbit.dirty"  # app/device -> b"": hawkBit has yet to be told; app/ for a whole app
DIRTY_FIRMWARE = "hawkbit.dirty-firmware"  # app/version -> b"": the same for a firmware
SETS = "hawkbit.set"  # app/version -> FirmwareSet
INSTANCE = "hawkbit.instance"  # "mark" -> the mark of this dfud, as text
GONE = "hawkbit.gone"  # app/version -> b"": deleted; hawkBit keeps the name
T = TypeVar("T", bound=msgspec.Struct)


class FirmwareSet(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a firmware is in hawkBit. name, set_version: of the distribution set, which a person may have named.

    said: digest of what its module's metadata says; "" where a person made the module.
    """

    set_id: int = 0
    name: str = ""
    set_version: str = ""
    module: int = 0
    sha256: str = ""
    problem: str = ""
    said: str = ""


class Link(msgspec.Struct, frozen=True, omit_defaults=True):
    """One device and its target.

    wish: the version that both sides agreed on last; whoever differs from it has changed. mode: what a hawkBit action put
    beside the version ("", "download", "window", "confirm"). action: the one that is open; version, sha256: what it is about,
    deployment: dfud's record of it, kind: "update" or "confirm".
    since: the number of the newest deployment when hawkBit came to know the device (-1: it does not); after: the same when the action
    was taken over, and bound: the number of the newest entry of history then. What comes first goes by these, never by a clock.
    sent, step, told_s: intermediate feedbacks, the last progress step, when. said: until which entry history was told.
    installed: what hawkBit believes to run; attributes: digest of what was sent, and attributes_s when. address: where the
    device was when hawkBit was last told. owed: a deployment that dfud has made an assignment for, whose history belongs to
    the action that comes of it. problem: what hawkBit refused, for people; foreign: the mark of the dfud that the target belongs to.
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
    since: int = -1
    after: int = 0
    bound: int = 0
    sent: int = 0
    step: int = 0
    said: int = 0
    told_s: float = 0.0
    full: bool = False
    installed: str = ""
    attributes: str = ""
    attributes_s: float = 0.0
    problem: str = ""
    address: str = ""
    owed: str = ""
    foreign: str = ""


def device_key(app: str, device: str) -> str:
    return f"{app}/{device}"


def firmware_key(app: str, version: str) -> str:
    return f"{app}/{version}"


def split(key: str) -> tuple[str, str]:
    app, _, rest = key.partition("/")
    return app, rest


def put(collection: str, key: str, value: msgspec.Struct) -> PutDocument:
    return PutDocument(collection, key, msgspec.msgpack.encode(value))


def decoded(collection: str, key: str, value: bytes, kind: type[T]) -> T | None:
    """Return a document as a value. One that cannot be read costs that one: it is as if it were not there, logged, counted."""
    return read_record("hawkbit.record", value, kind, decode=msgspec.msgpack.decode, collection=collection, key=key)


async def get(store: Store, collection: str, key: str, kind: type[T]) -> T | None:
    found = await store.document(collection, key)
    return None if found is None else decoded(collection, key, found, kind)


async def every(store: Store, collection: str, prefix: str = "") -> AsyncGenerator[tuple[str, bytes], None]:
    """Yield the documents of a collection by key."""
    after = ""
    while found := await store.documents(collection, prefix=prefix, after=after):
        for pair in found:
            yield pair
        after = found[-1][0]


async def forget(store: Store, collection: str, key: str) -> list[DeleteDocument]:
    """Return the change that deletes a document, if it is there."""
    return [DeleteDocument(collection, key)] if await store.document(collection, key) is not None else []


def dirty(key: str) -> PutDocument:
    """Return the change that says: hawkBit has yet to hear of this device."""
    return PutDocument(DIRTY, key, b"")
