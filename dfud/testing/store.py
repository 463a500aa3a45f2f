"""What every store is held to. Subclass `StoreConformance` in a test module and give a fixture `store`.

    class TestMyStore(StoreConformance):
        @pytest.fixture
        async def store(self, nursery, tmp_path):
            store = MyStore(tmp_path)
            await nursery.start(store.run, Bus())
            yield store

        def new_store(self, directory):  # to have it closed and opened again, and killed
            return MyStore(directory)

Needs pytest and pytest-trio. A capability that the store does not declare is not tested.
"""

from __future__ import annotations

import hashlib

import msgspec
import pytest
import trio

from dfud.api import (
    Actual,
    AddCounts,
    App,
    Capability,
    ConflictError,
    DeleteApp,
    DeleteCounts,
    DeleteDevice,
    DeleteDocument,
    DeleteFirmware,
    HistoryEntry,
    Metadata,
    NotFoundError,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    PutFirmware,
    Recall,
    Requires,
    State,
    Store,
    TrimDocuments,
    parse_selector_untrusted,
)
from dfud.testing.store_blobs import BlobConformance
from dfud.testing.store_growth import GrowthConformance
from dfud.testing.store_shared import SharedConformance
from dfud.testing.store_steps import StepConformance
from dfud.testing.store_values import a_blob, a_deployment, a_device, a_firmware, an_app, image_of, with_image
from dfud.testing.store_walk import WalkConformance
from dfud.testing.store_wishes import WishConformance

__all__ = ["StoreConformance", "a_blob", "a_deployment", "a_device", "a_firmware", "an_app", "image_of"]


