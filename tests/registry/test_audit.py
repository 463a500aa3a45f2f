"""The audit log: what is done and the entry that tells of it are one commit; readers choose; nobody changes it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from dfud_local.store import LocalStore

from dfud.api import (
    App,
    Bus,
    Change,
    Deployment,
    Device,
    Metadata,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    RefusedError,
    State,
    StoreError,
)
from dfud.controller.config import ControllerConfig
from dfud.controller.controller import Controller
from dfud.controller.packages import Packages
from dfud.registry import audit, guards
from dfud.registry.audit import Filter
from dfud.registry.registry import Registry
from dfud.registry.users import User, Users
from tests.cli.test_dfuctl import Dfuctl, dfuctl

__all__ = ["dfuctl"]
ADMIN = User("admin", {"*": "admin"})
T0 = 1_800_000_000.0


class WatchedStore(LocalStore):
    """Remembers every commit; refuses them all while `broken`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.commits: list[list[Change]] = []
        self.broken = False

    async def commit(self, changes: Sequence[Change]) -> None:
        if self.broken:
            raise StoreError("away", retryable=True)
        await super().commit(changes)
        self.commits.append(list(changes))


def told(changes: Sequence[Change]) -> list[str]:
    return [
        json.loads(c.value)["what"] for c in changes if isinstance(c, PutDocument) and c.collection == audit.COLLECTION
    ]


