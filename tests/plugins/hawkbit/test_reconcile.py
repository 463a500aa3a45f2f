"""Drift between dfud, hawkBit and the device: found, and mended where that is plain."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from dfud_hawkbit.reconcile import Reconciler, Report

from dfud.api import NotFoundError, PutDocument, State
from dfud.wire.messages import Type
from tests.plugins.hawkbit.harness import Harness, Person, Server, harness_at, person_at, until, whole_way
from tests.plugins.hawkbit.model.routes import Response
from tests.plugins.hawkbit.server import Hawkbit

NEW = b"new image " * 3000


async def drift(harness: Harness, *, dry_run: bool = True) -> Report:
    return await Reconciler(harness.store).run(harness.app, dry_run=dry_run)


def findings(report: Report) -> dict[str, str]:
    return {row.device: row.finding for row in report.rows}


async def in_sync(harness: Harness) -> bool:
    return not (await drift(harness)).rows


async def updated(harness: Harness, person: Person, name: str = "d1") -> None:
    device = harness.devices[name]
    action = await harness.action_of(name)
    await whole_way(device)
    await until("it is finished", lambda: person.finished(harness.target(name), action))
    await harness.quiet()


async def test_a_fleet_in_order_has_no_findings(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.device()
        await harness.publish("2.0", NEW)
        await harness.want("2.0")
        await harness.action_of()
        assert findings(await drift(harness)) == {}
        await updated(harness, person)
        report = await drift(harness)
        assert (report.devices, report.in_sync, report.rows) == (1, 1, [])
        with pytest.raises(NotFoundError):
            await Reconciler(harness.store).run("nowhere", dry_run=True)


async def test_a_target_that_somebody_deleted_is_made_again(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.device()
        await harness.publish("2.0", NEW)
        await harness.want("2.0")
        await updated(harness, person)
        await person.ask("DELETE", f"/targets/{harness.target()}")
        assert findings(await drift(harness)) == {"d1": "target-missing"}
        assert findings(await drift(harness)) == {"d1": "target-missing"}, "a dry run mends nothing"
        report = await drift(harness, dry_run=False)
        assert report.mended == 1
        await until("it is in sync again", lambda: in_sync(harness))
        assert await person.installed(harness.target()) == "2.0"


async def test_a_wish_that_hawkbit_has_not_is_assigned(hawkbit: Server, tmp_path: Path) -> None:
    """As after a restore of dfud's records, or of hawkBit's database."""
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.device()
        await harness.publish("2.0", NEW)
        await harness.quiet()
        link = await harness.link()
        assert link is not None
        pretended = msgspec.msgpack.encode(msgspec.structs.replace(link, wish="2.0"))
        await harness.records.commit([PutDocument("hawkbit.link", f"{harness.app}/d1", pretended)])
        await harness.want("2.0")
        await harness.quiet()
        assert await person.actions(harness.target()) == []
        assert findings(await drift(harness)) == {"d1": "desired-differs"}
        report = await drift(harness, dry_run=False)
        assert report.mended == 1
        await harness.action_of()
        assert await person.assigned(harness.target()) == "2.0"
        await updated(harness, person)
        await until("it is in sync", lambda: in_sync(harness))


async def test_what_hawkbit_believes_to_be_installed_is_put_right(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        for version, image in (("2.0", NEW), ("3.0", NEW + b"3")):
            await harness.publish(version, image)
            await harness.want(version)
            await updated(harness, person)
        number = (await person.ask("GET", f"/targets/{harness.target()}/installedDS"))["id"]
        old = await person.ask("GET", "/distributionsets", params={"q": f"name=={harness.app};version==2.0"})
        assert old["content"][0]["id"] != number
        path = f"/distributionsets/{old['content'][0]['id']}/assignedTargets"
        await person.ask("POST", path, params={"offline": "true"}, json=[{"id": harness.target()}])
        assert await person.installed(harness.target()) == "2.0"
        assert device.image == NEW + b"3"
        assert findings(await drift(harness)) in ({"d1": "desired-differs"}, {"d1": "installed-differs"})
        await drift(harness, dry_run=False)

        async def right() -> bool:
            return await person.installed(harness.target()) == "3.0"

        await until("hawkBit knows what runs", right)
        await until("it is in sync", lambda: in_sync(harness))


async def test_a_firmware_that_was_left_is_a_finding_that_nothing_mends(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness:
        device = await harness.device()
        await harness.publish("2.0", NEW)
        await harness.want("2.0")
        await harness.action_of()
        await device.update(good=False, text="it crashed")
        await harness.deployed("d1", State.ROLLED_BACK)
        await harness.quiet()
        for dry_run in (True, False):
            report = await drift(harness, dry_run=dry_run)
            assert findings(report) == {"d1": "failed-here"}
            assert report.mended == 0
        command = await device.poll()
        assert command is not None and command.type is not Type.UPDATE


async def test_a_stuck_target_is_freed(hawkbit: Server, tmp_path: Path) -> None:
    """An active action that somebody deletes leaves its target pending for ever: assigning what runs, and again, frees it."""
    async with harness_at(hawkbit, tmp_path, poll_s=3600.0, resync_s=3600.0) as harness, person_at(hawkbit) as person:
        await harness.device()
        for version, image in (("2.0", NEW), ("3.0", NEW + b"3")):
            await harness.publish(version, image)
        await harness.want("2.0")
        await updated(harness, person)
        await harness.want("3.0")
        action = await harness.action_of()
        await harness.quiet()
        await person.ask("DELETE", "/actions", params={"q": f"id=={action}"})
        assert await person.update_status(harness.target()) == "pending"
        found: set[str] = set()

        async def freed() -> bool:
            # The first finds that the action is gone, and the wish goes with it; then the target is seen to be stuck.
            found.update(findings(await drift(harness, dry_run=False)).values())
            return await person.update_status(harness.target()) == "in_sync"

        await until("it is free", freed)
        assert "stuck" in found
        assert not await harness.is_wanted("3.0")


async def test_a_target_without_a_device_is_only_told(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        stray = f"{harness.app}:stray"
        assert (await person.ddi("GET", stray)).status_code == 200
        report = await drift(harness, dry_run=False)
        assert findings(report) == {stray: "target-without-device"}
        assert (await person.ddi("GET", stray)).status_code == 200


async def test_what_hawkbit_goes_on_refusing_is_not_called_mended(hawkbit: Hawkbit, tmp_path: Path) -> None:
    model = hawkbit.model
    if model is None:
        pytest.skip("a real hawkBit does not refuse on request")
    no = b'{"errorCode": "hawkbit.server.error.repo.constraintViolation", "message": "not this one"}'
    refusal = Response(400, no, {"content-type": "application/json"})
    async with harness_at(hawkbit, tmp_path) as harness:
        await harness.device()
        await harness.publish("2.0", NEW)
        await harness.quiet()
        model.fail_next("POST", "/assignedTargets", refusal, times=100_000)
        try:
            await harness.want("2.0")

            async def refused() -> bool:
                link = await harness.link()
                return link is not None and "not this one" in link.problem

            await until("it is refused", refused)
            report = await drift(harness, dry_run=False)
            assert (report.mended, report.failed, findings(report)) == (0, 1, {"d1": "refused"})
            assert report.rows[0].result.startswith("still differs: ") and "not this one" in report.rows[0].result
        finally:
            model.fail_next_clear()
        report = await drift(harness, dry_run=False)
        assert (report.mended, report.failed, report.rows[0].result) == (1, 0, "mended")
        assert await in_sync(harness)


async def test_what_is_still_under_way_is_not_called_mended(
    hawkbit: Hawkbit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfud_hawkbit.reconcile.STILL_S", 1.0)
    model = hawkbit.model
    if model is None:
        pytest.skip("a real hawkBit is not away on request")
    async with harness_at(hawkbit, tmp_path, retry_s=0.05, retry_max_s=0.05) as harness, person_at(hawkbit) as person:
        await harness.device()
        await harness.quiet()
        await person.ask("DELETE", f"/targets/{harness.target()}")
        model.fail_next("POST", "/rest/v1/targets", Response(503), times=100_000)
        try:
            report = await drift(harness, dry_run=False)
        finally:
            model.fail_next_clear()
        assert (report.mended, report.failed) == (0, 0)
        assert [row.result for row in report.rows] == ["under way"]
        await until("it is mended later", lambda: in_sync(harness))


async def test_a_deleted_target_is_made_again_and_called_so_only_then(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.device()
        await person.ask("DELETE", f"/targets/{harness.target()}")
        report = await drift(harness, dry_run=False)
        assert [(row.finding, row.result) for row in report.rows] == [("target-missing", "mended")]
        assert await in_sync(harness), "it was so when it was said"
