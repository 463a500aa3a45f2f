"""Devices that are put together: each caller is told what is true of its own, and two processes make each device once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import trio
from dfud_postgres.store import PostgresStore

from dfud.api import (
    Bus,
    ConflictError,
    Device,
    NotFoundError,
    PutApp,
    PutDevice,
    PutDocument,
    Store,
    parse_selector_untrusted,
)
from dfud.testing.store import a_device, an_app
from tests.plugins.postgres.server import Server, config_for

LATEST_S = 120.0


@asynccontextmanager
async def opened(directory: Path, **more: object) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(config_for(directory, "", 5432, **more))
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        yield store
        nursery.cancel_scope.cancel()


def named(name: str, alias: str, app: str = "app1") -> Device:
    return a_device(name, app, spec={"alias": [alias]}, site="a")


async def test_of_many_who_register_at_once_each_is_told_what_became_of_its_own(postgres: Server, tmp_path: Path) -> None:
    told: dict[str, str] = {}
    async with opened(tmp_path) as store:
        await store.commit([PutApp(an_app()), PutDevice(named("there", "taken"))])
        batches = store.counters()["dfud_postgres_batches_total"]

        async def register(name: str, device: Device) -> None:
            try:
                await store.commit([PutDevice(device, expect=""), PutDocument("c", name, b"")])
            except (ConflictError, NotFoundError) as error:
                told[name] = str(error)

        wrong = {
            "a": (named("there", "other"), "device there exists already"),
            "b": (named("b", "taken"), "alias taken belongs to device there"),
            "c": (named("c", "c1", "app2"), "no app app2"),
        }
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(register, f"d{number:02}", named(f"d{number:02}", f"alias{number}"))
            for name, (device, _) in wrong.items():
                nursery.start_soon(register, name, device)
        assert told == {name: text for name, (_, text) in wrong.items()}
        names = [f"d{number:02}" for number in range(40)]
        assert [view.device.name for view in await store.devices("app1")] == [*names, "there"]
        assert [key for key, _ in await store.documents("c")] == names
        assert await store.find_alias("app1", "alias7") == "d07" and await store.find_alias("app1", "other") is None
        assert store.counters()["dfud_postgres_batches_total"] - batches < 43


async def test_in_one_commit_what_comes_last_of_a_device_holds(postgres: Server, tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        devices = [a_device("dev1", site="a"), a_device("dev2", site="a"), a_device("dev1", site="b")]
        await store.commit([PutApp(an_app()), *(PutDevice(device) for device in devices)])
        for site, name in (("a", "dev2"), ("b", "dev1")):
            found = await store.devices("app1", parse_selector_untrusted(f"site={site}"))
            assert [view.device.name for view in found] == [name]


async def test_two_processes_that_register_the_same_devices_make_each_once(postgres: Server, tmp_path: Path) -> None:
    names = [f"dev{number:03}" for number in range(120)]
    made: list[str] = []
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(tmp_path)) for _ in range(2)]
        await stores[0].commit([PutApp(an_app())])

        async def one(store: Store, name: str, site: str) -> None:
            with suppress(ConflictError):
                await store.commit([PutDevice(a_device(name, site=site), expect="")])
                made.append(name)

        async def many(store: Store, some: list[str], site: str) -> None:
            await store.commit([PutDevice(a_device(name, site=site)) for name in some])

        with trio.fail_after(LATEST_S):
            async with trio.open_nursery() as nursery:
                for number, name in enumerate([*names, *reversed(names)]):
                    nursery.start_soon(one, stores[number % 2], name, "a")
                    nursery.start_soon(one, stores[(number + 1) % 2], name, "a")
            assert sorted(made) == names
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(many, stores[0], names, "b")
                    nursery.start_soon(many, stores[1], names[::-1], "c")
        # What is found by its label is what the record says.
        found = [await stores[0].count("app1", parse_selector_untrusted(f"site={site}")) for site in ("a", "b", "c")]
        labels = [view.device.metadata.labels["site"] for view in await stores[0].devices("app1")]
        assert found == [0, labels.count("b"), labels.count("c")]
