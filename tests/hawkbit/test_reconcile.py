"""Drift between dfud, hawkBit and the device: found, and mended where that is plain."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from dfud_hawkbit.reconcile import Reconciler, Report

from dfud.api import NotFoundError, PutDocument, State
from dfud.wire.messages import Type
from tests.hawkbit.house import House, Person, Server, house_at, person_at, until, whole_way

NEW = b"new image " * 3000


async def drift(house: House, *, dry_run: bool = True) -> Report:
    return await Reconciler(house.store).run(house.app, dry_run=dry_run)


def findings(report: Report) -> dict[str, str]:
    return {row.device: row.finding for row in report.rows}


async def in_sync(house: House) -> bool:
    return not (await drift(house)).rows


async def updated(house: House, person: Person, name: str = "d1") -> None:
    device = house.devices[name]
    action = await house.action_of(name)
    await whole_way(device)
    await until("it is finished", lambda: person.finished(house.target(name), action))
    await house.quiet()


async def test_a_fleet_in_order_has_no_findings(hawkbit: Server, tmp_path: Path) -> None:
    async with house_at(hawkbit, tmp_path) as house, person_at(hawkbit) as person:
        await house.device()
        await house.publish("2.0", NEW)
        await house.want("2.0")
        await house.action_of()
        assert findings(await drift(house)) == {}
        await updated(house, person)
        report = await drift(house)
        assert (report.devices, report.in_sync, report.rows) == (1, 1, [])
        with pytest.raises(NotFoundError):
            await Reconciler(house.store).run("nowhere", dry_run=True)


async def test_a_target_that_somebody_deleted_is_made_again(hawkbit: Server, tmp_path: Path) -> None:
    async with house_at(hawkbit, tmp_path) as house, person_at(hawkbit) as person:
        await house.device()
        await house.publish("2.0", NEW)
        await house.want("2.0")
        await updated(house, person)
        await person.ask("DELETE", f"/targets/{house.target()}")
        assert findings(await drift(house)) == {"d1": "target-missing"}
        assert findings(await drift(house)) == {"d1": "target-missing"}, "a dry run mends nothing"
        report = await drift(house, dry_run=False)
        assert report.mended == 1
        await until("it is in sync again", lambda: in_sync(house))
        assert await person.installed(house.target()) == "2.0"


async def test_a_wish_that_hawkbit_has_not_is_assigned(hawkbit: Server, tmp_path: Path) -> None:
    """As after a restore of dfud's records, or of hawkBit's database."""
    async with house_at(hawkbit, tmp_path) as house, person_at(hawkbit) as person:
        await house.device()
        await house.publish("2.0", NEW)
        await house.quiet()
        link = await house.link()
        assert link is not None
        pretended = msgspec.msgpack.encode(msgspec.structs.replace(link, wish="2.0"))
        await house.records.commit([PutDocument("hawkbit.link", f"{house.app}/d1", pretended)])
        await house.want("2.0")
        await house.quiet()
        assert await person.actions(house.target()) == []
        assert findings(await drift(house)) == {"d1": "desired-differs"}
        report = await drift(house, dry_run=False)
        assert report.mended == 1
        await house.action_of()
        assert await person.assigned(house.target()) == "2.0"
        await updated(house, person)
        await until("it is in sync", lambda: in_sync(house))


async def test_what_hawkbit_believes_to_be_installed_is_put_right(hawkbit: Server, tmp_path: Path) -> None:
    async with house_at(hawkbit, tmp_path) as house, person_at(hawkbit) as person:
        device = await house.device()
        for version, image in (("2.0", NEW), ("3.0", NEW + b"3")):
            await house.publish(version, image)
            await house.want(version)
            await updated(house, person)
        number = (await person.ask("GET", f"/targets/{house.target()}/installedDS"))["id"]
        old = await person.ask("GET", "/distributionsets", params={"q": f"name=={house.app};version==2.0"})
        assert old["content"][0]["id"] != number
        path = f"/distributionsets/{old['content'][0]['id']}/assignedTargets"
        await person.ask("POST", path, params={"offline": "true"}, json=[{"id": house.target()}])
        assert await person.installed(house.target()) == "2.0"
        assert device.image == NEW + b"3"
        assert findings(await drift(house)) in ({"d1": "desired-differs"}, {"d1": "installed-differs"})
        await drift(house, dry_run=False)

        async def right() -> bool:
            return await person.installed(house.target()) == "3.0"

        await until("hawkBit knows what runs", right)
        await until("it is in sync", lambda: in_sync(house))


async def test_a_firmware_that_was_left_is_a_finding_that_nothing_mends(hawkbit: Server, tmp_path: Path) -> None:
    async with house_at(hawkbit, tmp_path) as house:
        device = await house.device()
        await house.publish("2.0", NEW)
        await house.want("2.0")
        await house.action_of()
        await device.update(good=False, text="it crashed")
        await house.deployed("d1", State.ROLLED_BACK)
        await house.quiet()
        for dry_run in (True, False):
            report = await drift(house, dry_run=dry_run)
            assert findings(report) == {"d1": "failed-here"}
            assert report.mended == 0
        command = await device.poll()
        assert command is not None and command.type is not Type.UPDATE


async def test_a_stuck_target_is_freed(hawkbit: Server, tmp_path: Path) -> None:
    """An active action that somebody deletes leaves its target pending for ever: assigning what runs, and again, frees it."""
    async with house_at(hawkbit, tmp_path, poll_s=3600.0, resync_s=3600.0) as house, person_at(hawkbit) as person:
        await house.device()
        for version, image in (("2.0", NEW), ("3.0", NEW + b"3")):
            await house.publish(version, image)
        await house.want("2.0")
        await updated(house, person)
        await house.want("3.0")
        action = await house.action_of()
        await house.quiet()
        await person.ask("DELETE", "/actions", params={"q": f"id=={action}"})
        assert await person.update_status(house.target()) == "pending"
        found: set[str] = set()

        async def freed() -> bool:
            # The first finds that the action is gone, and the wish goes with it; then the target is seen to be stuck.
            found.update(findings(await drift(house, dry_run=False)).values())
            return await person.update_status(house.target()) == "in_sync"

        await until("it is free", freed)
        assert "stuck" in found
        assert not await house.is_wanted("3.0")


async def test_a_target_without_a_device_is_only_told(hawkbit: Server, tmp_path: Path) -> None:
    async with house_at(hawkbit, tmp_path) as house, person_at(hawkbit) as person:
        stray = f"{house.app}:stray"
        assert (await person.ddi("GET", stray)).status_code == 200
        report = await drift(house, dry_run=False)
        assert findings(report) == {stray: "target-without-device"}
        assert (await person.ddi("GET", stray)).status_code == 200
