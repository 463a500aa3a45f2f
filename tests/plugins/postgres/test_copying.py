"""A store is copied whole to PostgreSQL and back, goes on where it was ended, and says where a copy differs."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import trio
from dfud_local.store import LocalStore
from dfud_postgres.store import PostgresStore

from dfud.api import (
    Actual,
    AddCounts,
    Bus,
    DeleteApp,
    DeleteDevice,
    DeleteDocument,
    HistoryEntry,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    PutFirmware,
    SetFirmware,
    State,
    Store,
    StoreError,
)
from dfud.daemon.copied import OWN, settle
from dfud.daemon.copying import Copy, Digest
from dfud.testing.store import a_blob, a_deployment, a_device, a_firmware, an_app
from dfud.testing.store_values import with_image
from tests.plugins.postgres.server import Server, config_for

DEVICES = 170


@asynccontextmanager
async def opened(*stores: Store) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for store in stores:
            await nursery.start(store.run, Bus())
        yield
        nursery.cancel_scope.cancel()


async def fill(store: Store) -> None:
    await store.commit([PutApp(an_app(team="x")), PutApp(an_app("app2"))])
    async with a_blob(store, b"some") as first, a_blob(store, b"more") as second:
        await store.commit([PutFirmware(with_image(a_firmware(first), second)), PutFirmware(a_firmware(second, app="app2"))])
    await store.commit([PutDevice(a_device(f"d{n:03}", spec={"alias": [f"x{n}"]}, ring=str(n % 3))) for n in range(DEVICES)])
    await store.commit([SetFirmware("app1", ("d001", "d002"), {"version": "1.0"}, "next")])
    for n in range(0, DEVICES, 7):
        name = f"d{n:03}"
        await store.commit([PutActual(Actual("app1", name, "1.0", "ab" * 32, "esp32c3", seen_s=float(n)))])
        for number, state in enumerate((State.DONE, State.FETCHING), 1):
            made = msgspec.structs.replace(a_deployment(10 * n + number, state, device=name), number=number)
            entry = HistoryEntry(made.id, "app1", name, float(number), state, "1.0", text="ü")
            await store.commit([PutDeployment(made, entry), PutDeployment(made, entry)])
    await store.commit([PutDocument("c", f"k{n:04}", bytes([n % 256])) for n in range(450)])
    await store.commit([AddCounts("s", {"a": 3, "b": -4}), AddCounts("t", {"a": 1})])


class Ended(Exception):
    """As `kill -9` is to a copy: it never comes to its next line."""


async def copy_until(source: Store, target: Store, steps: int) -> list[str]:
    """Copy, and end after so many steps."""
    left = steps

    def told(what: str, number: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Ended

    return await Copy(source, target, told).run()


async def test_a_store_comes_over_whole_wherever_it_was_ended_and_back(postgres: Server, tmp_path: Path) -> None:
    source, target = LocalStore(tmp_path / "state"), PostgresStore(config_for(tmp_path))
    ended = 0
    async with opened(source, target):
        await fill(source)
        for steps in range(0, 100, 3):
            try:
                lines = await copy_until(source, target, steps)
            except Ended:
                ended += 1
                continue
            break
        assert ended > 3
        assert f"devices: {DEVICES}" in lines and "images: 3" in lines and "documents: 450" in lines
        found = await target.device("app1", "d007")
        before = await source.device("app1", "d007")
        assert found is not None and before is not None
        assert (found.device, found.actual, found.deployment) == (before.device, before.actual, before.deployment)
        assert await target.find_alias("app1", "x7") == "d007" and await target.counts("s") == {"a": 3, "b": -4}
        await settle(target)
        assert not OWN & set(await target.collections())
        back = LocalStore(tmp_path / "back")
        async with opened(back):
            again = await Copy(target, back, lambda what, number: None).run()
        assert again[:-1] == lines[:-1] and again[-1].rpartition(" ")[2] == lines[-1].rpartition(" ")[2], "another digest"


async def change(store: Store) -> None:
    """Change something of every kind."""
    await store.commit([PutApp(an_app("app3")), DeleteApp("app2"), PutApp(an_app(team="y"))])
    await store.commit([PutDevice(a_device("d000", ring="changed")), PutDevice(a_device("a new one"))])
    await store.commit([DeleteDevice("app1", "d169")])
    await store.commit([SetFirmware("app1", ("d003",), {"version": "1.0"}, "later")])
    view = await store.device("app1", "d014")
    assert view is not None and view.deployment is not None
    done = msgspec.structs.replace(view.deployment, state=State.DONE)
    await store.commit([PutDeployment(done, HistoryEntry(done.id, "app1", "d014", 9.0, State.DONE, "1.0"))])
    await store.commit([PutActual(Actual("app1", "d020", "1.0", "cd" * 32, "esp32c3", seen_s=3.0))])
    await store.commit([PutDocument("c", "k0007", b"other"), DeleteDocument("c", "k0100"), PutDocument("d", "k", b"")])
    await store.commit([AddCounts("s", {"a": -3, "c": 1}), AddCounts("u", {"x": 7})])
    async with a_blob(store, b"newer") as image:
        await store.commit([PutFirmware(a_firmware(image, "2.0"))])


async def test_the_second_pass_brings_what_has_changed_since_the_first(postgres: Server, tmp_path: Path) -> None:
    """The first is of a backup, and the source goes on meanwhile."""
    live, backup = LocalStore(tmp_path / "live"), LocalStore(tmp_path / "backup")
    target = PostgresStore(config_for(tmp_path))
    async with opened(live):
        await fill(live)
    shutil.copytree(tmp_path / "live", tmp_path / "backup")
    async with opened(live, backup, target):
        await Copy(backup, target, lambda what, number: None).run()
        await change(live)
        ended = 0
        for steps in range(0, 30):
            try:
                lines = await copy_until(live, target, steps)
            except Ended:
                ended += 1
                continue
            break
        assert ended > 3 and "of the devices had changed since the last pass" in lines[-1]
        assert await target.app("app2") is None
        found = await target.device("app1", "d014")
        assert found is not None and found.deployment is not None and found.deployment.state is State.DONE
        assert await target.device("app1", "d169") is None
        lines = await Copy(live, target, lambda what, number: None).run()
        assert lines[-1].startswith("0 of the devices had changed")
        # Looked through whole: what the marks say has not changed has not.
        await settle(target)
        back = LocalStore(tmp_path / "back")
        async with opened(back):
            await Copy(target, back, lambda what, number: None).run()
            there, copied = Digest(), Digest()
            for digest, store in ((there, live), (copied, back)):
                for app in await store.apps():
                    await digest.app(store, app)
                    await digest.devices(store, app, lambda what, number: None)
                for collection in await store.collections():
                    if collection not in OWN:
                        await digest.documents(store, collection)
                await digest.counters(store)
            assert there.parts == copied.parts


async def test_an_unfinished_copy_takes_up_what_has_changed_and_nobody_serves_from_it(postgres: Server, tmp_path: Path) -> None:
    source, target = LocalStore(tmp_path / "state"), PostgresStore(config_for(tmp_path))
    async with opened(source, target):
        await fill(source)
        with pytest.raises(Ended):
            await copy_until(source, target, 6)
        await source.commit([PutDevice(a_device("d000", ring="changed"))])
        with pytest.raises(StoreError, match="unfinished copy of local, expected a whole one"):
            await settle(target)
        await Copy(source, target, lambda what, number: None).run()
        found = await target.device("app1", "d000")
        assert found is not None and found.device.metadata.labels["ring"] == "changed"
        with pytest.raises(StoreError, match="copy of local, which nobody has used yet"):
            await Copy(PostgresStore(config_for(tmp_path)), target, lambda what, number: None).run()
        await settle(target)
        with pytest.raises(StoreError, match="not empty"):
            await Copy(source, target, lambda what, number: None).run()


class ChangingStore(LocalStore):
    """Has one device more from when its devices have been read, and its counters are."""

    changed = False

    async def scopes(self, *, after: str = "", limit: int = 1000) -> list[str]:
        if not self.changed:
            self.changed = True
            await self.commit([PutDevice(a_device("zz"))])
        return await super().scopes(after=after, limit=limit)


async def test_a_source_that_changes_while_it_is_compared_is_told_of(postgres: Server, tmp_path: Path) -> None:
    source, target = ChangingStore(tmp_path / "state"), PostgresStore(config_for(tmp_path))
    async with opened(source, target):
        await fill(source)
        with pytest.raises(StoreError, match="differs in devices of app app1: the source was changed"):
            await Copy(source, target, lambda what, number: None).run()
        await Copy(source, target, lambda what, number: None).run()
        assert await target.device("app1", "zz") is not None


def on_a_terminal(command: list[str], path: Path) -> tuple[int, str, str]:
    """Run a command whose errors go to a terminal; return its exit code, what it said (by a file), and what was shown there."""
    terminal, its_end = pty.openpty()
    shown = b""
    with path.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=its_end) as run:
        os.close(its_end)
        with suppress(OSError):  # it is hung up when the command ends
            while part := os.read(terminal, 65536):
                shown += part
    os.close(terminal)
    return run.returncode, path.read_text(), shown.decode("utf-8", "replace")


def test_the_command_copies_and_says_what_is_there(postgres: Server, tmp_path: Path) -> None:
    async def prepare() -> None:
        source = LocalStore(tmp_path / "state")
        async with opened(source):
            await fill(source)

    trio.run(prepare)
    config = config_for(tmp_path)
    (tmp_path / "dfud.toml").write_text(
        f'[plugins]\nenabled = ["local", "postgres", "http"]\n[store.local]\npath = "{tmp_path}/state"\n'
        f'[store.postgres]\nhost = "{config.host}"\ndatabase = "{config.database}"\nblobs_path = "{tmp_path}/blobs"\n'
    )
    command = [sys.executable, "-m", "dfud.daemon", "store", "copy", "--config", str(tmp_path / "dfud.toml")]
    code, said, shown = on_a_terminal([*command, "--from", "local", "--to", "postgres"], tmp_path / "said")
    assert code == 0, shown
    assert f"devices: {DEVICES}\n" in said and "hold the same, SHA-256" in said
    assert re.search(f"devices copied.*{DEVICES}/{DEVICES}", shown) and re.search(f"compared.*{2 * DEVICES}/{2 * DEVICES}", shown)
    again = subprocess.run([*command, "--from", "local", "--to", "postgres"], capture_output=True, text=True)
    assert again.returncode == 0 and "0 of the devices had changed since the last pass." in again.stdout, again.stderr