class StoreConformance(
    BlobConformance, WalkConformance, WishConformance, SharedConformance, GrowthConformance, StepConformance
):
    """The promise of dfud.api.Store, as tests."""

    async def test_an_app_is_read_as_it_was_written(self, store: Store) -> None:
        app = App(Metadata("app1", resource_version="7", labels={"a": "b"}), {"any": [1, {"x": None}], "t": "ü"})
        await store.commit([PutApp(app)])
        assert await store.app("app1") == app
        assert await store.app("app2") is None

    async def test_expect_guards_every_write(self, store: Store) -> None:
        await store.commit([PutApp(an_app(version="1"), expect="")])
        with pytest.raises(ConflictError):
            await store.commit([PutApp(an_app(version="2"), expect="")])
        with pytest.raises(ConflictError):
            await store.commit([PutApp(an_app(version="2"), expect="0")])
        await store.commit([PutApp(an_app(version="2"), expect="1")])
        with pytest.raises(ConflictError):
            await store.commit([DeleteApp("app1", expect="1")])
        await store.commit([PutDevice(a_device(version="5"), expect="")])
        with pytest.raises(ConflictError):
            await store.commit([PutDevice(a_device(version="6"), expect="4")])
        with pytest.raises(ConflictError):
            await store.commit([DeleteDevice("app1", "dev1", expect="4")])
        with pytest.raises(NotFoundError):
            await store.commit([PutDevice(a_device("other"), expect="4")])
        found = await store.device("app1", "dev1")
        assert found is not None
        assert found.device.metadata.resource_version == "5"

    async def test_a_commit_is_done_whole_or_not_at_all(self, store: Store) -> None:
        await store.commit([PutApp(an_app())])
        with pytest.raises(ConflictError):
            await store.commit([PutDevice(a_device("a")), PutDevice(a_device("b")), PutApp(an_app(), expect="")])
        assert await store.devices("app1") == []

    async def test_a_refused_commit_does_not_harm_those_beside_it(self, store: Store) -> None:
        await store.commit([PutApp(an_app())])
        refused = []

        async def put(number: int) -> None:
            try:
                await store.commit([PutDevice(a_device(f"d{number}"), expect="" if number % 2 else "9")])
            except (ConflictError, NotFoundError):
                refused.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(put, number)
        assert sorted(refused) == list(range(0, 50, 2))
        assert len(await store.devices("app1")) == 25

    async def test_what_must_exist_must_exist(self, store: Store) -> None:
        for change in (
            PutDevice(a_device()),
            DeleteApp("app1"),
            DeleteDevice("app1", "dev1"),
            PutActual(Actual("app1", "dev1", "1", "00" * 32, "esp32c3")),
            PutDeployment(a_deployment()),
            DeleteDocument("c", "k"),
        ):
            with pytest.raises(NotFoundError):
                await store.commit([change])
        await store.commit([PutApp(an_app())])
        with pytest.raises(NotFoundError):
            await store.commit([PutFirmware(a_firmware("ab" * 32))])

    async def test_devices_are_listed_by_name_in_pieces(self, store: Store) -> None:
        await store.commit([PutApp(an_app()), *(PutDevice(a_device(f"dev{n:02}")) for n in range(10))])
        assert [v.device.name for v in await store.devices("app1", limit=3)] == ["dev00", "dev01", "dev02"]
        assert [v.device.name for v in await store.devices("app1", limit=2, offset=9)] == ["dev09"]
        assert [v.device.name for v in await store.devices("app1", after="dev07")] == ["dev08", "dev09"]

    @pytest.mark.parametrize(
        ("selector", "names"),
        [
            ("site=a", ["d1", "d2"]),
            ("site!=a", ["d3", "d4"]),
            ("site in (a,b),ring=1", ["d1", "d3"]),
            ("site notin (a)", ["d3", "d4"]),
            ("ring", ["d1", "d2", "d3"]),
            ("!ring", ["d4"]),
            ("site=a,!ring", []),
        ],
    )
    async def test_labels_select(self, store: Store, selector: str, names: list[str]) -> None:
        await store.commit(
            [
                PutApp(an_app()),
                PutDevice(a_device("d1", site="a", ring="1")),
                PutDevice(a_device("d2", site="a", ring="2")),
                PutDevice(a_device("d3", site="b", ring="1")),
                PutDevice(a_device("d4")),
            ]
        )
        found = await store.devices("app1", parse_selector_untrusted(selector))
        assert [v.device.name for v in found] == names
        assert await store.count("app1", parse_selector_untrusted(selector)) == len(names)

    async def test_devices_are_counted(self, store: Store) -> None:
        assert await store.count("app1") == 0
        await store.commit([PutApp(an_app()), PutApp(an_app("app2")), PutDevice(a_device("d", "app2", site="a"))])
        await store.commit([PutDevice(a_device(f"d{n}", site="ab"[n % 2], ring=str(n))) for n in range(7)])
        await store.commit([PutDevice(a_device("d0", site="b")), DeleteDevice("app1", "d2")])
        counts = {"": 6, "site": 6, "site in (a,b)": 6, "site=b": 4, "ring": 5, "!ring": 1, "site=a,ring notin (4)": 1}
        for selector, number in counts.items():
            assert await store.count("app1", parse_selector_untrusted(selector)) == number, selector
        await store.commit([DeleteApp("app1")])
        assert (await store.count("app1"), await store.count("app2")) == (0, 1)

    async def test_labels_follow_a_change(self, store: Store) -> None:
        await store.commit([PutApp(an_app(team="x")), PutDevice(a_device("d1", site="a"))])
        await store.commit([PutApp(an_app(team="y")), PutDevice(a_device("d1", site="b"))])
        assert await store.devices("app1", parse_selector_untrusted("site=a")) == []
        assert len(await store.devices("app1", parse_selector_untrusted("site=b"))) == 1
        assert await store.apps(parse_selector_untrusted("team=x")) == []
        assert [a.name for a in await store.apps(parse_selector_untrusted("team=y"))] == ["app1"]

    async def test_an_alias_leads_to_one_device(self, store: Store) -> None:
        await store.commit([PutApp(an_app()), PutDevice(a_device("d1", spec={"alias": ["x", "y"]}))])
        assert await store.find_alias("app1", "y") == "d1"
        assert await store.find_alias("app1", "d1") == "d1"
        assert await store.find_alias("app1", "z") is None
        names = ["d1", "x", "z", "y", "7", "ü", "\ud800"]
        assert await store.find_aliases("app1", names) == {"d1": "d1", "x": "d1", "y": "d1"}
        assert await store.find_aliases("app2", names) == {}
        with pytest.raises(ConflictError):
            await store.commit([PutDevice(a_device("d2", spec={"alias": ["y"]}))])
        await store.commit([PutDevice(a_device("d1", spec={"alias": ["x"]}))])
        assert await store.find_alias("app1", "y") is None

    async def test_deleting_an_app_takes_everything_along(self, store: Store) -> None:
        await store.commit([PutApp(an_app()), PutDevice(a_device(spec={"alias": ["x"]}, l="v"))])
        async with a_blob(store, b"data") as sha256:
            await store.commit([PutFirmware(a_firmware(sha256)), PutDeployment(a_deployment())])
        await store.commit([DeleteApp("app1")])
        assert await store.app("app1") is None
        assert await store.device("app1", "dev1") is None
        assert await store.firmwares("app1") == []
        assert await store.deployments("app1", "dev1") == []
        assert await store.find_alias("app1", "x") is None
        await store.commit([PutApp(an_app(version="2")), PutDevice(a_device())])
        found = await store.device("app1", "dev1")
        assert found is not None
        assert found.deployment is None

    async def test_firmware_has_one_record_a_version(self, store: Store) -> None:
        await store.commit([PutApp(an_app())])
        async with a_blob(store, b"data") as sha256:
            assert sha256 == hashlib.sha256(b"data").hexdigest()
            first, second = a_firmware(sha256), a_firmware(sha256, "2.0", sequence=2)
            await store.commit([PutFirmware(first), PutFirmware(second)])
        assert await store.firmware("app1", "1.0") == first
        assert [f.version for f in await store.firmwares("app1")] == ["2.0", "1.0"]
        found = await store.firmware_by_digest("app1", sha256)
        assert found == second
        assert await store.firmware_by_digest("app1", "00" * 32) is None
        with pytest.raises(ConflictError):
            await store.commit([PutFirmware(first)])

    async def test_a_version_may_have_several_images(self, store: Store) -> None:
        if Capability.SEVERAL_IMAGES not in store.capabilities:
            pytest.skip("the store does not declare several-images")
        await store.commit([PutApp(an_app())])
        async with a_blob(store, b"some") as first, a_blob(store, b"more") as second:
            one = a_firmware(first)
            both = with_image(one, second)
            with pytest.raises(NotFoundError):
                await store.commit([PutFirmware(with_image(both, "00" * 32))])
            await store.commit([PutFirmware(one), PutFirmware(both, create=False)])
        assert await store.firmware("app1", "1.0") == both and await store.firmwares("app1") == [both]
        assert await store.firmware_by_digest("app1", second) == both == await store.firmware_by_digest("app1", first)
        assert await store.firmware_by_digest("app2", second) is None
        await store.commit([PutFirmware(one, create=False)])
        assert await store.firmware_by_digest("app1", second) is None
        recalled = msgspec.structs.replace(
            one, recalled=Recall("it burns", "eva", "now"), requires=Requires(1, 2), stop=True
        )
        await store.commit([PutFirmware(recalled, create=False)])
        assert await store.firmware("app1", "1.0") == recalled

    async def test_a_deleted_firmware_may_come_again(self, store: Store) -> None:
        if Capability.DELETE_FIRMWARE not in store.capabilities:
            pytest.skip("the store does not declare delete-firmware")
        async with a_blob(store, b"data") as sha256:
            await store.commit([PutApp(an_app()), PutFirmware(a_firmware(sha256))])
            await store.commit([DeleteFirmware("app1", "1.0")])
            assert await store.firmware("app1", "1.0") is None
            with pytest.raises(NotFoundError):
                await store.commit([DeleteFirmware("app1", "1.0")])
            await store.commit([PutFirmware(a_firmware(sha256))])
        assert await image_of(store, sha256) is not None

    async def test_a_firmware_that_is_wanted_is_not_deleted_as_unused(self, store: Store) -> None:
        if Capability.DELETE_FIRMWARE not in store.capabilities:
            pytest.skip("the store does not declare delete-firmware")
        wish = a_device("wants", spec={"firmware": {"version": "1.0"}})
        async with a_blob(store, b"data") as sha256:
            await store.commit([PutApp(an_app()), PutFirmware(a_firmware(sha256)), PutDevice(a_device("gets"))])
        for wanted, over in (
            (PutDevice(wish), PutDevice(a_device("wants"))),
            (PutDeployment(a_deployment(1, device="gets")), PutDeployment(a_deployment(1, State.DONE, device="gets"))),
        ):
            await store.commit([wanted])
            with pytest.raises(ConflictError):
                await store.commit([PutDocument("c", "k", b""), DeleteFirmware("app1", "1.0", unused=True)])
            assert await store.firmware("app1", "1.0") is not None and await store.document("c", "k") is None
            await store.commit([over])
        await store.commit([DeleteFirmware("app1", "1.0", unused=True)])
        assert await store.firmware("app1", "1.0") is None
        with pytest.raises(NotFoundError):
            await store.commit([DeleteFirmware("app1", "1.0", unused=True)])

    async def test_a_firmware_is_replaced_only_if_it_is_what_was_read(self, store: Store) -> None:
        async with a_blob(store, b"data") as sha256:
            first = a_firmware(sha256)
            second, third = (msgspec.structs.replace(first, manifest=m) for m in (b"second", b"third"))
            await store.commit([PutApp(an_app())])
            with pytest.raises(NotFoundError):
                await store.commit([PutFirmware(second, expect=first)])
            await store.commit([PutFirmware(first)])
            await store.commit([PutFirmware(second, expect=first)])
            with pytest.raises(ConflictError):
                await store.commit([PutDocument("c", "k", b""), PutFirmware(third, expect=first)])
            assert await store.firmware("app1", "1.0") == second and await store.document("c", "k") is None

    async def test_a_device_comes_with_what_it_said_and_its_newest_deployment(self, store: Store) -> None:
        await store.commit([PutApp(an_app()), PutDevice(a_device())])
        actual = Actual("app1", "dev1", "1.0", "ab" * 32, "esp32c3", attributes={"rssi": "-70"}, seen_s=5.0)
        await store.commit([PutActual(actual)])
        await store.commit([PutDeployment(a_deployment(1)), PutDeployment(a_deployment(2))])
        found = await store.device("app1", "dev1")
        assert found is not None
        assert found.actual == actual
        assert found.deployment == a_deployment(2)
        assert await store.devices("app1") == [found]

    async def test_the_newest_deployment_is_the_one_with_the_highest_number(self, store: Store) -> None:
        """A clock that was set back, and deployments from before they were counted, change nothing about that."""
        await store.commit([PutApp(an_app()), PutDevice(a_device())])
        made = [
            msgspec.structs.replace(a_deployment(n), number=number, created_s=created_s)
            for n, (number, created_s) in enumerate([(0, 9000.0), (0, 9500.0), (2, 50.0), (1, 60.0)])
        ]
        for number in (2, 0, 3, 1):
            await store.commit([PutDeployment(made[number])])
        assert await store.deployments("app1", "dev1") == [made[2], made[3], made[1], made[0]]
        found = await store.device("app1", "dev1")
        assert found is not None and found.deployment == made[2]

    async def test_history_grows_and_is_read_newest_first(self, store: Store) -> None:
        await store.commit([PutApp(an_app()), PutDevice(a_device())])
        deployment = a_deployment()
        for number, state in enumerate((State.PENDING, State.NOTIFIED, State.DONE)):
            deployment = msgspec.structs.replace(deployment, state=state, record=b"\x00\xff")
            entry = HistoryEntry(deployment.id, "app1", "dev1", float(number), state, "1.0")
            await store.commit([PutDeployment(deployment, entry)])
        assert [e.state for e in await store.history("app1", "dev1")] == [State.DONE, State.NOTIFIED, State.PENDING]
        assert [e.number for e in await store.history("app1", "dev1")] == [3, 2, 1]
        assert len(await store.history("app1", "dev1", limit=1)) == 1
        assert await store.deployment(deployment.id) == deployment
        assert await store.deployments("app1", "dev1") == [deployment]

    async def test_users_of_a_firmware_are_those_that_want_it_or_are_getting_it(self, store: Store) -> None:
        await store.commit(
            [
                PutApp(an_app()),
                PutDevice(a_device("wants", spec={"firmware": {"version": "1.0"}})),
                PutDevice(a_device("gets")),
                PutDevice(a_device("had")),
                PutDeployment(a_deployment(1, device="gets")),
                PutDeployment(a_deployment(2, State.DONE, device="had")),
            ]
        )
        assert await store.users_of("app1", "1.0") == ["gets", "wants"]
        assert await store.users_of("app1", "2.0") == []

    async def test_devices_that_are_being_updated_are_found_in_pieces(self, store: Store) -> None:
        states = {"d1": State.PENDING, "d2": State.DONE, "d3": State.TRIAL, "d4": State.FAILED, "d5": State.FETCHING}
        await store.commit([PutApp(an_app()), PutDevice(a_device("d0"))])
        for number, (name, state) in enumerate(states.items(), 1):
            await store.commit([PutDevice(a_device(name)), PutDeployment(a_deployment(number, state, device=name))])
        later = msgspec.structs.replace(a_deployment(9, State.DONE, device="d5"), number=2)
        await store.commit([PutDeployment(later)])
        assert [view.device.name for view in await store.updating("app1")] == ["d1", "d3"]
        assert [view.device.name for view in await store.updating("app1", limit=1)] == ["d1"]
        (view,) = await store.updating("app1", after="d1")
        assert view.deployment is not None and view.deployment.state is State.TRIAL
        assert await store.updating("app1", after="d3") == [] and await store.updating("nobody") == []

    async def test_documents_are_kept_by_collection(self, store: Store) -> None:
        await store.commit([PutDocument("c", f"k{n}", bytes([n])) for n in range(5)])
        await store.commit([PutDocument("other", "k1", b"other")])
        assert await store.document("c", "k1") == b"\x01"
        assert await store.document("c", "missing") is None
        assert await store.documents("c", prefix="k", after="k2", limit=1) == [("k3", b"\x03")]
        with pytest.raises(ConflictError):
            await store.commit([PutDocument("c", "k1", b"", create=True)])
        await store.commit([DeleteDocument("c", "k1")])
        assert [k for k, _ in await store.documents("c")] == ["k0", "k2", "k3", "k4"]

    async def test_a_document_is_set_only_if_it_is_what_was_read(self, store: Store) -> None:
        with pytest.raises(ConflictError):
            await store.commit([PutDocument("c", "k", b"1", expect=b"")])
        await store.commit([PutDocument("c", "k", b"1")])
        await store.commit([PutDocument("c", "k", b"2", expect=b"1")])
        with pytest.raises(ConflictError):
            await store.commit([PutDocument("c", "other", b""), PutDocument("c", "k", b"3", expect=b"1")])
        assert await store.document("c", "k") == b"2" and await store.document("c", "other") is None

    async def test_collections_and_scopes_are_listed(self, store: Store) -> None:
        await store.commit([PutDocument(c, "k", b"") for c in ("b", "a")])
        await store.commit([AddCounts(s, {"n": 1}) for s in ("s1", "s2", "s3")])
        await store.commit([DeleteDocument("b", "k"), DeleteCounts("s3")])
        collections = await store.collections()
        assert "a" in collections and "b" not in collections, (
            "one that is empty is none; a store may have its own besides"
        )
        assert await store.scopes() == ["s1", "s2"] and await store.scopes(after="s1") == ["s2"]
        assert await store.scopes(limit=1) == ["s1"]

    async def test_counters_add_up_whoever_counts(self, store: Store) -> None:
        async def count(name: str) -> None:
            for _ in range(20):
                await store.commit([AddCounts("s", {"all": 1, name: 1})])

        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(count, name)
        assert await store.counts("s") == {"all": 60, "a": 20, "b": 20, "c": 20}
        await store.commit([AddCounts("s", {"a": -20, "all": -20}), AddCounts("t", {"a": 1})])
        assert await store.counts("s") == {"all": 40, "b": 20, "c": 20}
        with pytest.raises(NotFoundError):
            await store.commit([AddCounts("s", {"all": 1}), DeleteDocument("c", "missing")])
        await store.commit([DeleteCounts("s"), DeleteCounts("nothing")])
        assert await store.counts("s") == {} and await store.counts("t") == {"a": 1}

    async def test_a_collection_is_trimmed_from_its_lowest_key(self, store: Store) -> None:
        await store.commit([PutDocument("c", f"k{n}", b"") for n in range(5)])
        await store.commit([PutDocument("other", "k0", b""), TrimDocuments("c", 2)])
        assert [k for k, _ in await store.documents("c")] == ["k3", "k4"]
        await store.commit([TrimDocuments("c", 2), TrimDocuments("nothing", 2)])
        assert [k for k, _ in await store.documents("c")] == ["k3", "k4"]
        await store.commit([TrimDocuments("c", 0)])
        assert await store.documents("c") == []
        assert await store.document("other", "k0") is not None

    async def test_a_commit_that_is_cancelled_is_done_and_returns_or_is_not_done(self, store: Store) -> None:
        for steps in range(20):
            name, returned = f"app{steps}", False

            async def commit(name: str, scope: trio.CancelScope, steps: int) -> None:
                nonlocal returned
                with scope:
                    await store.commit([PutApp(an_app(name))])
                    returned = True

            scope = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(commit, name, scope, steps)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
            await store.commit([PutApp(an_app("behind"))])
            assert (await store.app(name) is not None) == returned, f"cancelled after {steps} steps"

    async def test_a_cancelled_commit_leaves_the_store_usable(self, store: Store) -> None:
        with trio.move_on_after(0):
            await store.commit([PutApp(an_app("cancelled"))])
        await store.commit([PutApp(an_app("after"))])
        assert await store.app("after") is not None

    async def test_a_backup_is_not_empty(self, store: Store) -> None:
        if Capability.BACKUP not in store.capabilities:
            pytest.skip("the store does not declare backup")
        await store.commit([PutApp(an_app())])
        assert sum([len(block) async for block in store.backup()]) > 0
