"""What goes wrong in one record, row, device or firmware costs that one."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from dfud_hawkbit.records import LINKS, SETS

from dfud.api import DeleteDevice, Device, Metadata, PutDevice, PutDocument, UnreadableError, faults
from tests.plugins.hawkbit.harness import Server, harness_at, person_at, until, whole_way
from tests.plugins.hawkbit.model.routes import Response
from tests.plugins.hawkbit.server import Hawkbit

NEW = b"new image " * 3000


def counted(where: str) -> int:
    return faults().get(where, 0)


async def test_records_that_cannot_be_read_are_made_again(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.device()
        await harness.device("d2")
        await harness.publish("2.0", NEW)
        await harness.quiet()
        await harness.stop()
        await harness.start()
        await harness.records.commit(
            [
                PutDocument(LINKS, f"{harness.app}/d1", b"\xc1 not a record"),
                PutDocument(SETS, f"{harness.app}/2.0", b"\x93\x01\x02"),
            ]
        )
        await harness.stop()
        before = counted("hawkbit.record")
        await harness.start()
        assert counted("hawkbit.record") >= before + 2
        await harness.registered()
        for name in ("d1", "d2"):
            await harness.want("2.0", name)
            action = await harness.action_of(name)
            await whole_way(harness.simulate(name))
            await until("it is finished", partial(person.finished, harness.target(name), action))
        assert harness.store.sync.known.problems == {}


async def test_an_odd_row_of_the_feed_costs_that_row(hawkbit: Hawkbit, tmp_path: Path) -> None:
    if hawkbit.model is None:
        pytest.skip("a real hawkBit does not give odd rows on request")
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.device()
        action = await person.assign(await person.simple_set("2.0", NEW), harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))
        rows = [None, {"id": "one"}, {"id": 2, "_links": {"target": 5}}, {"id": -1, "active": True}]
        body = json.dumps({"content": rows, "total": 4, "size": 4}).encode()
        before = counted("hawkbit.row")
        hawkbit.model.fail_next("GET", "/rest/v1/actions", Response(200, body, {"content-type": "application/json"}))

        async def seen() -> bool:
            return counted("hawkbit.row") >= before + 3

        await until("they are counted", seen)
        assert not harness.store.sync.worker.health.problem
        await whole_way(harness.devices["d1"])
        await until("it is finished", lambda: person.finished(harness.target(), action))


@pytest.mark.parametrize("step", ["offer", "order", "feedback", "attributes"])
async def test_a_defect_at_one_device_is_that_devices(
    hawkbit: Server, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.device("d1")
        await harness.device("d2")
        client, before = harness.store.sync.client, counted("hawkbit.device")
        ask, broken = getattr(client, step), harness.target("d1")

        async def odd(target: str, *arguments: Any, **more: Any) -> Any:
            if target == broken:
                raise KeyError("a defect")
            return await ask(target, *arguments, **more)

        monkeypatch.setattr(client, step, odd)
        number = await person.simple_set("2.0", NEW)
        await person.assign(number, harness.target("d1"), harness.target("d2"))
        (action,) = await person.actions(harness.target("d2"))
        await until("the other is wanted", lambda: harness.is_wanted("2.0", "d2"))
        for name in ("d1", "d2"):
            await harness.devices[name].poll()
        await whole_way(harness.devices["d2"])
        await until("the other is finished", lambda: person.finished(harness.target("d2"), action["id"]))

        async def told() -> bool:
            problem = harness.store.sync.known.problems.get(f"{harness.app}/d1", "")
            return "KeyError" in problem and counted("hawkbit.device") > before

        await until("it is counted and told", told)
        monkeypatch.setattr(client, step, ask)
        (action,) = await person.actions(harness.target("d1"))
        await until("it is tried again", lambda: harness.is_wanted("2.0", "d1"))
        await whole_way(harness.devices["d1"])
        await until("and finished", lambda: person.finished(harness.target("d1"), action["id"]))


@pytest.mark.parametrize("step", ["register", "assign"])
async def test_a_defect_in_a_bulk_step_is_found_out_device_by_device(
    hawkbit: Server, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness:
        await harness.publish("2.0", NEW)
        await harness.quiet()
        steps = harness.store.sync.bulk
        do = getattr(steps, step)

        async def odd(cases: Any) -> None:
            if any(case.device == "d1" for case in cases):
                raise ZeroDivisionError
            await do(cases)

        monkeypatch.setattr(steps, step, odd)
        for name in ("d1", "d2"):
            await harness.registry.create_device(harness.app, Device(Metadata(name)), "test")
            await harness.want("2.0", name)
        await harness.action_of("d2")

        async def told() -> bool:
            return "ZeroDivisionError" in harness.store.sync.known.problems.get(f"{harness.app}/d1", "")

        await until("it is told", told)
        monkeypatch.setattr(steps, step, do)
        await harness.action_of("d1")


async def test_a_defect_at_one_firmware_is_that_ones(
    hawkbit: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        firmware = harness.store.sync.firmware
        push = firmware.push

        async def odd(app: str, version: str) -> Any:
            if version == "1.0":
                raise IndexError
            return await push(app, version)

        monkeypatch.setattr(firmware, "push", odd)
        await harness.publish("1.0", b"one")
        await harness.publish("2.0", NEW)

        async def there() -> list[str]:
            found = await person.ask("GET", "/distributionsets", params={"q": f"name=={harness.app}"})
            return [row["version"] for row in found["content"]]

        await until("the other is there", there)
        assert await there() == ["2.0"]
        assert "IndexError" in harness.store.sync.known.problems[f"firmware {harness.app}/1.0"]
        monkeypatch.setattr(firmware, "push", push)

        async def both() -> bool:
            well = f"firmware {harness.app}/1.0" not in harness.store.sync.known.problems
            return well and await there() == ["2.0", "1.0"]

        await until("it is tried again", both)


async def test_a_defect_of_the_feed_is_not_its_end(
    hawkbit: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.device()
        feed, before = harness.store.sync.feed, counted("hawkbit.feed")

        async def odd() -> None:
            monkeypatch.undo()
            raise TypeError("a defect")

        monkeypatch.setattr(feed, "poll", odd)

        async def seen() -> bool:
            return counted("hawkbit.feed") > before

        await until("it is counted", seen)
        await person.assign(await person.simple_set("2.0", NEW), harness.target())
        await until("the feed goes on", lambda: harness.is_wanted("2.0"))


async def test_a_device_whose_record_cannot_be_read_is_that_device(
    hawkbit: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness:
        for name in ("d1", "d2"):
            await harness.device(name)
        await harness.publish("2.0", NEW)
        await harness.quiet()
        read, broken = harness.records.device, [True]

        async def odd(app: str, device: str) -> Any:
            if device == "d1" and broken:
                raise UnreadableError("device d1 of app a: not a record")
            return await read(app, device)

        monkeypatch.setattr(harness.records, "device", odd)
        harness.store.sync.feed.look(f"{harness.app}/d1")
        await harness.want("2.0", "d2")
        await harness.action_of("d2")

        async def told() -> bool:
            return "not a record" in harness.store.sync.known.problems.get(f"{harness.app}/d1", "")

        await until("it is told", told)
        assert not harness.store.sync.worker.health.problem
        # Writing it again repairs it, and is not refused for what it was.
        await harness.store.commit([PutDevice(Device(Metadata("d1", harness.app), {"firmware": {"version": "2.0"}}))])
        broken.clear()
        await harness.action_of("d1")


async def test_a_target_that_cannot_be_looked_at_or_deleted_is_that_target(hawkbit: Hawkbit, tmp_path: Path) -> None:
    """hawkBit's user may be allowed less than dfud needs; the others are made and deleted all the same."""
    model = hawkbit.model
    if model is None:
        pytest.skip("a real hawkBit does not refuse on request")
    no = b'{"errorCode": "hawkbit.server.error.insufficientpermission", "message": "not allowed"}'
    refusal = Response(403, no, {"content-type": "application/json"})
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        known, first, second = harness.store.sync.known, harness.target("d1"), harness.target("d2")
        await person.ask("POST", "/targets", json=[{"controllerId": first}])
        model.fail_next("GET", f"/rest/v1/targets/{first}", refusal, times=100_000)
        model.fail_next("DELETE", f"/rest/v1/targets/{first}", refusal, times=100_000)

        async def told() -> bool:
            return "not allowed" in known.problems.get(f"{harness.app}/d1", "")

        try:
            await harness.registry.create_device(harness.app, Device(Metadata("d1")), "test")
            await harness.registry.create_device(harness.app, Device(Metadata("d2")), "test")
            await harness.registered("d2")
            await until("it is told", told)
            model.fail_next_clear()
            await harness.registered("d1")
            model.fail_next("DELETE", f"/rest/v1/targets/{first}", refusal, times=100_000)
            before = harness.store.sync.client.requests["mgmt delete"]
            for name in ("d1", "d2"):
                await harness.store.commit([DeleteDevice(harness.app, name)])

            async def gone() -> bool:
                found = await person.ask("GET", "/targets", params={"q": f"controllerId=={harness.app}:*"})
                return [row["controllerId"] for row in found["content"]] == [first]

            await until("the other is deleted", gone)
            await until("it is told", told)

            async def forgotten() -> bool:
                return second not in known.targets

            await until("and forgotten here", forgotten)
            assert harness.store.sync.client.requests["mgmt delete"] - before < 50, "it is tried with pauses"
        finally:
            model.fail_next_clear()
        await harness.quiet()
        assert not known.targets and not known.problems
