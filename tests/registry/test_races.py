"""Somebody else comes in between reading and writing: nothing is lost, nothing slips through, and one of two is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from dfud.api import (
    App,
    AppChanged,
    ConflictError,
    Device,
    DeviceChanged,
    Metadata,
    NotFoundError,
    PutDocument,
    RefusedError,
)
from dfud.model.credentials import verify
from dfud.registry import audit
from dfud.registry.users import COLLECTION, Forbidden, User
from dfud.registry.writing import Precondition
from tests.registry.desk import ADMIN, KEY, T0, Desk, desk


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as found:
        await found.registry.create_app(App(Metadata("a"), {"signing": {"mode": "optional"}}), "admin")
        await found.registry.create_device("a", Device(Metadata("d")), "admin")
        await found.registry.create_app(App(Metadata("b")), "admin")
        yield found


async def device(at: Desk, name: str = "d") -> Device:
    view = await at.store.device("a", name)
    assert view is not None
    return view.device


async def labelled(at: Desk) -> None:
    old = await device(at)
    metadata = Metadata("d", labels={"seen": "yes"})
    await at.registry.update_device("a", "d", Device(metadata, {**old.spec, "other": 1}), "bob")


@pytest.mark.parametrize(
    "change",
    [
        lambda at: at.registry.set_firmware("a", "d", {"version": "1"}, "eve"),
        lambda at: at.registry.new_secret("a", "d", "eve"),
        lambda at: at.registry.new_psk("a", "d", "eve"),
    ],
)
async def test_what_dfud_changes_of_a_device_keeps_what_others_changed_meanwhile(
    at: Desk, change: Callable[[Desk], Awaitable[Any]]
) -> None:
    at.store.before = lambda: labelled(at)
    secret = await change(at)
    found = await device(at)
    assert (found.spec["other"], found.metadata.labels) == (1, {"seen": "yes"})
    assert "firmware" in found.spec or found.spec["authentication"]["credentials"]
    if isinstance(secret, str):
        assert verify(found.spec, None, secret, KEY)


@pytest.mark.parametrize(
    "change",
    [
        lambda at: at.registry.new_secret("a", "d", "eve", keep=0),
        lambda at: at.registry.set_firmware("a", "d", {"hold": True}, "eve"),
        lambda at: at.registry.set_firmware("a", None, {"hold": True}, "eve"),
        lambda at: at.registry.delete_device("a", "d", Precondition(), "eve"),
        lambda at: at.registry.create_device("a", Device(Metadata("e")), "eve"),
        lambda at: at.registry.delete_app("a", Precondition(), "eve"),
    ],
)
async def test_what_a_user_changed_who_hung_up_is_told_to_everybody(
    at: Desk, change: Callable[[Desk], Awaitable[Any]]
) -> None:
    """It was stored and nobody was told: a revoked secret went on working, and a device was not sent what is wanted of it."""
    told: list[object] = []
    at.bus.subscribe(DeviceChanged, told.append)
    at.bus.subscribe(AppChanged, told.append)

    async def hang_up() -> None:
        scope.cancel()

    at.store.before = hang_up
    with trio.CancelScope() as scope:
        await change(at)
    await at.registry.create_device("b", Device(Metadata("behind")), "bob")
    entries = [e for _, e in await audit.read(at.store) if e.by == "eve"]
    assert len(told) - 1 == len(entries) == 1


async def test_a_change_that_names_what_it_read_is_refused_when_that_has_changed(at: Desk) -> None:
    read = await device(at)
    at.store.before = lambda: labelled(at)
    with pytest.raises(ConflictError, match="changed since it was read"):
        await at.registry.update_device("a", "d", Device(read.metadata, {"mine": 1}), "eve")
    assert "mine" not in (await device(at)).spec


async def test_who_may_sign_is_judged_by_the_record_that_is_replaced(at: Desk) -> None:
    """A manager's PUT with the signing that an admin was just changing brought the old one back."""
    old = await at.registry.app("a")

    async def admin() -> None:
        strict = {"signing": {"mode": "required", "keys": []}}
        await at.registry.update_app("a", App(Metadata("a"), strict), "admin")

    at.store.before = admin
    with pytest.raises(Forbidden, match=r"spec\.signing"):
        await at.registry.update_app("a", App(Metadata("a"), {**old.spec, "x": 1}), "manager", may_sign=False)
    assert (await at.registry.app("a")).spec == {"signing": {"mode": "required", "keys": []}}


async def test_of_two_devices_that_take_one_name_at_once_one_has_it(at: Desk) -> None:
    taken: list[str] = []

    async def take(given: Device) -> None:
        try:
            await at.registry.create_device("a", given, "eve")
        except ConflictError:
            return
        taken.append(given.name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, Device(Metadata("x")))
        nursery.start_soon(take, Device(Metadata("y"), {"alias": ["x"]}))
    assert len(taken) == 1
    await at.registry.create_device("a", Device(Metadata("z")), "eve")


