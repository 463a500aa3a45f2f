"""A version with several images, its ways and its recall, as the registry keeps and audits them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from dfud.api import App, Bus, Capability, ConflictError, Firmware, Metadata, NotFoundError, PeerError, RefusedError
from dfud.model.firmware import Requires
from dfud.registry import audit
from dfud.registry.firmware import FirmwareRegistry, Upload
from dfud.registry.images import Bound
from dfud.testing.store import image_of
from tests.registry.desk import Desk, desk


async def body(image: bytes) -> AsyncIterator[bytes]:
    yield image


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as found:
        await found.registry.create_app(App(Metadata("a"), {"signing": {"mode": "optional"}}), "admin")
        yield found


async def publish(at: Desk, image: bytes, version: str = "1.0", hardware: str = "x", **said: Any) -> Firmware:
    upload = Upload(version=version, hardware=hardware, kind="raw", **said)
    return await at.firmware.publish("a", upload, body(image), "eve")


def digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


async def deeds(at: Desk) -> list[tuple[str, str]]:
    return [(e.what, e.detail) for _, e in await audit.read(at.store) if e.target.startswith("a/")]


async def test_images_are_added_to_a_version_one_by_one_and_deleted_one_by_one(at: Desk) -> None:
    await publish(at, b"old", "0.9")
    first = await publish(at, b"one", notes="the first")
    made = await publish(at, b"two", attributes={"rev": "2"})
    made = await publish(at, b"three", hardware="y")
    assert [i.meant_for for i in made.images] == ["x", "x with rev=2", "y"] and made == await at.firmware.get("a", "1.0")
    assert {i.sequence for i in made.images} == {2} == {first.sequence} and made.notes == "the first"
    assert await publish(at, b"two", attributes={"rev": "2"}) == made, "the same again is no news"
    with pytest.raises(ConflictError, match="exists already, with another image for y"):
        await publish(at, b"four", hardware="y")
    with pytest.raises(ConflictError, match="attributes"):
        await publish(at, b"two")
    with pytest.raises(ConflictError, match="sequence 9 was given, the images of 1.0 have 2"):
        await publish(at, b"four", hardware="z", sequence=9)
    kept = [await image_of(at.store, digest(image)) for image in (b"one", b"two", b"three", b"four")]
    assert kept == [b"one", b"two", b"three", None]
    async with at.firmware.image("a", "1.0", "x", {"rev": "2"}) as (path, image):
        assert (await trio.Path(path).read_bytes(), image.sha256) == (b"two", digest(b"two"))
    with pytest.raises(RefusedError, match="x; x with rev=2; y"):
        async with at.firmware.image("a", "1.0"):
            pass
    await at.firmware.delete_image("a", "1.0", "x", {}, "eve")
    left = await at.firmware.get("a", "1.0")
    assert [i.meant_for for i in left.images] == ["x with rev=2", "y"] and await image_of(at.store, digest(b"one")) is None
    await at.firmware.delete_image("a", "1.0", "y", {}, "eve")
    await at.firmware.delete_image("a", "1.0", "x", {"rev": "2"}, "eve")
    with pytest.raises(NotFoundError):
        await at.firmware.get("a", "1.0")
    assert [what for what, _ in await deeds(at)] == [
        "publish", "publish", "publish-image", "publish-image", "delete-image", "delete-image", "delete-firmware",
    ]  # fmt: skip


async def test_the_same_image_with_other_ways_is_refused_instead_of_called_published(at: Desk) -> None:
    await publish(at, b"old", "1.0", sequence=10)
    await publish(at, b"mid", "1.1", sequence=20)
    made = await publish(at, b"new", "2.0", sequence=30, requires=Bound("1.1", None))
    assert await publish(at, b"new", "2.0", requires=Bound("1.1", None)) == made
    assert await publish(at, b"new", "2.0") == made, "nothing is said of the ways: they stay"
    for said in ({"requires": Bound("1.0", None)}, {"stop": True}):
        with pytest.raises(ConflictError, match="firmware 2.0 exists already, with other ways to it: .*dfuctl firmware ways 2.0"):
            await publish(at, b"new", "2.0", **said)
    with pytest.raises(PeerError, match=r"requires.from: 7.7 is not published"):
        await publish(at, b"new", "2.0", requires=Bound("7.7", None))
    assert await at.firmware.get("a", "2.0") == made


async def test_a_wanted_version_keeps_its_images(at: Desk) -> None:
    await publish(at, b"one")
    await publish(at, b"two", hardware="y")
    await at.registry.set_firmware("a", None, {"version": "1.0"}, "eve")
    with pytest.raises(RefusedError, match="wanted by app a"):
        await at.firmware.delete_image("a", "1.0", "y", {}, "eve")


async def test_images_that_are_published_at_the_same_moment_are_all_kept(at: Desk) -> None:
    await publish(at, b"one")
    others = [FirmwareRegistry(at.store, Bus(), lambda: 0.0, 1000) for _ in range(5)]
    async with trio.open_nursery() as nursery:
        for number, registry in enumerate(others):
            upload = Upload(version="1.0", hardware=f"h{number}", kind="raw")
            nursery.start_soon(registry.publish, "a", upload, body(b"image %d" % number), "eve")
    made = await at.firmware.get("a", "1.0")
    assert {i.hardware for i in made.images} == {"x", *(f"h{n}" for n in range(5))}


async def test_a_store_that_holds_one_image_for_a_version_says_so(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at.store, "capabilities", at.store.capabilities - {Capability.SEVERAL_IMAGES})
    await publish(at, b"one")
    with pytest.raises(ConflictError, match=r"another image; the store \w+ holds one image for each version: publish"):
        await publish(at, b"two", hardware="y")


async def test_a_recall_has_a_reason_and_is_on_record(at: Desk) -> None:
    await publish(at, b"one")
    with pytest.raises(PeerError, match="reason: empty"):
        await at.firmware.recall("a", "1.0", "  ", "eve")
    found = await at.firmware.recall("a", "1.0", "it burns", "eve")
    assert found.recalled is not None and (found.recalled.reason, found.recalled.by) == ("it burns", "eve")
    assert (await at.firmware.get("a", "1.0")).recalled == found.recalled
    made = await publish(at, b"two", hardware="y")
    assert made.recalled == found.recalled, "a further image is recalled with the others"
    assert (await at.firmware.unrecall("a", "1.0", "eve")).recalled is None
    with pytest.raises(RefusedError, match="1.0 is not recalled"):
        await at.firmware.unrecall("a", "1.0", "eve")
    assert [deed for deed in await deeds(at) if "recall" in deed[0]] == [("recall", "it burns"), ("unrecall", "it burns")]


async def test_a_recall_does_not_need_the_image(at: Desk) -> None:
    await publish(at, b"one")
    async with at.store.blob(digest(b"one")) as path:
        assert path is not None
        path.unlink()
    assert (await at.firmware.recall("a", "1.0", "lost", "eve")).recalled is not None


async def test_ways_are_said_by_name_and_kept_by_sequence(at: Desk) -> None:
    for number, version in enumerate(("1.0", "1.1", "1.2"), 1):
        await publish(at, version.encode(), version, sequence=number * 10)
    made = await publish(at, b"next", "2.0", sequence=40, requires=Bound("1.1", "1.2"), stop=True)
    assert (made.requires, made.stop) == (Requires(20, 30), True)
    assert (await publish(at, b"more", "2.0", hardware="y", requires=Bound("1.1", "1.2"))).requires == Requires(20, 30)
    with pytest.raises(ConflictError, match="with other ways to it"):
        await publish(at, b"other", "2.0", hardware="z", requires=Bound("1.0", None))
    for bound, said in (
        (Bound("7.7", None), "requires.from: 7.7 is not published"),
        (Bound("1.2", "1.1"), "requires.to: sequence 20 is below that of requires.from, 30"),
        (Bound("2.0", None), "requires.from: sequence 40, expected less than 2.0's own, 40"),
        (Bound(None, -1), "requires.to: -1, expected a version or a sequence from 0"),
        (Bound(), "requires: expected from, to or both"),
    ):
        with pytest.raises(PeerError, match=said):
            await at.firmware.set_ways("a", "2.0", bound, False, "eve")
    changed = await at.firmware.set_ways("a", "2.0", Bound(15, None), False, "eve")
    assert (changed.requires, changed.stop) == (Requires(15), False)
    assert (await deeds(at))[-1] == (
        "firmware-ways", "from sequence 20 to 30, not to be skipped -> from sequence 15 to 4294967295, may be skipped",
    )  # fmt: skip
