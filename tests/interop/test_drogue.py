"""A real dfud and what Drogue's devices send over HTTP: Ajour's update protocol, in the stories that matter."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from dfud_drogue.cbor import decode_untrusted, encode

from tests.interop.ajour import AjourDevice
from tests.interop.support import REGISTRY, Dfud

IMAGE = random.Random(3).randbytes(5003)
WAIT, SYNC, WRITE, SWAP = range(4)


class Story:
    """One app with one device that runs 0.1.0; 0.2.0 and 0.3.0 are published."""

    def __init__(self, dfud: Dfud, app: str) -> None:
        self.dfud = dfud
        self.app = app
        dfud.app(app)
        dfud.device(app, "dev1")
        for version, image in (("0.1.0", IMAGE[1:]), ("0.2.0", IMAGE), ("0.3.0", IMAGE[::-1])):
            dfud.publish(app, version, image)

    def want(self, version: str, **more: Any) -> None:
        self.dfud.want(self.app, "dev1", {"version": version, **more})

    @property
    def firmware(self) -> dict[str, Any]:
        return self.dfud.firmware(self.app, "dev1")


@pytest.fixture
def story(dfud: Dfud, request: pytest.FixtureRequest) -> Story:
    return Story(dfud, "s" + format(random.Random(request.node.name).randrange(1 << 40), "x"))


@pytest.fixture
def device(story: Story) -> Iterator[AjourDevice]:
    with AjourDevice(story.dfud.http, f"dev1@{story.app}", "hey", "0.1.0") as device:
        yield device


def test_a_device_of_ajours_is_updated_and_one_that_reverts_is_left_alone(story: Story, device: AjourDevice) -> None:
    assert WAIT in device.ask(), "nothing is wanted"
    story.want("0.2.0")
    assert device.update()[SWAP][2] == hashlib.sha256(IMAGE).digest()
    assert device.flash == IMAGE
    device.version = "0.2.0"
    for _ in range(3):
        assert SYNC in device.ask(), "an answer may get lost"
    found = story.firmware
    assert (found["current"], found["conditions"][0]["status"]) == ("0.2.0", "True")
    assert found["deployment"]["state"] == "done"

    story.want("0.3.0")
    assert SWAP in device.update()
    # It boots, fails, and its bootloader goes back.
    for _ in range(3):
        assert WAIT in device.ask()
    found = story.firmware
    assert (found["deployment"]["state"], found["deployment"]["blocked"]) == ("rolled-back", True)
    # It still hears that it runs what it should, once that is so.
    story.want("0.2.0")
    assert SYNC in device.ask()


def test_a_target_that_changes_while_it_is_written_waits_for_its_end(story: Story, device: AjourDevice) -> None:
    story.want("0.2.0")
    first = device.ask()[WRITE]
    story.want("0.3.0")
    second = device.ask({0: b"0.2.0", 1: len(first[3])})[WRITE]
    assert (second[0], second[2]) == (b"0.2.0", len(first[3]))
    found = story.firmware["deployment"]
    assert (found["version"], found["state"]) == ("0.2.0", "fetching")
    assert device.ask()[WRITE][0] == b"0.3.0"


def test_a_firmware_that_is_taken_back_is_not_written_any_further(story: Story, device: AjourDevice) -> None:
    half: dict[int, Any] = {0: b"0.2.0", 1: 512}
    whole: dict[int, Any] = {0: b"0.2.0", 1: len(IMAGE)}
    story.want("0.2.0")
    assert WRITE in device.ask()
    assert WRITE in device.ask(half)
    # Back to what runs; nothing; hold: none of them lets it go on, even if all of it is there.
    for firmware, number, state in (
        ({"version": "0.1.0"}, SYNC, "cancelled"),
        ({}, WAIT, "cancelled"),
        ({"version": "0.2.0", "hold": True}, WAIT, "written"),
    ):
        story.want("0.2.0")
        assert SWAP in device.ask(whole)
        story.dfud.want(story.app, "dev1", firmware)
        for update in (half, whole):
            assert number in device.ask(update)
        assert story.firmware["deployment"]["state"] == state
    # Wanted again, it goes on where it is; nothing of this was taken for a failure of the device.
    story.want("0.2.0")
    assert device.ask(half)[WRITE][2] == 512
    assert SWAP in device.ask(whole)


def test_a_device_that_goes_back_after_it_was_in_sync_is_left_alone_until_somebody_says_retry(
    story: Story, device: AjourDevice
) -> None:
    """It booted, reported, and crashed before it had confirmed: to Ajour that was a device to update, for ever."""
    story.want("0.2.0")
    assert SWAP in device.update()
    device.version = "0.2.0"
    assert SYNC in device.ask()
    device.version = "0.1.0"
    for _ in range(3):
        assert WAIT in device.ask()
    found = story.firmware
    assert (found["current"], found["deployment"]["blocked"]) == ("0.1.0", True)
    condition = found["conditions"][0]
    assert (condition["status"], condition["reason"]) == ("False", "rolled-back")
    assert "its old one again" in condition["message"]
    assert story.dfud.user.post(f"/api/dfu/v1/apps/{story.app}/retry/dev1").status_code == 202
    while WAIT in (answer := device.ask()):
        pass  # the retry is on its way
    assert answer[WRITE][0] == b"0.2.0"
    assert SWAP in device.update()
    device.version = "0.2.0"
    assert SYNC in device.ask()
    # Somebody who wants the old one gets it, and the new one after that: nothing was left by the device itself.
    for version in ("0.1.0", "0.2.0"):
        story.want(version)
        assert SWAP in device.update()
        device.version = version
        assert SYNC in device.ask()


@pytest.mark.parametrize("key", ["container", "oci", "hawkbit", "file"])
@pytest.mark.parametrize("at", ["app", "device"])
def test_drogues_other_stores_are_refused_at_the_device(story: Story, device: AjourDevice, at: str, key: str) -> None:
    url = f"{REGISTRY}/{story.app}" + ("/devices/dev1" if at == "device" else "")
    user = story.dfud.user
    found = user.get(url).json()
    found["spec"]["firmware"] = {key: {"image": "x:1", "build": {"any": 1}}}
    assert user.put(url, json=found).status_code == 204
    (condition,) = story.firmware["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == ("InSync", "Unknown", "BadSpec")
    assert f"{key} is not understood" in condition["message"]
    assert WAIT in device.ask()
    # Which of two would count, nobody can tell.
    found = user.get(url).json()
    found["spec"]["firmware"] = {"version": "0.2.0", key: {}}
    refused = user.put(url, json=found)
    assert (refused.status_code, refused.json()["error"]) == (400, "InvalidRequest")
    assert key in refused.json()["message"]


def test_keys_beside_the_version_are_kept_as_they_are(story: Story) -> None:
    build = {"source": {"git": {"uri": "x"}}}
    story.want("0.2.0", build=build)
    assert story.dfud.read(story.app, "dev1")["spec"]["firmware"] == {"version": "0.2.0", "build": build}
    assert story.firmware["target"] == "0.2.0"


def test_an_answer_to_a_board_of_drogue_devices_fits_its_buffer(story: Story) -> None:
    """Its OTA task asks for 2048 bytes and holds the whole answer, headers and all, in 2048."""
    story.want("0.2.0")
    body = encode({0: b"0.1.0", 1: 2048, 2: None, 3: {0: b"0.2.0", 1: 1024}})
    answer = httpx.post(
        f"{story.dfud.http}/v1/dfu?ct=30", content=body, auth=(f"dev1@{story.app}", "hey"),
        headers={"content-type": "application/cbor"}, timeout=60,
    )  # fmt: skip
    size = len("HTTP/1.1 200 OK\r\n\r\n") + sum(len(k) + len(v) + 4 for k, v in answer.headers.raw) + len(answer.content)
    assert size <= 2048
    assert decode_untrusted(answer.content)[WRITE] == {0: b"0.2.0", 1: None, 2: 1024, 3: IMAGE[1024:2048]}


def test_telemetry_without_a_client_library_names_device_and_sender(dfud: Dfud, story: Story) -> None:
    dfud.device(story.app, "gw1")
    dfud.device(story.app, "dev2", gatewaySelector={"matchNames": ["gw1"]})
    for user, path in (("dev2", "/v1/t"), ("gw1", "/v1/t?as=dev2")):
        answer = httpx.post(dfud.http + path, content=b"1", auth=(f"{user}@{story.app}", "hey"), timeout=60)
        assert answer.status_code == 202
    refused = httpx.post(f"{dfud.http}/v1/t?as=gw1", content=b"1", auth=(f"dev2@{story.app}", "hey"), timeout=60)
    assert refused.status_code == 403
    bearer = httpx.post(f"{dfud.http}/v1/t", content=b"1", headers={"authorization": "Bearer hey"}, timeout=60)
    assert bearer.status_code == 403
    lines = (dfud.daemon.directory / "events.jsonl").read_bytes().splitlines()
    events = [event for event in map(json.loads, lines) if event["application"] == story.app]
    assert [(event["device"], event["sender"]) for event in events] == [("dev2", "dev2"), ("dev2", "gw1")]
