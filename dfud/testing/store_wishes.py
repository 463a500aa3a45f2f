"""Reading and setting the firmware of many devices: what every store is held to. Part of StoreConformance."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio

from dfud.api import (
    Actual,
    Bus,
    DeleteDevice,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    SetFirmware,
    Store,
    StoreError,
    Wish,
    parse_selector_untrusted,
)
from dfud.testing.store_values import a_deployment, a_device, an_app

WANTED = {"version": "2.0", "hold": True}


async def _devices(store: Store) -> None:
    specs = {"d1": {}, "d2": {"firmware": {"version": "1.0"}, "other": [1]}, "d3": {"firmware": None}, "d4": {"x": "y"}}
    put = [PutDevice(a_device(name, spec=spec, ring=name[1])) for name, spec in specs.items()]
    await store.commit([PutApp(an_app()), *put])


class WishConformance:
    """Needs the fixture `store` and new_store() of StoreConformance."""

    def new_store(self, directory: Path) -> Store:
        raise NotImplementedError

    async def test_wishes_are_what_the_devices_ask_for(self, store: Store) -> None:
        await _devices(store)
        unset = msgspec.UNSET
        assert await store.wishes("app1") == [
            Wish("d1", unset),
            Wish("d2", {"version": "1.0"}),
            Wish("d3", None),
            Wish("d4", unset),
        ]
        assert await store.wishes("app2") == []
        assert [w.device for w in await store.wishes("app1", limit=2, after="d1")] == ["d2", "d3"]
        for text, names in {
            "ring=2": ["d2"],
            "ring in (1,3)": ["d1", "d3"],
            "ring=2,ring": ["d2"],
            "ring!=2": ["d1", "d3", "d4"],
            "ring=2,ring=3": [],
            "ring in (4,4)": ["d4"],
        }.items():
            assert [w.device for w in await store.wishes("app1", parse_selector_untrusted(text))] == names, text
        assert [w.device for w in await store.wishes("app1", parse_selector_untrusted("ring=2"), after="d2")] == []

    async def test_many_devices_get_their_firmware_at_once(self, store: Store) -> None:
        await _devices(store)
        before = {view.device.name: view.device for view in await store.devices("app1")}
        await store.commit([SetFirmware("app1", ("d1", "d2", "gone", "d3"), WANTED, "next")])
        for view in await store.devices("app1"):
            name, device, old = view.device.name, view.device, before[view.device.name]
            assert await store.device("app1", name) == view
            if name == "d4":
                assert device == old
                continue
            assert device.spec == {**old.spec, "firmware": WANTED}
            assert device.metadata == msgspec.structs.replace(
                old.metadata, generation=old.metadata.generation + 1, resource_version="next"
            )
        assert {w.device: w.firmware for w in await store.wishes("app1")} == {
            **dict.fromkeys(("d1", "d2", "d3"), WANTED),
            "d4": msgspec.UNSET,
        }
        assert await store.users_of("app1", "2.0") == ["d1", "d2", "d3"]
        assert await store.users_of("app1", "1.0") == []

    async def test_it_is_taken_away_and_replaced_as_any_other(self, store: Store) -> None:
        await _devices(store)
        await store.commit([SetFirmware("app1", ("d1", "d2"), WANTED, "v2")])
        await store.commit([SetFirmware("app1", ("d1", "d2"), None, "v3")])
        view = await store.device("app1", "d2")
        assert view is not None
        assert view.device.spec == {"other": [1]} and view.device.metadata.resource_version == "v3"
        assert await store.users_of("app1", "2.0") == []
        # Whoever read it may put it, and nobody who read it before.
        with pytest.raises(Exception, match="changed"):
            await store.commit([PutDevice(a_device("d2", version="v4"), expect="v2")])
        changed = msgspec.structs.replace(view.device.metadata, resource_version="v4")
        await store.commit([PutDevice(msgspec.structs.replace(view.device, metadata=changed), expect="v3")])
        after = await store.device("app1", "d2")
        assert after is not None and after.device == msgspec.structs.replace(view.device, metadata=changed)

    async def test_a_wish_for_app_firmware_uses_its_version_too(self, store: Store) -> None:
        await _devices(store)
        both = {"version": "2.0", "app": "3.2"}
        await store.commit(
            [SetFirmware("app1", ("d1",), {"app": "3.2"}, "v2"), SetFirmware("app1", ("d3",), both, "v2")]
        )
        await store.commit([PutDevice(a_device("d4", spec={"firmware": {"app": "3.1"}}))])
        for version, names in {
            "3.2": ["d1", "d3"],
            "3.1": ["d4"],
            "2.0": ["d3"],
            "1.0": ["d2"],
            "3": [],
            "": [],
        }.items():
            assert await store.users_of("app1", version) == names, version
        await store.commit([SetFirmware("app1", ("d3",), WANTED, "v3")])
        assert await store.users_of("app1", "3.2") == ["d1"]

    async def test_an_app_without_such_devices_is_no_error(self, store: Store) -> None:
        await store.commit([SetFirmware("nowhere", ("d1",), WANTED, "v")])
        await store.commit([PutApp(an_app()), SetFirmware("app1", (), WANTED, "v")])
        assert await store.wishes("app1") == []

    async def test_a_firmware_that_cannot_be_stored_fails_its_own_commit(self, store: Store) -> None:
        await _devices(store)
        with pytest.raises(StoreError):
            await store.commit([SetFirmware("app1", ("d1",), {"n": 1 << 70}, "v")])
        with pytest.raises(StoreError):
            await store.commit([SetFirmware("app1", ("d1",), {"n": float("inf")}, "v")])
        assert (await store.wishes("app1"))[0] == Wish("d1", msgspec.UNSET)

    async def test_it_is_there_after_the_store_was_opened_again(self, tmp_path: Path) -> None:
        for number in range(2):
            async with trio.open_nursery() as nursery:
                store = self.new_store(tmp_path)
                await nursery.start(store.run, Bus())
                if not number:
                    await _devices(store)
                    await store.commit([SetFirmware("app1", ("d1",), WANTED, "v2")])
                else:
                    assert (await store.wishes("app1"))[0] == Wish("d1", WANTED)
                nursery.cancel_scope.cancel()

    async def test_devices_are_read_together_as_they_are_read_alone(self, store: Store) -> None:
        await store.commit([PutApp(an_app()), PutApp(an_app("app2")), PutDevice(a_device("d1", "app2"))])
        await store.commit([PutDevice(a_device(f"d{n}", site="ab"[n % 2])) for n in range(70)])
        await store.commit(
            [PutActual(Actual("app1", "d3", "1.0", "00" * 32, "esp32c3")), PutDeployment(a_deployment(device="d4"))]
        )
        await store.commit([SetFirmware("app1", ("d5",), {"version": "1.1"}, "7"), DeleteDevice("app1", "d6")])
        names = [f"d{n}" for n in range(70)]
        found = await store.views("app1", [*names, "missing", "\ud800"])
        assert found == {name: await store.device("app1", name) for name in names if name != "d6"}
        assert list(await store.views("app2", names)) == ["d1"] and await store.views("app3", names) == {}
        assert await store.views("app1", []) == {}
