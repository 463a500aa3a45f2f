"""The same image again: what its new manifest says counts, is on record, and no signature is lost. Trust is what it is now."""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dfud.api import App, Change, ConflictError, Metadata, NotFoundError, RefusedError
from dfud.registry import audit
from dfud.registry.firmware import FirmwareRegistry, Upload, trust_shown
from dfud.registry.writing import Precondition
from dfud.testing.store import image_of
from dfud.wire.manifest import FLAG_DOWNGRADE, FLAG_RAW, Manifest, decode_envelope_untrusted, sign, unsigned
from dfud.wire.trust import Trust
from tests.registry.desk import Desk, desk

ONE, TWO = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
IMAGE = b"an image"


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def spec(*keys: Ed25519PrivateKey, mode: str = "required") -> dict[str, Any]:
    return {"signing": {"mode": mode, "keys": [base64.b64encode(public(key)).decode() for key in keys]}}


def manifest(image: bytes = IMAGE, **fields: Any) -> Manifest:
    about = {"app": "a", "version": "1.0", "hardware": "x", "sequence": 5, "flags": FLAG_RAW, **fields}
    return Manifest(size=len(image), sha256=hashlib.sha256(image).digest(), **about)


async def body(image: bytes = IMAGE) -> AsyncIterator[bytes]:
    yield image


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as found:
        await found.registry.create_app(App(Metadata("a"), spec(ONE, TWO)), "admin")
        yield found


async def publish(at: Desk, envelope: bytes, image: bytes = IMAGE, **said: Any) -> Any:
    return await at.firmware.publish("a", Upload(envelope=envelope, **said), body(image), "eve")


async def deeds(at: Desk) -> list[tuple[str, str]]:
    return [(e.what, e.detail) for _, e in await audit.read(at.store) if e.target.startswith("a/")]


@pytest.mark.parametrize(
    ("fields", "key", "told"),
    [
        ({"sequence": 9}, ONE, "sequence 9"),
        ({"floor": 4}, ONE, "sequence 5 floor 4"),
        ({"flags": FLAG_RAW | FLAG_DOWNGRADE}, ONE, "downgrade allowed"),
        ({"add": (public(TWO),)}, ONE, "adds key"),
        ({"revoke": (bytes(8),)}, ONE, "revokes key 0000000000000000"),
        ({}, TWO, "signed by"),
    ],
)
async def test_another_manifest_of_the_same_image_replaces_the_one_there_is(
    at: Desk, fields: dict[str, Any], key: Ed25519PrivateKey, told: str
) -> None:
    """It was answered "Published", and the old one stayed: neither a re-signing nor a downgrade could be shipped."""
    first = await publish(at, sign(manifest(), ONE))
    second = sign(manifest(**fields), key)
    made = await publish(at, second)
    assert made == await at.firmware.get("a", "1.0")
    assert (made.manifest, made.sequence, made.signed) == (second, fields.get("sequence", 5), True)
    assert made.created == first.created
    _, (what, detail) = await deeds(at)
    before, _, after = detail.partition(" -> ")
    assert (what, before.startswith(hashlib.sha256(IMAGE).hexdigest())) == ("replace-manifest", True)
    assert told in after


async def test_the_same_manifest_again_changes_nothing_and_is_no_deed(at: Desk) -> None:
    envelope = sign(manifest(), ONE)
    first = await publish(at, envelope)
    assert await publish(at, envelope) == first
    assert [what for what, _ in await deeds(at)] == ["publish"]


async def test_an_unsigned_manifest_never_replaces_a_signed_one(at: Desk) -> None:
    await publish(at, sign(manifest(), ONE))
    for now in (spec(ONE, mode="optional"), spec(TWO, mode="optional")):  # also where its key has left the app
        await at.registry.update_app("a", App(Metadata("a"), now), "admin")
        for said in ({"envelope": unsigned(manifest(sequence=9))}, {"version": "1.0", "hardware": "x", "kind": "raw"}):
            with pytest.raises(RefusedError, match="published with a signature"):
                await at.firmware.publish("a", Upload(**said), body(), "eve")
    assert (await at.firmware.get("a", "1.0")).manifest == sign(manifest(), ONE)


async def test_a_signed_manifest_replaces_an_unsigned_one_whoever_came_first(at: Desk) -> None:
    await at.registry.update_app("a", App(Metadata("a"), spec(ONE, mode="optional")), "admin")
    plain = Upload(version="1.0", hardware="x", kind="raw")

    async def other() -> None:
        elsewhere = FirmwareRegistry(at.store, at.bus, at.now, 1 << 20)  # who takes no turn with this one
        await elsewhere.publish("a", Upload(envelope=sign(manifest(), ONE)), body(), "eve")

    at.store.before = other
    with pytest.raises(RefusedError, match="published with a signature"):  # read again, it finds the signed one
        await at.firmware.publish("a", plain, body(), "eve")
    assert (await at.firmware.get("a", "1.0")).signed


