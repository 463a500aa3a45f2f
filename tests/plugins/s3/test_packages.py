"""Prepared packages in a real S3 service: made once by whichever dfud needs them first, fetched by the others."""

from __future__ import annotations

import hashlib
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from dfud.testing.device import HttpDevice
from tests.cluster.whole import Whole, running
from tests.plugins.postgres.cluster import IMAGES, LATEST_S, NEW, OLD
from tests.plugins.postgres.server import Server
from tests.plugins.s3.gateway import Gateway

NEWEST = b"newest image" * 400


def files(cluster: Whole, number: int, suffix: str) -> dict[str, Path]:
    return {path.name: path for path in (cluster.directory / f"dfud{number}" / "packages").glob(f"*.{suffix}")}


def watch_what_is_made(postgres: Server, database: str) -> None:
    """Have the database note each time that a process publishes a package that it has made."""
    for statement in (
        "CREATE TABLE made (key text)",
        "CREATE FUNCTION note_made() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS "
        "'BEGIN INSERT INTO made VALUES (new.key); RETURN new; END'",
        "CREATE TRIGGER note_made AFTER INSERT OR UPDATE ON document FOR EACH ROW "
        "WHEN (new.collection = 'packages' AND new.key LIKE 'k/%') EXECUTE FUNCTION note_made()",
    ):
        postgres.run(statement, database)


async def update(device: HttpDevice, version: str) -> None:
    while device.version != version:
        await device.update()
        await trio.sleep(0.05)


async def test_a_package_is_made_once_and_comes_from_the_bucket_to_every_other_process(
    postgres: Server, gateway: Gateway, tmp_path: Path
) -> None:
    cluster = Whole(tmp_path, [postgres], gateway, size=2)
    async with running(cluster), AsyncExitStack() as stack:
        secrets = await cluster.prepare(2, {**IMAGES, "3.0": NEWEST})
        watch_what_is_made(postgres, cluster.config.database)
        devices = []
        for number in (0, 1):
            name = f"dev{number}"
            client = await stack.enter_async_context(cluster.client_of(name, secrets[name], number))
            devices.append(HttpDevice(client, OLD, "1.0"))
        with trio.fail_after(LATEST_S):
            await cluster.want("2.0")
            await update(devices[0], "2.0")
            made = files(cluster, 0, "dfup")
            assert made and not files(cluster, 1, "dfup")
            for path in made.values():
                sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
                assert gateway.object(sha256).read_bytes() == path.read_bytes()

            # Nobody can make it any more: what it is made of is nowhere.
            images = [hashlib.sha256(image).hexdigest() for image in (OLD, NEW)]
            for sha256 in images:
                gateway.object(sha256).rename(tmp_path / sha256)
                for number in (0, 1):
                    (tmp_path / f"cache{number}" / sha256).unlink(missing_ok=True)
            await update(devices[1], "2.0")
            assert devices[1].image == NEW
            assert files(cluster, 1, "dfup").keys() <= made.keys()
            for sha256 in images:
                (tmp_path / sha256).rename(gateway.object(sha256))

            await cluster.want("3.0")
            async with trio.open_nursery() as nursery:
                for device in devices:
                    nursery.start_soon(update, device, "3.0")
        assert [device.image for device in devices] == [NEWEST, NEWEST]
        assert files(cluster, 0, "key").keys() == files(cluster, 1, "key").keys()
        # Of several that were made for one order, a process has those that it made or sent; all of them are there for everybody.
        for path in [path for number in (0, 1) for path in files(cluster, number, "dfup").values()]:
            assert gateway.object(hashlib.sha256(path.read_bytes()).hexdigest()).exists()
        published = [key for (key,) in postgres.run("SELECT key FROM made", cluster.config.database)]
        assert len(published) == len(set(published)) == len(files(cluster, 0, "key")), "a package was made twice"
