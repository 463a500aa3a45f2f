"""Commands and gateways as Drogue's users know them, over HTTP against a real dfud; the end of each is a device's answer."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.interop.ajour import AjourDevice
from tests.interop.support import Dfud, running

SECRET = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def app(dfud: Dfud, request: pytest.FixtureRequest) -> str:
    """An app of the test's own with `sensor`, and `gate` that may act for it."""
    name = "c" + format(random.Random(request.node.name).randrange(1 << 40), "x")
    make(dfud, name)
    return name


def make(dfud: Dfud, app: str) -> None:
    dfud.app(app)
    dfud.device(app, "gate")
    dfud.device(app, "stranger")
    dfud.device(app, "sensor", gatewaySelector={"matchNames": ["gate"]})


def post(dfud: Dfud, app: str, path: str, device: str = "sensor") -> httpx.Response:
    return httpx.post(dfud.http + path, content=b"{}", auth=(f"{device}@{app}", "hey"), timeout=150)


def send(dfud: Dfud, app: str, name: str, device: str = "sensor", payload: bytes = b"{}", **query: str) -> int:
    url = f"/api/command/v1alpha1/apps/{app}/devices/{device}"
    return dfud.user.post(url, params={"command": name, **query}, content=payload).status_code


class Waiter:
    """A device that waits for a command in a thread of its own."""

    def __init__(self, request: Callable[[], httpx.Response]) -> None:
        self._answers: list[httpx.Response] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(request()))
        self._thread.start()

    def send(self, dfud: Dfud, app: str, name: str, device: str = "sensor") -> None:
        """Send a command that is not kept, until somebody waits for it."""
        while send(dfud, app, name, device, expires="0") != 202:
            assert self._thread.is_alive(), "nobody got it"

    def answer(self) -> tuple[int, str, bytes]:
        self._thread.join()
        (found,) = self._answers
        return found.status_code, found.headers.get("command", ""), found.content


@pytest.mark.parametrize("parameter", ["ct", "commandTimeout"])
def test_a_waiting_device_gets_a_command_with_its_bytes_as_they_were_sent(dfud: Dfud, app: str, parameter: str) -> None:
    waiter = Waiter(lambda: post(dfud, app, f"/v1/state?{parameter}=60"))
    waiter.send(dfud, app, "blink")
    assert waiter.answer() == (200, "blink", b"{}")
    waiter = Waiter(lambda: post(dfud, app, f"/v1/state?{parameter}=60"))
    assert send(dfud, app, "raw", payload=bytes(range(256))) == 202
    assert waiter.answer() == (200, "raw", bytes(range(256)))


def test_commands_for_a_device_that_does_not_wait_are_kept_in_order_up_to_a_limit(dfud: Dfud, app: str) -> None:
    assert [send(dfud, app, f"c{n}") for n in range(9)] == [202] * 8 + [406]
    got = [post(dfud, app, "/v1/state").headers["command"] for _ in range(8)]
    assert got == [f"c{n}" for n in range(8)]
    assert post(dfud, app, "/v1/state").status_code == 202
    assert send(dfud, app, "now or never", expires="0") == 406


def test_a_command_for_what_is_not_there_is_not_acceptable(dfud: Dfud, app: str) -> None:
    assert send(dfud, app, "c", "nobody") == 406
    assert send(dfud, app, "") == 400


@pytest.mark.parametrize(("disabled", "status"), [(True, 406), (False, 202)])
def test_a_disabled_device_gets_no_command_and_only_such_a_one(dfud: Dfud, disabled: bool, status: int) -> None:
    """Drogue's client library has it the wrong way round."""
    app = f"disabled-{disabled}".lower()
    dfud.app(app)
    dfud.device(app, "dev1", core={"disabled": disabled})
    assert send(dfud, app, "c", "dev1") == status
    assert post(dfud, app, "/v1/state", "dev1").status_code == (403 if disabled else 200)


def test_only_those_who_manage_an_app_may_send(dfud: Dfud, app: str) -> None:
    made = dfud.user.post("/api/tokens/v1alpha1", json={"user": "bob", "roles": {app: "reader"}}).json()["token"]
    url = f"{dfud.registry}/api/command/v1alpha1/apps/{app}/devices/sensor?command=c"
    answer = httpx.post(url, content=b"{}", auth=("bob", made), timeout=60)
    assert (answer.status_code, answer.json()["error"]) == (403, "Forbidden")


def test_a_gateway_waits_for_the_device_it_speaks_for(dfud: Dfud, app: str) -> None:
    waiter = Waiter(lambda: post(dfud, app, "/v1/state?as=sensor&ct=60", "gate"))
    waiter.send(dfud, app, "through")
    assert waiter.answer() == (200, "through", b"{}")


def test_a_gateway_that_waits_for_itself_gets_the_commands_of_its_devices(dfud: Dfud, app: str) -> None:
    waiter = Waiter(lambda: post(dfud, app, "/v1/state?ct=60", "gate"))
    waiter.send(dfud, app, "through")
    assert waiter.answer() == (200, "through", b"{}")


