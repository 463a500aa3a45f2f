"""Both ways of publishing, and what becomes of an update: written back as it is, closed only by its end."""

from __future__ import annotations

import base64
import random
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dfud.api import App, DeleteApp, DeleteDevice, RetryRequested
from dfud.registry.firmware import Upload
from dfud.wire.manifest import FLAG_RAW, Manifest, sign
from dfud.wire.messages import Command, Outcome, Phase, Progress, Result, Type
from tests.plugins.hawkbit.harness import (
    OLD,
    Harness,
    Person,
    Server,
    digest,
    harness_at,
    person_at,
    sent,
    until,
    whole_way,
)

NEW = b"new image " * 3000


async def test_firmware_published_in_dfud_is_module_artifact_and_set_in_hawkbit(
    hawkbit: Server, tmp_path: Path
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        key = Ed25519PrivateKey.generate()
        app = await harness.registry.app(harness.app)
        spec = {"signing": {"keys": [base64.b64encode(key.public_key().public_bytes_raw()).decode()]}}
        await harness.registry.update_app(harness.app, App(app.metadata, spec), "test")
        manifest = Manifest(
            app=harness.app,
            version="2.0",
            hardware="esp32c3",
            sequence=7,
            size=len(NEW),
            sha256=bytes.fromhex(digest(NEW)),
            flags=FLAG_RAW,
        )
        envelope = sign(manifest, key)

        async def body() -> AsyncIterator[bytes]:
            yield NEW

        await harness.firmware.publish(harness.app, Upload(envelope=envelope), body(), "test")
        await harness.quiet()
        query = {"q": f"name=={harness.app}"}
        (found,) = (await person.ask("GET", "/distributionsets", params=query))["content"]
        assert (found["name"], found["version"], found["type"]) == (harness.app, "2.0", "os")
        (module,) = found["modules"]
        (artifact,) = await person.ask("GET", f"/softwaremodules/{module['id']}/artifacts")
        assert artifact["hashes"]["sha256"] == digest(NEW)
        assert artifact["size"] == len(NEW)
        metadata = (await person.ask("GET", f"/softwaremodules/{module['id']}/metadata"))["content"]
        said = {entry["key"]: entry for entry in metadata}
        assert base64.b64decode(said["dfud.manifest"]["value"]) == envelope
        assert said["dfud.manifest"]["targetVisible"] is True
        assert said["dfud.hardware"]["value"] == "esp32c3"


async def test_publishing_goes_on_where_a_killed_dfud_stopped(hawkbit: Server, tmp_path: Path) -> None:
    """The module is there, with its artifact, and no set: as if dfud died between the two."""
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        module = await person.module(harness.app, "2.0", {"x.bin": NEW}, metadata={})
        await harness.publish("2.0", NEW)
        await harness.quiet()
        (found,) = (await person.ask("GET", "/distributionsets", params={"q": f"name=={harness.app}"}))["content"]
        assert [m["id"] for m in found["modules"]] == [module]
        assert len(await person.ask("GET", f"/softwaremodules/{module}/artifacts")) == 1


async def test_another_image_under_the_same_name_in_hawkbit_is_not_overwritten(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await person.module(harness.app, "2.0", {"x.bin": b"somebody's"})
        await harness.publish("2.0", NEW)
        problems = harness.store.sync.known.problems

        async def told() -> bool:
            return "another image" in problems.get(f"firmware {harness.app}/2.0", "")

        await until("the problem is told", told)
        await harness.device()
        await harness.want("2.0")

        async def refused() -> bool:
            link = await harness.link()
            return link is not None and "another image" in link.problem

        await until("the device's problem is told", refused)


async def test_an_update_from_dfud_is_an_action_that_its_confirmation_closes(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        await harness.publish("2.0", NEW)
        await harness.want("2.0")
        number = await harness.action_of()
        target = harness.target()
        command = await sent(device)
        image = await device.download(command)
        await device.poll(progress=Progress(command.package, command.chunks, Phase.WRITTEN))
        device.image, device.version = image, "2.0"
        await device.poll(trial=True)
        await harness.quiet()
        action = await person.action(target, number)
        assert action["status"] in ("running", "retrieved", "downloaded", "download"), "on trial it is not over"
        assert await person.installed(target) == ""
        await device.poll()
        await until("the action is finished", lambda: person.finished(target, number))
        assert await person.installed(target) == "2.0"
        assert await person.update_status(target) == "in_sync"
        kinds = [status["type"] for status in await person.statuses(target, number)]
        assert kinds[0] == "running" and "retrieved" in kinds and kinds[-1] == "finished"
        assert kinds.count("finished") == 1
        assert len(await person.actions(target)) == 1, "dfud's own action came back as a new one"


async def test_a_set_assigned_in_hawkbit_reaches_the_device(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        devices = [await harness.device(name) for name in ("d1", "d2", "d3")]
        for name in harness.devices:
            await harness.registered(name)
        number = await person.simple_set("5.1", NEW)
        await person.assign(number, *(harness.target(name) for name in harness.devices))
        for name in harness.devices:
            await until("it is wanted", partial(harness.is_wanted, "5.1", name))
        for device in devices:
            await whole_way(device)
            assert device.image == NEW
        for name in harness.devices:
            target = harness.target(name)
            await until("it is installed", partial(_is_installed, person, target, "5.1"))
            assert (await person.actions(target))[0]["status"] == "finished"
        assert harness.store.sync.firmware.downloads == 1, "an artifact is downloaded once, not once a device"
        firmware = await harness.store.firmware(harness.app, "5.1")
        assert firmware is not None and firmware.sha256 == digest(NEW) and firmware.uploaded_by == "hawkbit"


async def _is_installed(person: Person, target: str, version: str) -> bool:
    return await person.installed(target) == version


async def test_ours_is_chosen_out_of_several_modules_and_artifacts(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.device()
        name = f"many-{uuid.uuid4().hex[:8]}"
        ours = await person.module(name, "6.0", {"notes.txt": b"read me", "image.bin": NEW})
        other = await person.module(name, "1.9", {"app.bin": b"not for us"}, kind="application")
        number = await person.set(name, "6.0", ours, other, kind="os_app")
        await person.assign(number, harness.target())
        await until("it is wanted", lambda: harness.is_wanted("6.0"))
        firmware = await harness.store.firmware(harness.app, "6.0")
        assert firmware is not None and firmware.sha256 == digest(NEW)


@pytest.mark.parametrize("case", ["nothing of ours", "two of ours", "not signed", "signed by a stranger"])
async def test_a_set_that_cannot_be_rolled_out_is_closed_with_the_reason(
    hawkbit: Server, tmp_path: Path, case: str
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.device()
        files = {"image.bin": NEW}
        metadata: dict[str, str] | None = None
        reason = "expected one"
        if case == "nothing of ours":
            files = {"image.swu": NEW}
        elif case == "two of ours":
            files = {"a.bin": NEW, "b.bin": NEW}
        else:
            app = await harness.registry.app(harness.app)
            await harness.registry.update_app(harness.app, App(app.metadata, {"signing": {"mode": "required"}}), "test")
            reason = "takes signed firmware only"
        if case == "signed by a stranger":
            manifest = Manifest(
                app=harness.app,
                version="3.0",
                hardware="esp32c3",
                sequence=1,
                size=len(NEW),
                sha256=bytes.fromhex(digest(NEW)),
                flags=FLAG_RAW,
            )
            envelope = sign(manifest, Ed25519PrivateKey.generate())
            metadata = {"dfud.manifest": base64.b64encode(envelope).decode()}
            reason = harness.app
        name = f"bad-{uuid.uuid4().hex[:8]}"
        number = await person.set(name, "3.0", await person.module(name, "3.0", files, metadata=metadata))
        action = await person.assign(number, harness.target())
        await until("it is closed", lambda: _status(person, harness, action, "error"))
        last = (await person.statuses(harness.target(), action))[-1]
        assert reason in " ".join(last["messages"]), last
        await harness.quiet()  # hawkBit has it before dfud has kept that
        assert await harness.wanted() is None
        assert await harness.store.firmware(harness.app, "3.0") is None
        link = await harness.link()
        assert link is not None and reason in link.problem


async def _status(person: Person, harness: Harness, action: int, status: str) -> bool:
    return bool((await person.action(harness.target(), action))["status"] == status)


async def test_a_rollback_is_a_failure_with_code_and_diagnostics_and_may_be_tried_again(
    hawkbit: Server, tmp_path: Path
) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        number = await person.simple_set("7.0", NEW)
        first = await person.assign(number, harness.target())
        await until("it is wanted", lambda: harness.is_wanted("7.0"))
        command = await sent(device)
        image = await device.download(command)
        await device.poll(progress=Progress(command.package, command.chunks, Phase.WRITTEN))
        device.image, device.version = image, "7.0"
        await device.poll(trial=True)
        device.image, device.version = OLD, "1.0"
        record = bytes(range(200))
        left = Result(
            outcome=Outcome.ROLLED_BACK,
            digest=bytes.fromhex(digest(NEW)),
            code=1,
            text="watchdog in main.py",
            attempts=3,
            reset=12,
            record=record,
        )
        await device.poll(result=left)
        await until("it is closed", lambda: _status(person, harness, first, "error"))
        last = (await person.statuses(harness.target(), first))[-1]
        text = " ".join(last["messages"])
        assert "watchdog in main.py" in text and record.hex() in text and "crashes: 3" in text
        assert last["code"] == 1
        assert await person.update_status(harness.target()) == "error"
        # hawkBit's user asks once more: that is a retry, and the device gets it again.
        second = await person.assign(number, harness.target())
        assert second != first

        async def again() -> bool:
            found = await device.poll()
            return found is not None and found.type is Type.UPDATE

        await until("it is sent again", again)
        await whole_way(device)
        await until("it is finished", lambda: person.finished(harness.target(), second))


async def test_a_retry_in_dfud_is_a_new_action(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        await harness.publish("2.0", NEW)
        await harness.want("2.0")
        first = await harness.action_of()
        await device.update(good=False, text="it crashed")
        await until("it is closed", lambda: _status(person, harness, first, "error"))
        await harness.quiet()
        harness.bus.publish(RetryRequested(harness.app, "d1", "test"))

        async def again() -> bool:
            found = await device.poll()
            return found is not None and found.type is Type.UPDATE

        await until("it is sent again", again)
        second = await harness.action_of()
        assert second != first
        await whole_way(device)
        await until("it is finished", lambda: person.finished(harness.target(), second))


async def test_an_app_default_is_assigned_when_it_reaches_a_device(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        await harness.publish("2.0", NEW)
        await harness.want("2.0", None)
        await device.poll()
        number = await harness.action_of()
        await whole_way(device)
        await until("it is finished", lambda: person.finished(harness.target(), number))
        assert await harness.wanted() is None, "the default became a wish of the device's own"


async def test_progress_is_told_in_few_feedbacks_and_never_one_a_chunk(hawkbit: Server, tmp_path: Path) -> None:
    image = random.Random(1).randbytes(120_000)
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        device.status = msgspec.structs.replace(device.status, payload=4608)
        await harness.publish("2.0", image)
        await harness.want("2.0")
        number = await harness.action_of()
        command: Command | None = None

        async def made() -> bool:
            nonlocal command
            command = await device.poll()
            return command is not None and command.type is Type.UPDATE

        await until("its package is made", made)
        assert command is not None and command.chunks > 25
        held: list[bytes] = []
        for count in range(0, command.chunks, 5):
            first = len(held)
            part = msgspec.structs.replace(command, chunks=min(count + 5, command.chunks))
            for chunk in range(first, part.chunks):
                held.append(await device._fetch(command.package.hex(), chunk))
            await device.poll(progress=Progress(command.package, part.chunks, Phase.FETCHING))
            await harness.quiet()
        device.image, device.version = image, "2.0"
        await device.poll()
        await until("it is finished", lambda: person.finished(harness.target(), number))
        kinds = [status["type"] for status in await person.statuses(harness.target(), number)]
        assert 3 <= kinds.count("download") <= 12, kinds


async def test_a_device_that_runs_it_already_closes_the_action_at_once(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device(image=NEW, version="8.0")
        await device.poll()
        number = await person.simple_set("8.0", NEW)
        action = await person.assign(number, harness.target())
        await until("it is finished", lambda: person.finished(harness.target(), action))


async def test_what_was_flashed_by_hand_is_told(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.publish("2.0", NEW)
        await harness.quiet()
        device = await harness.device(image=NEW, version="2.0")
        await device.poll()
        await until("hawkBit knows", partial(_is_installed, person, harness.target(), "2.0"))


async def test_attributes_and_labels_are_there_to_filter_by(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        device = await harness.device(site="attic")
        device.status = msgspec.structs.replace(device.status, attributes={"rssi": "-70"})
        await device.poll()

        async def there() -> bool:
            found = await person.ask("GET", f"/targets/{harness.target()}/attributes") or {}
            return found.get("rssi") == "-70" and found.get("label.site") == "attic" and found["dfud.version"] == "1.0"

        await until("the attributes are there", there)
        await device.poll(attributes={"rssi": "-50"})

        async def moved() -> bool:
            return bool((await person.ask("GET", f"/targets/{harness.target()}/attributes"))["rssi"] == "-50")

        await until("they follow", moved)


async def test_a_deleted_device_takes_its_target_along(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        await harness.device("d1")
        await harness.device("d2")
        await harness.registered("d1")
        await harness.registered("d2")
        await harness.store.commit([DeleteDevice(harness.app, "d1")])
        await harness.quiet()
        listed = await person.ask("GET", "/targets", params={"q": f"controllerId=={harness.app}:*"})
        assert [t["controllerId"] for t in listed["content"]] == [harness.target("d2")]
        await harness.store.commit([DeleteApp(harness.app)])
        await harness.quiet()
        listed = await person.ask("GET", "/targets", params={"q": f"controllerId=={harness.app}:*"})
        assert listed["content"] == []


async def test_a_manifest_that_is_replaced_is_replaced_in_hawkbit(hawkbit: Server, tmp_path: Path) -> None:
    """The same image signed once more, as for a higher floor: the module says so, also after it was locked."""
    async with harness_at(hawkbit, tmp_path) as harness, person_at(hawkbit) as person:
        key = Ed25519PrivateKey.generate()
        app = await harness.registry.app(harness.app)
        spec = {"signing": {"keys": [base64.b64encode(key.public_key().public_bytes_raw()).decode()]}}
        await harness.registry.update_app(harness.app, App(app.metadata, spec), "test")
        await harness.device()

        async def body() -> AsyncIterator[bytes]:
            yield NEW

        said: list[bytes] = []
        for sequence in (7, 8):
            manifest = Manifest(
                app=harness.app,
                version="2.0",
                hardware="esp32c3",
                sequence=sequence,
                size=len(NEW),
                sha256=bytes.fromhex(digest(NEW)),
                flags=FLAG_RAW,
            )
            envelope = sign(manifest, key)
            await harness.firmware.publish(harness.app, Upload(envelope=envelope), body(), "test")
            await harness.want("2.0")
            await harness.action_of()
            await harness.quiet()
            (found,) = (await person.ask("GET", "/distributionsets", params={"q": f"name=={harness.app}"}))["content"]
            path = f"/softwaremodules/{found['modules'][0]['id']}/metadata"
            rows = {row["key"]: row["value"] for row in (await person.ask("GET", path))["content"]}
            said.append(base64.b64decode(rows["dfud.manifest"]))
            assert said[-1] == envelope and rows["dfud.sequence"] == str(sequence)
        assert said[0] != said[1]
        assert harness.store.sync.known.problems == {}