@pytest.fixture
async def store(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[WatchedStore]:
    found = WatchedStore(tmp_path / "state")
    await nursery.start(found.run, Bus())
    yield found
    nursery.cancel_scope.cancel()


async def test_a_token_and_its_entry_are_one_commit(store: WatchedStore) -> None:
    users = Users(store)
    token, _ = await users.create("eve", {"a": "reader"}, by="admin", now_s=T0, days=1)
    await users.delete(token.prefix, ADMIN, T0)
    assert [told(c) for c in store.commits] == [["create-token"], ["delete-token"]]
    kept = [[c for c in commit if getattr(c, "collection", "") != guards.COLLECTION] for commit in store.commits]
    assert [len(c) for c in kept] == [2, 2]
    store.broken = True
    with pytest.raises(StoreError):
        await users.create("eve", {}, by="admin", now_s=T0, days=1)
    store.broken = False
    assert await users.tokens() == []
    assert len(await audit.read(store)) == 2, "what did not happen is not on record either"


@pytest.mark.parametrize(("what", "state"), [("retry", State.FAILED), ("cancel", State.FETCHING)])
async def test_a_retry_and_a_cancel_and_their_entries_are_one_commit(
    store: WatchedStore, nursery: trio.Nursery, tmp_path: Path, what: str, state: State
) -> None:
    bus = Bus()
    packages = Packages(store, tmp_path / "packages", disk_bytes=1 << 20, memory_bytes=1 << 20, workers=1)
    controller = Controller(store, bus, packages, ControllerConfig(), lambda: T0)
    blocked = state is State.FAILED
    deployment = Deployment(
        id="id",
        app="a",
        device="d",
        version="1.1",
        sha256="00" * 32,
        state=state,
        created_s=T0,
        updated_s=T0,
        blocks=blocked,
    )
    await store.commit([PutApp(App(Metadata("a"))), PutDevice(Device(Metadata("d", "a")))])
    await store.commit([PutDeployment(deployment)])
    store.commits.clear()
    ask = controller.retry if what == "retry" else controller.cancel
    entry = audit.entry(T0, "eve", what, "a/d")
    store.broken = True
    with pytest.raises(StoreError):
        await ask("a", "d", "eve", [entry])
    assert store.commits == []
    store.broken = False
    await ask("a", "d", "eve", [entry])
    (changes,) = store.commits
    assert told(changes) == [what]
    (put,) = [c for c in changes if isinstance(c, PutDeployment)]
    assert (put.deployment.blocks, put.entry is not None) == (not blocked, True)
    with pytest.raises(RefusedError, match="there is nothing to"):
        await ask("a", "d", "eve", [audit.entry(T0 + 1, "eve", what, "a/d")])
    assert len(store.commits) == 1, "what was refused is not on record"


async def test_readers_choose_by_user_deed_target_and_time(store: WatchedStore) -> None:
    rows = [
        ("eve", "create", "a"),
        ("eve", "create", "a/d"),
        ("bob", "publish", "a/1.0"),
        ("bob", "create", "ab"),
        ("eve", "delete", "a/d/x"),
    ]
    for number, (by, what, target) in enumerate(rows):
        await store.commit([audit.entry(T0 + number, by, what, target)])

    async def found(limit: int = 200, after: str = "", **wanted: Any) -> list[int]:
        entries = await audit.read(store, Filter(**wanted), limit=limit, after=after)
        return [int(e.at_s - T0) for _, e in entries]

    assert await found() == [0, 1, 2, 3, 4]
    assert await found(by="bob") == [2, 3]
    assert await found(what="create", by="eve") == [0, 1]
    assert await found(app="a") == [0, 1, 2, 4]
    assert await found(target="a/d") == [1, 4]
    assert await found(since_s=T0 + 2) == [2, 3, 4]
    assert await found(since_s=T0 + 1, until_s=T0 + 3) == [1, 2]
    assert await found(limit=2, by="eve") == [0, 1]
    first = (await audit.read(store, limit=2))[-1][0]
    assert await found(after=first, by="eve") == [4]


async def test_more_entries_than_a_page_are_searched(store: WatchedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "PAGE", 3)
    await store.commit([audit.entry(T0 + n, "eve" if n % 5 else "bob", "x", "a") for n in range(20)])
    assert [e.at_s - T0 for _, e in await audit.read(store, Filter(by="bob"))] == [0, 5, 10, 15]
    assert len(await audit.read(store)) == 20


async def numbers(store: WatchedStore, **options: Any) -> list[str]:
    return [e.what for _, e in await audit.read_newest(store, **options)]


async def test_a_clock_that_is_set_back_hides_no_entry_and_changes_no_order(store: WatchedStore) -> None:
    """Keys went by the clock: what was done after it was set back stood before what was read already."""
    for number, at_s in enumerate((T0, T0 - 300 * 86400, T0 - 300 * 86400 + 5, T0 + 1, 0.0, -1.0)):
        await store.commit([audit.entry(at_s, "eve", str(number), "a")])
    everything = await audit.read(store)
    assert [e.what for _, e in everything] == list("012345")
    assert await numbers(store) == list("543210")
    seen = everything[2][0]
    assert [e.what for _, e in await audit.read(store, after=seen)] == list("345"), "whoever reads on misses nothing"
    assert [e.what for _, e in await audit.read(store, Filter(since_s=T0))] == list("03")
    assert [e.what for _, e in await audit.read(store, Filter(until_s=T0))] == list("1245")
    assert await numbers(store, wanted=Filter(since_s=T0)) == list("30")


async def test_a_restart_with_a_clock_set_back_goes_on_behind_what_is_stored(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.commit([audit.entry(T0 + n, "eve", str(n), "a") for n in range(3)])
    monkeypatch.setattr(audit, "_numbers", audit._Numbers())
    await audit.follow(store)
    await store.commit([audit.entry(T0 - 1e6, "eve", "3", "a")])
    assert [e.what for _, e in await audit.read(store)] == list("0123")
    assert await numbers(store) == list("3210")


async def test_the_newest_are_found_behind_gaps_and_in_crowds(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PAGE", 4)
    monkeypatch.setattr(audit, "_numbers", audit._Numbers())
    times = [T0 - 20 * 365 * 86400, *(T0 + n * 1e-6 for n in range(30)), T0 + 86400, *(T0 + 90000 + n for n in range(30))]
    await store.commit([audit.entry(at_s, "eve" if n % 3 else "bob", str(n), "a") for n, at_s in enumerate(times)])
    backwards = [str(n) for n in reversed(range(len(times)))]
    assert await numbers(store) == backwards
    assert await numbers(store, limit=7) == backwards[:7]
    assert await numbers(store, wanted=Filter(by="bob"), limit=200) == [n for n in backwards if int(n) % 3 == 0]
    # In pieces: each begins before the last key of the one before it.
    found: list[str] = []
    before = ""
    while piece := await audit.read_newest(store, limit=5, before=before):
        before = piece[-1][0]
        found += [e.what for _, e in piece]
    assert found == backwards
    # Another process wrote what this one does not know of.
    monkeypatch.setattr(audit, "_numbers", audit._Numbers())
    assert await numbers(store, limit=3) == backwards[:3]


async def test_an_entry_that_cannot_be_read_hides_no_other(store: WatchedStore) -> None:
    await store.commit([audit.entry(T0, "eve", "0", "a")])
    await store.commit([PutDocument(audit.COLLECTION, f"{int(T0 * 1e6) + 1:020d}-00000000", b"{")])
    await store.commit([audit.entry(T0 + 1, "eve", "1", "a")])
    assert [e.what for _, e in await audit.read(store)] == ["0", "1"]
    assert await numbers(store) == ["1", "0"]


async def test_the_entry_of_a_change_says_which_keys_and_which_versions(store: WatchedStore) -> None:
    registry = Registry(store, Bus(), bytes(32), lambda: T0)
    await registry.create_app(App(Metadata("a")), "eve")
    await registry.create_device("a", Device(Metadata("d"), {"alias": ["x"]}), "eve")
    await registry.set_firmware("a", "d", {"version": "1.0"}, "eve")
    await registry.set_firmware("a", "d", {"version": "1.1", "hold": True}, "eve")
    await registry.set_firmware("a", "d", None, "eve")
    await registry.set_firmware("a", None, {"version": "1.2"}, "eve")
    rule = {"selector": "channel=beta", "firmware": {"version": "1.3"}}
    await registry.update_app("a", App(Metadata("a"), {"firmware": {"version": "1.2"}, "rules": [rule]}), "eve")
    secret = await registry.new_secret("a", "d", "eve")
    await registry.update_device("a", "d", Device(Metadata("d", labels={"l": "v"}), {"x": "y"}), "eve")
    found = [e.detail for _, e in await audit.read(store)]
    assert found == [
        "",
        "spec.alias",
        "spec.firmware (none -> 1.0)",
        "spec.firmware (1.0 -> 1.1 hold)",
        "spec.firmware (1.1 hold -> none)",
        "spec.firmware (none -> 1.2)",
        "spec.rules (none -> channel=beta 1.3)",
        "spec.authentication",
        "spec.alias, spec.authentication, spec.x, metadata.labels",
    ]
    assert not any(secret in detail for detail in found)


async def test_the_command_line_has_the_filters_and_an_apps_admin_sees_his_app(dfuctl: Dfuctl, tmp_path: Path) -> None:
    await dfuctl("app", "create", "a", "--unsigned")
    await dfuctl("app", "create", "b", "--unsigned")
    await dfuctl("--app", "a", "device", "create", "d")

    async def targets(*arguments: str, run: Dfuctl = dfuctl) -> list[str]:
        return [e["target"] for e in json.loads(await run("-o", "json", *arguments))]

    assert await targets("audit", "--what", "create") == ["a", "b", "a/d"]
    assert await targets("audit", "--what", "create", "--target", "a") == ["a", "a/d"]
    assert await targets("audit", "--since", "2100-01-01") == []
    assert await targets("audit", "--until", "2001-01-01T00:00:00Z") == []
    assert len(await targets("audit", "--by", "admin", "--limit", "2")) == 2
    assert "expected 2026-11-25" in await dfuctl("audit", "--since", "yesterday", fails=True)
    token = await dfuctl("token", "create", "--user", "ann", "--role", "a=admin")
    ann = Dfuctl(tmp_path / "ann")
    url = json.loads(await dfuctl("-o", "json", "context"))[0]["url"]
    await ann("login", url, "--token", token)
    assert set(await targets("--app", "a", "audit", "--of-app", run=ann)) == {"a", "a/d"}
    assert "this needs the role admin" in await ann("audit", fails=True)
    assert "no app b" in await ann("--app", "b", "audit", "--of-app", fails=True)