async def test_two_admins_who_end_each_others_token_leave_one(at: Desk) -> None:
    tokens = [(await at.users.create("admin", {"*": "admin"}, by="x", now_s=T0, days=1))[0] for _ in range(2)]
    first, second = (User("admin", t.roles, t.prefix) for t in tokens)
    at.store.before = lambda: at.users.delete(tokens[0].prefix, second, T0)
    with pytest.raises((RefusedError, NotFoundError)):
        await at.users.delete(tokens[1].prefix, first, T0)
    assert [t.prefix for t in await at.users.tokens()] == [tokens[1].prefix]


async def test_of_many_admin_tokens_that_end_at_once_one_is_left(at: Desk) -> None:
    tokens = [(await at.users.create("admin", {"*": "admin"}, by="x", now_s=T0, days=1))[0] for _ in range(6)]

    async def end(prefix: str) -> None:
        try:
            await at.users.delete(prefix, ADMIN, T0)
        except (RefusedError, ConflictError, NotFoundError):
            return

    for _ in range(3):
        async with trio.open_nursery() as nursery:
            for token in tokens:
                nursery.start_soon(end, token.prefix)
        assert len(await at.users.tokens()) >= 1
    assert len(await at.users.tokens()) == 1


@pytest.mark.parametrize(
    ("mine", "other", "ends"),
    [
        ({"a": "reader"}, {"a": "reader"}, True),
        ({"a": "reader"}, {}, True),
        ({"a": "reader"}, {"a": "manager"}, False),
        ({"a": "reader"}, {"b": "reader"}, False),
        ({"a": "admin"}, {"*": "admin"}, False),
        ({"*": "reader"}, {"a": "reader"}, True),
        ({"*": "manager"}, {"*": "admin"}, False),
        ({"*": "admin"}, {"*": "admin"}, True),
    ],
)
async def test_a_token_ends_those_of_its_user_that_may_no_more(at: Desk, mine: Any, other: Any, ends: bool) -> None:
    """A reader's token ended the same user's admin tokens, even the last."""
    await at.users.create("someone", {"*": "admin"}, by="x", now_s=T0, days=1)
    eve, _ = await at.users.create("eve", mine, by="x", now_s=T0, days=1)
    target, _ = await at.users.create("eve", other, by="x", now_s=T0, days=1)
    who = User("eve", eve.roles, eve.prefix)
    if ends:
        await at.users.delete(target.prefix, who, T0)
    else:
        with pytest.raises(Forbidden, match="may more than the one that you use"):
            await at.users.delete(target.prefix, who, T0)
    await at.users.delete(eve.prefix, who, T0)
    left = {t.prefix for t in await at.users.tokens("eve")}
    assert left == (set() if ends else {target.prefix})


async def test_nobody_but_an_admin_ends_the_token_of_another(at: Desk) -> None:
    token, _ = await at.users.create("bob", {}, by="x", now_s=T0, days=1)
    for roles in ({"a": "admin"}, {"*": "manager"}):
        with pytest.raises(NotFoundError):
            await at.users.delete(token.prefix, User("eve", roles, "drg_eveeve"), T0)  # type: ignore[arg-type]
    await at.users.delete(token.prefix, ADMIN, T0)


async def test_expired_admin_tokens_neither_count_nor_stay(at: Desk) -> None:
    old, _ = await at.users.create("admin", {"*": "admin"}, by="x", now_s=T0 - 100 * 86400, days=1)
    last, _ = await at.users.create("admin", {"*": "admin"}, by="x", now_s=T0, days=1)
    me = User("admin", last.roles, last.prefix)
    with pytest.raises(RefusedError, match="last admin token"):
        await at.users.delete(last.prefix, me, T0)
    with pytest.raises(RefusedError, match="last admin token"):
        await at.users.delete(last.prefix, ADMIN, T0)
    await at.users.delete(old.prefix, me, T0)
    assert [t.prefix for t in await at.users.tokens()] == [last.prefix]


async def test_a_token_that_cannot_be_read_is_nobodys_and_an_admin_ends_it(at: Desk) -> None:
    good, text = await at.users.create("admin", {"*": "admin"}, by="x", now_s=T0, days=1)
    await at.store.commit([PutDocument(COLLECTION, "drg_broken", b"{")])
    assert await at.users.of_token("drg_broken_" + "x" * 36, T0) is None
    assert [t.prefix for t in await at.users.tokens()] == [good.prefix]
    assert (await at.users.of_token(text, T0)) == User("admin", {"*": "admin"}, good.prefix)
    await at.users.delete("drg_broken", ADMIN, T0)
    assert await at.store.document(COLLECTION, "drg_broken") is None
