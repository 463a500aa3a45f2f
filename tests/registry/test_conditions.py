"""What is judged by reading is so when it is written: wishes of a firmware that is deleted, limits of how many there may be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import trio

from dfud.api import (
    App,
    Change,
    Device,
    Metadata,
    NotFoundError,
    PutDocument,
    RefusedError,
    Rollout,
    parse_selector_untrusted,
)
from dfud.model.rollout import ROLLOUTS, RolloutStatus
from dfud.registry import audit, guards
from dfud.registry.claims import Claims
from dfud.registry.firmware import FirmwareRegistry, Upload
from dfud.registry.users import Users
from dfud.wire.manifest import sign
from tests.registry.desk import KEY, T0, Desk, desk
from tests.registry.test_republish import ONE, TWO, body, deeds, manifest, publish, spec

WISH = {"version": "1.0"}


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as found:
        await found.registry.create_app(App(Metadata("a"), spec(ONE, TWO)), "admin")
        await found.registry.create_device("a", Device(Metadata("d")), "admin")
        await publish(found, sign(manifest(), ONE))
        yield found


async def of_a_device(at: Desk) -> None:
    await at.registry.set_firmware("a", "d", WISH, "eve")


async def of_the_app(at: Desk) -> None:
    await at.registry.set_firmware("a", None, WISH, "eve")


async def of_a_rule(at: Desk) -> None:
    old = await at.registry.app("a")
    rules = [{"selector": "x=y", "firmware": WISH}]
    await at.registry.update_app("a", App(old.metadata, {**old.spec, "rules": rules}), "eve")


async def of_a_rollout(at: Desk) -> None:
    made = msgspec.json.encode(Rollout(Metadata("r", "a"), {"firmware": "1.0"}, RolloutStatus()))
    await at.store.commit([PutDocument(ROLLOUTS, "a/r", made, create=True), guards.touch(guards.wishes_of("a"))])


async def of_a_group(at: Desk) -> None:
    await at.registry.groups.accept("a", parse_selector_untrusted("!x"), "!x", WISH, "eve")


@pytest.mark.parametrize("wish", [of_a_group, of_a_device, of_the_app, of_a_rule, of_a_rollout])
async def test_a_wish_that_is_stored_while_its_firmware_is_deleted_keeps_it(
    at: Desk, wish: Callable[[Desk], Awaitable[None]]
) -> None:
    """It was judged before it was stored: the firmware went, and the device was told for ever that it is not published."""
    at.store.before = lambda: wish(at)
    with pytest.raises(RefusedError, match="wanted by"):
        await at.firmware.delete("a", "1.0", "eve")
    assert (await at.firmware.get("a", "1.0")).version == "1.0"
    assert "delete-firmware" not in [what for what, _ in await deeds(at)]


async def of_a_device_by_a_user(at: Desk) -> None:
    await at.registry.set_firmware("a", "d", WISH, "eve", published=True)


async def of_the_app_by_a_user(at: Desk) -> None:
    await at.registry.set_firmware("a", None, WISH, "eve", published=True)


@pytest.mark.parametrize("wish", [of_a_group, of_a_device_by_a_user, of_the_app_by_a_user])
async def test_a_wish_whose_firmware_is_deleted_before_it_is_stored_is_refused(
    at: Desk, wish: Callable[[Desk], Awaitable[None]]
) -> None:
    """It was accepted, and the device was told for ever that its firmware is not published."""
    at.store.before = lambda: at.firmware.delete("a", "1.0", "bob")
    with pytest.raises(NotFoundError, match="no firmware 1.0 in app a: publish it first"):
        await wish(at)
    assert (await at.registry.device("a", "d")).spec.get("firmware") is None
    assert (await at.registry.app("a")).spec.get("firmware") is None
    assert await at.registry.groups.of_app("a") == []


async def test_wishes_for_what_is_published_do_not_refuse_each_other(at: Desk) -> None:
    """Each holds the guard of deletions; none replaces it."""
    await at.registry.create_device("a", Device(Metadata("e")), "admin")
    await of_a_device_by_a_user(at)
    found = await at.store.document(guards.COLLECTION, guards.deletions_in("a"))
    at.store.before = lambda: of_a_device_by_a_user(at)
    await at.registry.set_firmware("a", "e", WISH, "eve", published=True)
    assert found is not None
    assert await at.store.document(guards.COLLECTION, guards.deletions_in("a")) == found


async def test_what_a_deletion_came_before_is_judged_again(at: Desk) -> None:
    """As a rollout is: it is made with what it was judged by, or judged anew."""
    judged: list[bool] = []

    async def create(changes: Sequence[Change]) -> bool:
        judged.append(await at.store.firmware("a", "1.0") is not None)
        await at.store.commit([*changes, audit.entry(T0, "eve", "x", "a")])
        return judged[-1]

    at.store.before = lambda: at.firmware.delete("a", "1.0", "bob")
    assert await guards.held(at.store, guards.deletions_in("a"), create) is False
    assert judged == [True, False]


@pytest.mark.parametrize("wish", [of_a_device, of_a_rollout])
async def test_one_image_of_a_version_is_kept_as_well(at: Desk, wish: Callable[[Desk], Awaitable[None]]) -> None:
    await publish(at, sign(manifest(b"other", hardware="y"), ONE), b"other")
    at.store.before = lambda: wish(at)
    with pytest.raises(RefusedError, match="wanted by"):
        await at.firmware.delete_image("a", "1.0", "y", {}, "eve")
    assert [image.hardware for image in (await at.firmware.get("a", "1.0")).images] == ["x", "y"]


async def test_what_nobody_wants_is_deleted_whatever_else_changes(at: Desk) -> None:
    async def other() -> None:
        old = await at.registry.app("a")
        await at.registry.update_app("a", App(msgspec.structs.replace(old.metadata, labels={"x": "y"}), old.spec), "eve")
        await at.registry.create_device("a", Device(Metadata("e")), "eve")

    at.store.before = other
    await at.firmware.delete("a", "1.0", "eve")
    with pytest.raises(NotFoundError):
        await at.firmware.get("a", "1.0")
    assert (await at.registry.app("a")).metadata.labels == {"x": "y"}, "what was judged is not written over"


async def test_a_manifest_replaces_the_one_that_it_was_compared_with(at: Desk) -> None:
    other = FirmwareRegistry(at.store, at.bus, at.now, 1 << 20)

    async def delete() -> None:
        await other.delete("a", "1.0", "bob")

    at.store.before = delete
    second = sign(manifest(sequence=9), TWO)
    assert (await publish(at, second)).manifest == second
    assert [what for what, _ in await deeds(at)][-2:] == ["delete-firmware", "publish"], "nothing was there to replace"


async def test_of_two_that_are_signed_again_at_once_each_replaces_the_one_before(at: Desk) -> None:
    third = sign(manifest(sequence=10), ONE)

    async def other() -> None:
        process = FirmwareRegistry(at.store, at.bus, at.now, 1 << 20)
        await process.publish("a", Upload(envelope=third), body(), "bob")

    at.store.before = other
    second = sign(manifest(sequence=9), TWO)
    assert (await publish(at, second)).manifest == second
    told = [detail.partition(": ")[2] for what, detail in await deeds(at) if what == "replace-manifest"]
    assert ["sequence 5" in told[0], "sequence 10 ->" in told[1]] == [True, True]


MOST = 3


async def test_nobody_has_more_tokens_than_allowed_however_many_ask_at_once(at: Desk) -> None:
    at_each = [Users(at.store), Users(at.store)]  # as two processes have them
    refused: list[int] = []

    async def create(number: int) -> None:
        try:
            await at_each[number % 2].create("bob", {}, by="bob", now_s=T0, days=1, most=MOST)
        except RefusedError:
            refused.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(create, number)
    assert (len(await at.users.tokens("bob")), len(refused)) == (MOST, 12 - MOST)
    await at.users.create("eve", {}, by="eve", now_s=T0, days=1, most=MOST)


async def test_no_app_has_more_claims_than_allowed_however_many_ask_at_once(at: Desk) -> None:
    at_each = [Claims(at.registry, at.store, KEY, at.now) for _ in range(2)]
    refused: list[int] = []

    async def create(number: int) -> None:
        try:
            await at_each[number % 2].create("a", "bob", most=MOST)
        except RefusedError:
            refused.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(create, number)
    assert (len(await at.claims.all_of("a")), len(refused)) == (MOST, 12 - MOST)
    told = [e for _, e in await audit.read(at.store) if e.what == "create-claim"]
    assert len(told) == MOST, "what was refused is not on record"
