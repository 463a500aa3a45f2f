"""What a store survives: odd values, being closed and opened again, being killed. Part of StoreConformance.

Run as a program (`python -m dfud.testing.store_faults MODULE CLASS DIRECTORY`) it opens the store of a conformance class and
commits until it is killed, with a line on stdout for each commit that has returned.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from dfud.api import (
    Actual,
    App,
    Bus,
    Capability,
    DeleteApp,
    DeleteDevice,
    DeleteFirmware,
    Device,
    DfudError,
    HistoryEntry,
    Metadata,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    PutFirmware,
    State,
    Store,
    UnreadableError,
)
from dfud.testing.store_values import a_blob, a_deployment, a_device, a_firmware, an_app, image_of

COMMITS_BEFORE_KILL = 40
KILLS = 3


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"x": value}
    return value


ODD_SPECS: dict[str, dict[str, Any]] = {
    "integer of 64 bits": {"x": (1 << 64) - 1},
    "integer of 65 bits": {"x": 1 << 64},
    "negative integer of 64 bits": {"x": -(1 << 63)},
    "negative integer of 65 bits": {"x": -(1 << 63) - 1},
    "integer of 10000 bits": {"x": 1 << 10_000},
    "nothing but a number of no value": {"x": float("nan")},
    "infinite": {"x": [float("inf")]},
    "lone surrogate": {"x": "\udc80"},
    "lone surrogate as a key": {"\ud800": 1},
    "zero byte": {"x\0y": "\0"},
    "control characters": {"x": "".join(map(chr, range(32))) + "\x7f\x85\u2028\u202e\ufeff"},
    "50 levels": nested(50),
    "976 levels": nested(976),
    "100000 levels": nested(100_000),
    "a million of text": {"x": "ü" * 1_000_000},
    "10000 keys": {f"k{n}": n for n in range(10_000)},
    "what the dfud keys should not be": {"firmware": ["1.0"], "alias": {"a": "b"}, "credentials": 7},
    "versions that are no text": {"firmware": {"version": [1]}, "alias": [1, None, {}, "x"]},
}
ODD_NAMES = (
    "..",
    ".",
    "/",
    "a/b",
    "a\0b",
    "\x1b[31m",
    "\u202eabc",
    "\udc80",
    "é",
    "e\u0301",
    " ",
    "x" * 5000,
    "%2e",
    "'\"",
)


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Store]:
    """Run `store` until the block ends."""
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        yield store
        nursery.cancel_scope.cancel()


async def everything(store: Store, app: str) -> dict[str, Any]:
    """Read what a store holds of an app, by each way there is."""
    views = await store.devices(app)
    names = [v.device.name for v in views]
    firmwares = await store.firmwares(app)
    return {
        "app": await store.app(app),
        "devices": views,
        "each": [await store.device(app, name) for name in names],
        "firmware": firmwares,
        "images": [await image_of(store, f.sha256) for f in firmwares],
        "deployments": [await store.deployments(app, name) for name in names],
        "history": [await store.history(app, name) for name in names],
        "documents": await store.documents("c"),
    }


class FaultConformance:
    def new_store(self, directory: Path) -> Store:
        """Return a store that is not running yet, on the state in `directory`. Give it to have reopening and kills tested."""
        pytest.skip("the class gives no new_store()")

    def damage(self, directory: Path, kind: str, name: str) -> None:
        """Make the body of a stored record what cannot be read: of an "app", "device" or "firmware" (its version), by its name.

        The store on `directory` does not run. Give it to have the repair of records tested.
        """
        pytest.skip("the class gives no damage()")

    async def test_a_record_that_cannot_be_read_costs_itself_is_named_and_can_be_repaired(self, tmp_path: Path) -> None:
        async with opened(self.new_store(tmp_path)) as store:
            await store.commit([PutApp(an_app()), PutApp(an_app("app2"))])
            await store.commit([PutDevice(a_device(f"d{n}", spec={"alias": [f"a{n}"]})) for n in range(5)])
            for version in ("1.0", "2.0"):
                async with a_blob(store, version.encode()) as sha256:
                    await store.commit([PutFirmware(a_firmware(sha256, version))])
        for kind, name in (("device", "d1"), ("device", "d3"), ("app", "app2"), ("firmware", "2.0")):
            self.damage(tmp_path, kind, name)
        async with opened(self.new_store(tmp_path)) as store:
            for _ in range(2):
                assert [v.device.name for v in await store.devices("app1")] == ["d0", "d2", "d4"]
                assert [v.device.name for v in await store.devices("app1", after="d0", limit=1)] == ["d2"]
                assert [app.name for app in await store.apps()] == ["app1"]
                assert [f.version for f in await store.firmwares("app1")] == ["1.0"]
            with pytest.raises(UnreadableError, match="d1"):
                await store.device("app1", "d1")
            with pytest.raises(UnreadableError, match="app2"):
                await store.app("app2")
            with pytest.raises(UnreadableError, match=r"2\.0"):
                await store.firmware("app1", "2.0")
            # Whoever commits beside them does not notice.
            await store.commit([PutDevice(a_device("d5")), PutDocument("c", "k", b"v")])
            await store.commit(
                [PutDevice(a_device("d1", spec={"alias": ["a1"]})), DeleteDevice("app1", "d3"), DeleteApp("app2")]
            )
            if Capability.DELETE_FIRMWARE in store.capabilities:
                await store.commit([DeleteFirmware("app1", "2.0")])
                assert await store.firmware("app1", "2.0") is None
            await store.commit([PutDevice(a_device("d6", spec={"alias": ["a3"]}))])  # its alias is free again
            assert await store.find_alias("app1", "a1") == "d1"
            assert await store.app("app2") is None and await store.device("app1", "d3") is None
        async with opened(self.new_store(tmp_path)) as store:
            assert [v.device.name for v in await store.devices("app1")] == ["d0", "d1", "d2", "d4", "d5", "d6"]

    @pytest.mark.parametrize("spec", ODD_SPECS.values(), ids=ODD_SPECS.keys())
    async def test_an_odd_spec_is_refused_alone_or_comes_back_as_it_was(
        self, store: Store, spec: dict[str, Any]
    ) -> None:
        """Refused in one sentence, without harm to who commits beside it, or stored whole."""
        await store.commit([PutApp(an_app()), PutDevice(a_device("odd", version="0"))])
        refused: list[DfudError] = []

        async def odd() -> None:
            try:
                await store.commit([PutDocument("c", "beside", b""), PutDevice(a_device("odd", spec=spec))])
            except DfudError as error:
                refused.append(error)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for n in range(10):
                    nursery.start_soon(store.commit, [PutDevice(a_device(f"d{n}"))])
                    if n == 5:
                        nursery.start_soon(odd)
        found = {v.device.name: v.device for v in await store.devices("app1")}
        assert set(found) == {"odd", *(f"d{n}" for n in range(10))}
        assert found["odd"] == (a_device("odd", version="0") if refused else a_device("odd", spec=spec))
        assert (await store.document("c", "beside") is None) == bool(refused)
        for error in refused:
            str(error).encode()
        await store.commit([PutDevice(a_device("odd", version="2"))])

    @pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
    async def test_an_odd_name_is_refused_or_can_be_read_listed_and_deleted(self, store: Store, name: str) -> None:
        """What a name may be is the registry's to say; a store holds whatever it took."""
        assert await store.device("app1", name) is None
        assert await store.find_alias(name, name) is None
        assert await store.document(name, name) is None
        assert await store.devices(name, after=name) == []
        assert await store.documents(name, prefix=name, after=name) == []
        assert await image_of(store, name) is None
        await store.commit([PutApp(an_app())])
        device = Device(Metadata(name, "app1", resource_version="1", labels={name: name}), {"alias": [name + "2"]})
        try:
            await store.commit([PutDevice(device), PutDocument("c", name, b"")])
        except DfudError as error:
            str(error).encode()
            assert await store.devices("app1") == []
            return
        found = await store.device("app1", name)
        assert found is not None and found.device == device
        assert await store.devices("app1") == [found]
        assert await store.find_alias("app1", name + "2") == name
        assert [key for key, _ in await store.documents("c")] == [name]
        await store.commit([DeleteDevice("app1", name)])
        assert await store.devices("app1") == []

    async def test_an_odd_number_in_what_a_device_said_is_refused_alone(self, store: Store) -> None:
        await store.commit([PutApp(an_app()), PutDevice(a_device("d1")), PutDevice(a_device("d2"))])
        odd = Actual("app1", "d1", "1.0", "00" * 32, "esp32c3", sequence=1 << 64, attributes={"x": "\udc80"})
        good = Actual("app1", "d2", "1.0", "00" * 32, "esp32c3")

        async def put(actual: Actual) -> None:
            with pytest.raises(DfudError) if actual is odd else trio.CancelScope():
                await store.commit([PutActual(actual)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, odd)
            nursery.start_soon(put, good)
        assert [v.actual for v in await store.devices("app1")] == [None, good]

    async def test_everything_is_there_after_the_store_was_closed(self, tmp_path: Path) -> None:
        async with opened(self.new_store(tmp_path)) as store:
            app = App(Metadata("app1", resource_version="7", labels={"a": "ü"}), {"any": [1, {"x": None}]})
            await store.commit([PutApp(app), PutDevice(a_device("dev1", spec=ODD_SPECS["control characters"], l="v"))])
            async with a_blob(store, b"imag") as sha256:
                await store.commit([PutFirmware(a_firmware(sha256))])
            async with a_blob(store, b"left"):
                pass
            for number, state in enumerate(State):
                entry = HistoryEntry("id", "app1", "dev1", float(number), state, "1.0", text="ü")
                await store.commit([PutDeployment(a_deployment(number, state), entry)])
            await store.commit([PutActual(Actual("app1", "dev1", "1.0", "ab" * 32, "esp32c3", seen_s=5.0))])
            await store.commit([PutDocument("c", "ü", bytes(range(256)))])
            before = await everything(store, "app1")
        async with opened(self.new_store(tmp_path)) as store:
            assert await everything(store, "app1") == before
            assert len(before["history"][0]) == len(State)
            assert before["images"][0] == b"imag"
            assert await store.devices("app1", limit=1) == before["devices"]

    async def test_a_store_that_is_open_is_not_opened_twice(self, tmp_path: Path) -> None:
        """Unless it says that several may."""
        if Capability.SHARED in self.new_store(tmp_path).capabilities:
            pytest.skip("the store declares shared")
        async with opened(self.new_store(tmp_path)) as store:
            await store.commit([PutApp(an_app())])
            with pytest.raises(DfudError):
                await self.new_store(tmp_path).check()
            with pytest.raises(DfudError):
                with trio.fail_after(30):
                    await self.new_store(tmp_path).run(Bus())
            await store.commit([PutApp(an_app("app2"))])
        await self.new_store(tmp_path).check()

    async def test_what_was_answered_is_there_after_a_kill(self, tmp_path: Path) -> None:
        """Killed at a moment of its own choice, opened by the next that is killed, in the end opened here."""
        self.new_store(tmp_path / "probe")
        told: dict[str, str] = {}
        for _ in range(KILLS):
            told |= await trio.to_thread.run_sync(_commit_and_be_killed, type(self), tmp_path / "state")
        async with opened(self.new_store(tmp_path / "state")) as store:
            views = {v.device.name: v for v in await store.devices("app1")}
            for name, sha256 in told.items():
                actual = views[name].actual
                assert actual is not None and actual.sha256 == sha256
                assert await image_of(store, sha256) == name.encode()
            assert len(await store.documents("c")) >= len(told) >= KILLS * COMMITS_BEFORE_KILL


def _commit_and_be_killed(kind: type[FaultConformance], directory: Path) -> dict[str, str]:
    """Run this module until it has answered some commits, kill it, and return what it said."""
    told: dict[str, str] = {}
    command = [sys.executable, "-m", "dfud.testing.store_faults", kind.__module__, kind.__qualname__, str(directory)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.endswith("\n"):
                break  # it was killed within this line
            name, sha256 = line.split()
            told[name] = sha256
            if len(told) == COMMITS_BEFORE_KILL:
                process.kill()
    return told


async def _commit_for_ever(store: Store) -> None:
    async with opened(store):
        begun = len(await store.documents("c", limit=1_000_000))
        await store.commit([PutApp(an_app())])
        while True:
            begun += 1
            name = f"{begun:04}"
            async with a_blob(store, name.encode()) as sha256:
                actual = Actual("app1", name, "1.0", sha256, "esp32c3")
                firmware = a_firmware(sha256, name)
                await store.commit(
                    [PutDevice(a_device(name)), PutActual(actual), PutFirmware(firmware), PutDocument("c", name, b"")]
                )
            print(name, sha256, flush=True)


def main(module: str, kind: str, directory: str) -> None:
    found: Any = importlib.import_module(module)
    for part in kind.split("."):
        found = getattr(found, part)
    trio.run(_commit_for_ever, found().new_store(Path(directory)))


if __name__ == "__main__":
    main(*sys.argv[1:])
