"""Registration in batches: every rule of a single device, each device told by itself, one commit, one audit entry, no secret lost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from dfud.api import (
    App,
    Change,
    ConflictError,
    DeleteApp,
    Device,
    DeviceChanged,
    Metadata,
    NotFoundError,
    PutDevice,
    StoreError,
)
from dfud.model.credentials import SEALED, verify
from dfud.registry import audit
from dfud.registry.batch import DeviceResult
from dfud.testing.daemon import DaemonProcess
from tests.registry.desk import KEY, Desk, desk
from tests.registry.served import APPS, ask, prepared

BATCH = f"{APPS}/a/devices:batch"


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as found:
        await found.registry.create_app(App(Metadata("a")), "admin")
        await found.registry.create_device("a", Device(Metadata("old", labels={"was": "here"}), {"alias": ["older"]}), "admin")
        yield found


def a_device(name: str, spec: Any = None, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}, "spec": spec or {}}


def raw(*devices: Any) -> list[msgspec.Raw]:
    return [msgspec.Raw(json.dumps(device).encode()) for device in devices]


async def create(at: Desk, *devices: Any, secrets: bool = False, dry_run: bool = False) -> list[DeviceResult]:
    return await at.registry.create_devices("a", raw(*devices), "eve", secrets=secrets, dry_run=dry_run)


def told(results: Sequence[DeviceResult]) -> list[tuple[str, str]]:
    return [(r.name, r.result) for r in results]


def password(secret: Any) -> dict[str, Any]:
    return {"authentication": {"credentials": [{"pass": secret}]}}


REFUSED: list[tuple[dict[str, Any] | list[int], str]] = [
    (a_device(""), "device name ''"),
    (a_device("a//b"), "no empty part"),
    (a_device("x" * 256), "1 to 255 bytes"),
    ({"metadata": {"name": "x", "application": "b"}}, "names app 'b'"),
    ({"metadata": {"name": "x", "owner": "me"}}, "owner"),
    ({"metadata": {"name": 7}}, "Expected `str`"),
    ([1], "this is no device"),
    (a_device("x", {"n": 1 << 70}), "beyond 64 bits"),
    (a_device("x", {"a": "x" * 70_000}), "expected at most 65536"),
    (a_device("x", {"alias": ["ok", "a//b"]}), "spec.alias[1]"),
    (a_device("x", {"alias": ["older"]}), "alias of device old"),
    (a_device("x", {"alias": ["old"]}), "alias of device old"),
    (a_device("older"), "alias of device old"),
    (a_device("x", password({"bcrypt": "$2b$31$" + "x" * 53})), "cost 31"),
    (a_device("x", {"firmware": {"version": 7}}), "spec.firmware"),
    (a_device("x", **{"not a label": "1"}), "label"),
]


@pytest.mark.parametrize(("wrong", "message"), REFUSED, ids=[message for _, message in REFUSED])
async def test_each_rule_of_one_device_holds_in_a_batch_and_costs_that_one_only(at: Desk, wrong: Any, message: str) -> None:
    """The same device is refused by itself with the same sentence."""
    first, refused, last = await create(at, a_device("first"), wrong, a_device("last"))
    assert (first.result, refused.result, last.result) == ("created", "refused", "created")
    assert message in refused.error
    try:
        device = msgspec.json.decode(json.dumps(wrong), type=Device)
    except msgspec.ValidationError:
        return
    with pytest.raises(Exception, match=".") as alone:
        await at.registry.create_device("a", device, "eve")
    assert str(alone.value) == refused.error


async def test_what_is_made_is_what_one_by_itself_is(at: Desk) -> None:
    spec = {"alias": ["n1"], "firmware": {"version": "1"}, "x": [1], **password("correct horse")}
    spec["authentication"]["credentials"].append({"psk": {"key": "AAAAAAAAAAAAAAAAAAAAAA=="}})
    given = {"metadata": {"name": "one", "labels": {"l": "v"}, "annotations": {"n": "t"}, "finalizers": ["f"]}, "spec": spec}
    heard: list[DeviceChanged] = []
    at.bus.subscribe(DeviceChanged, heard.append)
    assert told(await create(at, given)) == [("one", "created")]
    single = json.loads(json.dumps(given).replace('"one"', '"two"').replace('"n1"', '"n2"'))
    await at.registry.create_device("a", msgspec.convert(single, Device), "eve")
    one, two = [view.device for view in await at.store.devices("a") if view.device.name != "old"]
    assert [event.device for event in heard] == ["one", "two"]
    assert msgspec.structs.replace(one.metadata, name="two", uid="", resource_version="") == msgspec.structs.replace(
        two.metadata, uid="", resource_version=""
    )
    assert one.metadata.uid and one.metadata.resource_version
    assert {**one.spec, "alias": 0, "authentication": 0} == {**two.spec, "alias": 0, "authentication": 0}
    assert verify(one.spec, None, "correct horse", KEY) and "correct horse" not in json.dumps(one.spec)
    assert SEALED in one.spec["authentication"]["credentials"][1]["psk"]


async def test_one_commit_and_one_audit_entry_with_the_count(at: Desk) -> None:
    commits: list[Sequence[Change]] = []
    commit = at.store.commit

    async def watched(changes: Sequence[Change]) -> None:
        commits.append(changes)
        await commit(changes)

    at.store.commit = watched  # type: ignore[method-assign]
    made = await create(at, *(a_device(f"d{n}") for n in range(60)), a_device("old"), secrets=True)
    assert {r.result for r in made[:60]} == {"created"} and made[60].result == "exists"
    ((*puts, _),) = commits
    assert len(puts) == 60 and all(isinstance(put, PutDevice) for put in puts)
    (entry,) = [e for _, e in await audit.read(at.store) if e.by == "eve"]
    assert (entry.what, entry.target) == ("create-devices", "a")
    assert entry.detail.startswith("60 devices: d0, d1,") and "old" not in entry.detail
    assert not any(r.secret in entry.detail for r in made if r.secret)


async def test_what_exists_stays_as_it_is(at: Desk) -> None:
    before = await at.store.device("a", "old")
    assert told(await create(at, a_device("old", {"x": 1}, other="label"))) == [("old", "exists")]
    assert await at.store.device("a", "old") == before


async def test_a_name_twice_in_a_batch_is_refused_the_second_time(at: Desk) -> None:
    results = await create(
        at, a_device("x", {"alias": ["y"]}), a_device("x"), a_device("y"), a_device("z", {"alias": ["x"]}), a_device("w")
    )
    assert [r.result for r in results] == ["created", "refused", "refused", "refused", "created"]
    assert all("of device x of this batch already" in r.error for r in results[1:4])
    assert await at.store.count("a") == 3


async def test_a_dry_run_tells_the_same_and_changes_nothing(at: Desk) -> None:
    batch = [a_device("x"), a_device("old"), a_device("a//b"), a_device("y", password("pw"))]
    dry = await create(at, *batch, secrets=True, dry_run=True)
    assert await at.store.count("a") == 1
    assert not any(e.by == "eve" for _, e in await audit.read(at.store))
    assert not any(r.secret for r in dry)
    assert told(dry) == told(await create(at, *batch))


async def test_secrets_are_made_where_a_device_brings_none(at: Desk) -> None:
    bare, own, certified = await create(
        at, a_device("bare"), a_device("own", password("mine")), a_device("old"), secrets=True
    )
    assert len(bare.secret) == 22 and not own.secret and not certified.secret
    for name, secret in (("bare", bare.secret), ("own", "mine")):
        view = await at.store.device("a", name)
        assert view is not None and verify(view.device.spec, None, secret, KEY)


async def test_a_batch_whose_answer_was_lost_is_recognised_by_its_secrets(at: Desk) -> None:
    batch = [a_device("x", password("right")), a_device("y", password({"plain": "right"})), a_device("z")]
    assert {r.result for r in await create(at, *batch)} == {"created"}
    again = await create(at, *batch)
    assert [(r.result, r.same_secret) for r in again] == [("exists", True), ("exists", True), ("exists", False)]
    other = await create(at, a_device("x", password("wrong")), a_device("z", password("right")), a_device("y"), secrets=True)
    assert [(r.result, r.same_secret, r.secret) for r in other] == [("exists", False, "")] * 3


async def test_a_slow_form_is_not_compared(at: Desk) -> None:
    await create(at, a_device("x", password({"bcrypt": "$2b$04$" + "x" * 53})))
    (again,) = await create(at, a_device("x", password("guess")))
    assert (again.result, again.same_secret) == ("exists", False)


async def test_who_makes_one_of_them_meanwhile_costs_the_others_nothing(at: Desk) -> None:
    async def other() -> None:
        await at.store.commit([PutDevice(Device(Metadata("b", "a", resource_version="1"), {"alias": ["free"]}), "")])

    at.store.before = other
    results = await create(at, a_device("a"), a_device("b"), a_device("c", {"alias": ["free"]}), a_device("d"))
    assert [r.result for r in results] == ["created", "exists", "refused", "created"]
    assert "alias of device b" in results[2].error
    assert await at.store.count("a") == 4


async def test_a_name_that_is_being_taken_at_this_moment_is_refused(at: Desk) -> None:
    results: list[DeviceResult] = []

    async def batch() -> None:
        results.extend(await create(at, a_device("x"), a_device("y")))

    at.store.before = batch
    await at.registry.create_device("a", Device(Metadata("x"), {"alias": ["n"]}), "bob")
    assert [r.result for r in results] == ["refused", "created"]
    assert "'x' is being given to another" in results[0].error
    assert told(await create(at, a_device("x"), a_device("n"))) == [("x", "exists"), ("n", "refused")]


async def test_two_batches_of_the_same_devices_make_each_once(at: Desk) -> None:
    results: list[list[DeviceResult]] = []

    async def batch() -> None:
        results.append(await create(at, *(a_device(f"d{n}") for n in range(40)), secrets=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(batch)
        nursery.start_soon(batch)
    assert [{r.result for r in one} for one in results] == [{"created"}, {"exists"}]
    assert all(r.secret for r in results[0]) and not any(r.secret for r in results[1])


@pytest.mark.parametrize("exist", [False, True])
async def test_others_have_their_turn_while_a_batch_is_judged(at: Desk, exist: bool) -> None:
    batch = [a_device(f"d{n}", password("pw")) for n in range(320)]
    if exist:
        await create(at, *batch)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def only_judged(changes: Sequence[Change]) -> None:
        return

    async def at_once(app: str, names: Sequence[str]) -> dict[str, str]:
        return {name: name for name in names} if exist else {}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        # What waits for the disk would let others in anyway.
        at.store.commit = only_judged  # type: ignore[method-assign]
        at.store.find_aliases = at_once  # type: ignore[method-assign]
        before = turns
        await create(at, *batch)
        assert turns - before >= (40 if exist else 20) - 2, "once for each 16 devices, in each pass over them"
        nursery.cancel_scope.cancel()


async def test_an_app_that_goes_meanwhile_refuses_the_batch(at: Desk) -> None:
    with pytest.raises(NotFoundError):
        await at.registry.create_devices("b", raw(a_device("x")), "eve")
    at.store.before = lambda: at.store.commit([DeleteApp("a")])
    with pytest.raises(NotFoundError):
        await create(at, a_device("x"))


async def test_a_store_that_is_away_makes_none_and_one_that_cannot_take_one_takes_the_others(at: Desk) -> None:
    commit = at.store.commit
    error: StoreError | ConflictError = StoreError("disk full", retryable=True)

    async def refusing(changes: Sequence[Change]) -> None:
        if any(isinstance(change, PutDevice) and change.device.name == "b" for change in changes):
            raise error
        await commit(changes)

    at.store.commit = refusing  # type: ignore[method-assign]
    batch = [a_device("a"), a_device("b"), a_device("c")]
    with pytest.raises(StoreError, match="disk full"):
        await create(at, *batch)
    assert await at.store.count("a") == 1
    for error, names in ((StoreError("this cannot be stored"), "abc"), (ConflictError("never seen before"), "xbz")):
        results = await create(at, *(a_device(name) for name in names), secrets=True)
        assert [r.result for r in results] == ["created", "refused", "created"]
        assert results[1].error == str(error) and [bool(r.secret) for r in results] == [True, False, True]


@pytest.fixture
async def daemon(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[DaemonProcess]:
    found = await prepared(tmp_path / "dfud", "batch_max = 20\nbody_max = 4096")
    await nursery.start(found.run)
    yield found
    nursery.cancel_scope.cancel()


async def test_the_route_answers_in_order_with_counts_limits_and_roles(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin:
        assert (await ask(admin, 404, "POST", BATCH, json={"devices": []}))["error"] == "ReferenceNotFound"
        await ask(admin, 201, "POST", APPS, json={"metadata": {"name": "a"}})
        batch = {"devices": [a_device("x", site="1"), {"metadata": {}}, a_device("y", site="2")], "secrets": True}
        found = await ask(admin, 200, "POST", BATCH, json=batch)
        assert [found[key] for key in ("created", "exists", "refused", "dryRun")] == [2, 0, 1, False]
        assert [r["name"] for r in found["results"]] == ["x", "", "y"]
        assert "name" in found["results"][1]["error"] and len(found["results"][0]["secret"]) == 22
        assert {found["results"][n]["secret"] for n in (0, 2)} <= daemon.secrets, "the log is searched for them"
        dry = await ask(admin, 200, "POST", BATCH, json={"devices": [a_device("z")], "dryRun": True})
        assert (dry["created"], dry["dryRun"]) == (1, True)
        for path, labels, number in (("a", "", 2), ("a", "site=2", 1), ("a", "!site", 0)):
            counted = await ask(admin, 200, "GET", f"{APPS}/{path}/devices:count", params={"labels": labels})
            assert counted == {"count": number}
        await ask(admin, 404, "GET", f"{APPS}/b/devices:count")
        await ask(admin, 400, "GET", f"{APPS}/a/devices:count", params={"labels": "(("})
        many = await ask(admin, 413, "POST", BATCH, json={"devices": [a_device(f"m{n}") for n in range(21)]})
        assert many["message"] == "devices: 21, expected at most 20 in one request"
        large = await ask(admin, 413, "POST", BATCH, json={"devices": [a_device("m", {"x": "x" * 5000})]})
        assert "expected at most 4096" in large["message"]
        wrong: tuple[Any, ...] = ({"device": []}, {"devices": {}}, {"devices": [], "secrets": 1}, [])
        for body in wrong:
            await ask(admin, 400, "POST", BATCH, json=body)
        role = {"user": "eve", "roles": {"a": "reader"}}
        eve = {"authorization": f"Bearer {(await ask(admin, 200, 'POST', '/api/tokens/v1alpha1', json=role))['token']}"}
        await ask(admin, 403, "POST", BATCH, json={"devices": []}, headers=eve)
        await ask(admin, 200, "GET", f"{APPS}/a/devices:count", headers=eve)
        assert [d["metadata"]["name"] for d in await ask(admin, 200, "GET", f"{APPS}/a/devices", params={"after": "x"})] == ["y"]
        for name in ("devices:batch", "devices%3Abatch"):
            assert (await admin.post(f"{APPS}/a/{name}", json={"devices": []})).status_code == 200