async def test_another_image_hardware_or_kind_is_another_firmware(at: Desk) -> None:
    await publish(at, sign(manifest(), ONE))
    for envelope, image in (
        (sign(manifest(b"other"), ONE), b"other"),
        (sign(manifest(hardware="y"), ONE), IMAGE),
    ):
        with pytest.raises(ConflictError, match=r"firmware 1\.0"):
            await publish(at, envelope, image)
    assert len(await at.firmware.list("a")) == 1


async def test_two_publishes_at_once_have_numbers_of_their_own(at: Desk) -> None:
    await at.registry.update_app("a", App(Metadata("a"), spec(mode="optional")), "admin")
    async with trio.open_nursery() as nursery:
        for n in range(40):  # many more than a publish tries again
            said = Upload(version=f"1.{n}", hardware="x", kind="raw")
            nursery.start_soon(at.firmware.publish, "a", said, body(b"%d" % n), "eve")
    found = await at.firmware.list("a")
    assert sorted(f.sequence for f in found) == list(range(1, 41))
    assert all(decode_envelope_untrusted(f.manifest)[1].sequence == f.sequence for f in found)


async def test_what_a_store_goes_on_refusing_is_told_as_it_said_it(at: Desk) -> None:
    async def commit(changes: Sequence[Change]) -> None:
        raise ConflictError("the other system keeps the name 1.0")

    at.store.commit = commit  # type: ignore[method-assign]
    with pytest.raises(ConflictError, match="the other system keeps the name"):
        await publish(at, sign(manifest(), ONE))


async def test_firmware_is_listed_as_what_its_key_is_worth_now(at: Desk) -> None:
    await publish(at, sign(manifest(), ONE))

    async def shown() -> Trust:
        (found,) = await at.firmware.list("a")
        assert found == await at.firmware.get("a", "1.0")
        return trust_shown(found)

    assert await shown() is Trust.SIGNED
    await at.registry.update_app("a", App(Metadata("a"), spec(TWO)), "admin")
    assert await shown() is Trust.UNTRUSTED
    await publish(at, sign(manifest(), TWO))
    assert await shown() is Trust.SIGNED
    await at.registry.update_app("a", App(Metadata("a"), spec(mode="optional")), "admin")
    assert await shown() is Trust.UNTRUSTED


async def test_a_key_that_leaves_the_app_while_an_image_comes_in_signs_nothing(at: Desk) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield IMAGE[:2]
        await at.registry.update_app("a", App(Metadata("a"), spec(TWO)), "admin")
        yield IMAGE[2:]

    with pytest.raises(RefusedError, match="not signed by a trusted key"):
        await at.firmware.publish("a", Upload(envelope=sign(manifest(), ONE)), slowly(), "eve")
    assert await at.firmware.list("a") == []
    assert await image_of(at.store, hashlib.sha256(IMAGE).hexdigest()) is None


@pytest.mark.parametrize("seed", range(12))
async def test_what_was_answered_as_published_is_there_whatever_others_publish_and_delete(tmp_path: Path, seed: int) -> None:
    """A publish that failed, or a delete in one app, took the image of another app's publish: 88 of 800 rounds."""
    chance = random.Random(seed)
    async with desk(tmp_path) as at:
        at.store.chance = chance
        for app in "ab":
            await at.registry.create_app(App(Metadata(app), spec(mode="optional")), "admin")

        async def round_of(app: str) -> None:
            for _ in range(6):
                version = f"1.{chance.randrange(2)}"
                said = Upload(version=version, hardware="x", kind="raw", sha256="" if chance.random() < 0.7 else "00" * 32)
                image = b"%d" % chance.randrange(2)
                for _ in range(chance.randrange(4)):
                    await trio.lowlevel.checkpoint()
                try:
                    made = await at.firmware.publish(app, said, body(image), "eve")
                except Exception as error:
                    if "expected" not in str(error) and "another image" not in str(error):
                        raise
                else:
                    # Nobody else touches this app: until its own delete the image must be there.
                    assert await image_of(at.store, made.sha256) == image, f"seed {seed}: the image is gone"
                if chance.random() < 0.5:
                    try:
                        await at.firmware.delete(app, version, "eve")
                    except NotFoundError:
                        continue

        async with trio.open_nursery() as nursery:
            nursery.start_soon(round_of, "a")
            nursery.start_soon(round_of, "b")
        for app in "ab":
            for found in await at.firmware.list(app):
                assert await image_of(at.store, found.sha256) is not None, f"seed {seed}"
            await at.registry.delete_app(app, Precondition(), "admin")
        for image in (b"0", b"1"):
            assert await image_of(at.store, hashlib.sha256(image).hexdigest()) is None, f"seed {seed}: nobody needs it"