def test_what_is_kept_is_kept_for_the_device_and_not_for_its_gateway(dfud: Dfud, app: str) -> None:
    assert send(dfud, app, "kept") == 202
    assert post(dfud, app, "/v1/state", "gate").status_code == 202
    answer = post(dfud, app, "/v1/state?as=sensor", "gate")
    assert (answer.status_code, answer.headers["command"]) == (200, "kept")


def test_who_is_no_gateway_of_a_device_neither_speaks_nor_hears_for_it(dfud: Dfud, app: str) -> None:
    assert post(dfud, app, "/v1/state?as=sensor", "stranger").status_code == 403
    waiter = Waiter(lambda: post(dfud, app, "/v1/state?ct=60", "stranger"))
    waiter.send(dfud, app, "own", "stranger")
    assert send(dfud, app, "other", expires="0") == 406
    assert waiter.answer() == (200, "own", b"{}")


def test_a_gateway_updates_the_device_it_speaks_for(dfud: Dfud, app: str) -> None:
    image = random.Random(5).randbytes(1500)
    dfud.publish(app, "2.0", image)
    dfud.want(app, "sensor", {"version": "2.0"})
    with AjourDevice(dfud.http, f"gate@{app}", "hey", "1.0", path="/v1/dfu?as=sensor&ct=1") as device:
        assert 3 in device.update()
        assert device.flash == image
        device.version = "2.0"
        assert 1 in device.ask()
    assert dfud.firmware(app, "sensor")["conditions"][0]["status"] == "True"
    assert dfud.firmware(app, "gate")["current"] == "", "the gateway has said nothing of itself"


def test_a_users_command_never_comes_on_the_update_channel(dfud: Dfud, app: str) -> None:
    assert send(dfud, app, "blink") == 202
    with AjourDevice(dfud.http, f"sensor@{app}", "hey", "1.0") as device:
        assert 0 in device.ask()
    assert post(dfud, app, "/v1/state").headers["command"] == "blink"


# Events and what answers them


class Hook:
    """A webhook's other side: checks every signature, sends a command for each event, and fails as often as it is told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.identities: list[str] = []
        self.failures = 0
        self.react: Callable[[dict[str, Any]], None] = lambda event: None
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(hook.take(body, {k.lower(): v for k, v in self.headers.items()}))
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, body: bytes, headers: dict[str, str]) -> int:
        identity = headers["webhook-id"]
        signed = f"{identity}.{headers['webhook-timestamp']}.".encode() + body
        mac = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
        if headers["webhook-signature"] != f"v1,{mac}":
            return 401
        self.identities.append(identity)
        if self.failures:
            self.failures -= 1
            return 503
        event = json.loads(body)
        self.react(event)
        self.events.append(event)
        return 204

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Dfud, Hook]]:
    directory, hook = tmp_path_factory.mktemp("hooked"), Hook()
    (directory / "secret").write_bytes(SECRET)
    extra = f'[events.webhook]\nurl = "{hook.url}"\nsecret_file = "{directory}/secret"\nretry_s = 0.01\nattempts = 3\n'
    try:
        with running(directory / "dfud", extra) as dfud:
            make(dfud, "app1")
            yield dfud, hook
    finally:
        hook.close()


def test_a_command_sent_for_an_event_reaches_the_request_that_brought_it(hooked: tuple[Dfud, Hook]) -> None:
    """Drogue subscribes after it has published, and loses this one."""
    dfud, hook = hooked
    answers: list[int] = []
    hook.react = lambda event: answers.append(send(dfud, "app1", "answer", event["device"], expires="0"))
    try:
        found = post(dfud, "app1", "/v1/state?ct=60")
    finally:
        hook.react = lambda event: None
    assert (found.status_code, found.headers["command"], answers) == (200, "answer", [202])


def test_a_webhook_gets_each_event_signed_and_again_if_it_failed(hooked: tuple[Dfud, Hook]) -> None:
    dfud, hook = hooked
    hook.failures = 2
    hook.identities.clear()
    assert post(dfud, "app1", "/v1/temp?data_schema=urn:x").status_code == 202
    assert len(hook.identities) == 3
    assert len(set(hook.identities)) == 1, "the same event"
    event = hook.events[-1]
    assert (event["type"], event["source"], event["subject"]) == ("io.drogue.event.v1", "drogue://app1/sensor", "temp")
    assert (event["id"], event["dataschema"], event["data"]) == (hook.identities[0], "urn:x", {})


def test_a_device_whose_event_nobody_takes_is_told_to_come_again(hooked: tuple[Dfud, Hook]) -> None:
    dfud, hook = hooked
    hook.failures = 3
    before = len(hook.events)
    found = post(dfud, "app1", "/v1/temp")
    assert (found.status_code, found.headers["retry-after"]) == (503, "10")
    assert post(dfud, "app1", "/v1/temp").status_code == 202
    assert len(hook.events) == before + 1


def test_every_sender_and_device_is_named_in_the_event(hooked: tuple[Dfud, Hook]) -> None:
    dfud, hook = hooked
    post(dfud, "app1", "/v1/temp/deeper?as=sensor", "gate")
    event = hook.events[-1]
    assert (event["device"], event["sender"], event["partitionkey"]) == ("sensor", "gate", "app1/gate")


