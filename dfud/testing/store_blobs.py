"""The promise of dfud.api.BlobWriter: an image lives exactly as long as somebody needs it. Part of StoreConformance."""

from __future__ import annotations

import hashlib
import os
import random

import pytest
import trio

from dfud.api import (
    Capability,
    DeleteApp,
    DeleteFirmware,
    NotFoundError,
    PutApp,
    PutFirmware,
    Store,
    StoreError,
)
from dfud.testing.store_values import a_blob, a_firmware, an_app, image_of, with_image

RACES = 40
PUBLISHERS = 6


async def there(store: Store, sha256: str) -> bool:
    found = await image_of(store, sha256)
    return found is not None and hashlib.sha256(found).hexdigest() == sha256


class BlobConformance:
    async def test_a_blob_that_was_not_committed_is_not_there(self, store: Store) -> None:
        writer = await store.new_blob()
        await writer.write(b"half")
        await writer.aclose()
        await writer.aclose()
        assert await image_of(store, hashlib.sha256(b"half").hexdigest()) is None
        with pytest.raises(StoreError):
            await writer.commit()

    async def test_a_blob_lives_while_its_writer_is_open(self, store: Store) -> None:
        await store.commit([PutApp(an_app())])
        async with a_blob(store, b"whol") as sha256:
            assert await there(store, sha256)
            async with a_blob(store, b"whol") as again:
                assert again == sha256
                await store.commit([PutFirmware(a_firmware(sha256, "2.0"))])
            assert await there(store, sha256), "another writer of the same image has closed, this one has not"
            await store.commit([DeleteFirmware("app1", "2.0")])
            assert await there(store, sha256), "its only record was deleted, but the writer is open"
        assert await image_of(store, sha256) is None
        with pytest.raises(NotFoundError):
            await store.commit([PutFirmware(a_firmware(sha256))])

    async def test_a_blob_lives_while_a_record_of_any_app_names_it(self, store: Store) -> None:
        await store.commit([PutApp(an_app("app1")), PutApp(an_app("app2")), PutApp(an_app("app3"))])
        async with a_blob(store, b"imag") as sha256:
            await store.commit(
                [PutFirmware(a_firmware(sha256, app="app1")), PutFirmware(a_firmware(sha256, app="app2"))]
            )
            await store.commit([PutFirmware(a_firmware(sha256, "2.0", app="app3"))])
        await store.commit([DeleteFirmware("app1", "1.0")])
        assert await there(store, sha256)
        await store.commit([DeleteApp("app2")])
        assert await there(store, sha256)
        async with a_blob(store, b"othe") as other:
            await store.commit([PutFirmware(a_firmware(other, "2.0", app="app3"), create=False)])
        assert await there(store, other)
        assert await image_of(store, sha256) is None, "its last record names another image now"
        await store.commit([DeleteApp("app3")])
        assert await image_of(store, other) is None

    async def test_a_blob_lives_while_a_record_names_it_as_one_of_several_images(self, store: Store) -> None:
        if Capability.SEVERAL_IMAGES not in store.capabilities:
            pytest.skip("the store does not declare several-images")
        await store.commit([PutApp(an_app("app1")), PutApp(an_app("app2"))])
        async with a_blob(store, b"some") as first, a_blob(store, b"more") as second:
            one = a_firmware(first)
            await store.commit([PutFirmware(with_image(one, second))])
            await store.commit([PutFirmware(a_firmware(second, "2.0"))])
            await store.commit([PutFirmware(with_image(a_firmware(second, app="app2"), first))])
        assert await there(store, first) and await there(store, second)
        await store.commit([PutFirmware(one, create=False), DeleteFirmware("app1", "2.0")])
        assert await there(store, second), "the other app has it as its first image"
        await store.commit([DeleteFirmware("app1", "1.0")])
        assert await there(store, first), "the other app has it as its second image"
        await store.commit([DeleteApp("app2")])
        assert await image_of(store, first) is None and await image_of(store, second) is None

    async def test_a_refused_commit_lets_go_of_nothing(self, store: Store) -> None:
        await store.commit([PutApp(an_app())])
        async with a_blob(store, b"imag") as sha256:
            await store.commit([PutFirmware(a_firmware(sha256))])
        with pytest.raises(NotFoundError):
            await store.commit([DeleteFirmware("app1", "1.0"), DeleteFirmware("app1", "missing")])
        assert await there(store, sha256)

    async def test_an_answered_publish_keeps_its_image_whatever_others_do(self, store: Store) -> None:
        """Publishers and deleters of one image in several apps, and publishers who give up, all at once."""
        seed = int.from_bytes(os.urandom(4), "big")
        rng = random.Random(seed)
        await store.commit([PutApp(an_app(f"app{n}")) for n in range(PUBLISHERS)])
        for number in range(RACES):
            image = b"%04d" % number
            kept: list[str] = []

            async def pause() -> None:
                for _ in range(rng.choice((0, 1, 3, 30, 100))):
                    await trio.lowlevel.checkpoint()

            async def publish(app: str, version: str, fate: str, image: bytes, kept: list[str]) -> None:
                await pause()
                async with a_blob(store, image) as sha256:
                    await pause()
                    if fate == "give up":
                        return
                    await store.commit([PutFirmware(a_firmware(sha256, version, app=app))])
                assert await there(store, sha256), f"seed {seed} version {version}"
                await pause()
                if fate == "delete":
                    await store.commit([DeleteFirmware(app, version)])
                else:
                    kept.append(app)

            async with trio.open_nursery() as nursery:
                for n in range(PUBLISHERS):
                    fate = rng.choice(("keep", "delete", "give up"))
                    nursery.start_soon(publish, f"app{n}", f"1.{number}", fate, image, kept)
            sha256 = hashlib.sha256(image).hexdigest()
            assert await there(store, sha256) == bool(kept), f"seed {seed} race {number}"
