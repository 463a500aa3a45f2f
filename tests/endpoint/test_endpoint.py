"""The endpoint on a real store: every form of credentials, limits, parking, commands, chunks of others."""

from __future__ import annotations

import base64
import datetime
from typing import Any

import msgspec
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from dfud.api import (
    App,
    AppChanged,
    Bus,
    Chunks,
    Code,
    Credentials,
    Deployment,
    DeploymentChanged,
    DeviceChanged,
    EventSink,
    HistoryEntry,
    Metadata,
    PutApp,
    PutDevice,
    Reply,
    Request,
    State,
    Telemetry,
    Waiting,
)
from dfud.endpoint.basic import parse_basic_untrusted
from dfud.endpoint.endpoint import DeviceEndpoint
from dfud.model.credentials import protect
from dfud.wire.messages import Command, Type, decode_command_untrusted
from tests.endpoint.world import KEY, World, a_status, basic


@pytest.mark.parametrize(
    ("authorization", "names", "right"),
    [
        (basic("dev1@app1:pw"), {}, True),
        (b"bAsIc " + basic("dev1@app1:pw")[6:], {}, True),
        (basic("nick@app1:pw"), {}, True),
        (basic("dev1:pw"), {"application": "app1"}, True),
        (basic("dev1@app1:wrong"), {}, False),
        (basic("dev1@other:pw"), {}, False),
        (basic("dev1:pw"), {}, False),
        (basic("u:pw"), {"application": "app1", "device": "dev1"}, False),
        (b"Bearer abc", {}, False),
        (b"Basic !!!", {}, False),
        (b"", {}, False),
        (basic("dev1@app1"), {}, False),
    ],
)
async def test_basic_credentials(world: World, authorization: bytes, names: dict[str, str], right: bool) -> None:
    assert await world.code(authorization, **names) is (Code.ACCEPTED if right else Code.DENIED)


async def test_users_of_a_device_in_both_forms(world: World) -> None:
    user = {"user": {"username": "u@x", "password": "up"}}
    await world.put("dev 2@home", {"credentials": {"credentials": [user, {"pass": "pw"}]}})
    device = "dev 2@home"
    assert await world.code(basic("u@x:up"), application="app1", device=device) is Code.ACCEPTED
    assert await world.code(basic("u%40x@app1:up"), device=device) is Code.ACCEPTED
    assert await world.code(basic("dev%202%40home@app1:pw")) is Code.ACCEPTED
    assert await world.code(basic("u@x:pw"), application="app1", device=device) is Code.DENIED


async def test_a_change_of_the_device_ends_what_was_remembered(world: World) -> None:
    assert await world.code(basic("dev1@app1:pw")) is Code.ACCEPTED
    await world.put("dev1", {"authentication": {"credentials": [{"pass": "new"}]}})
    assert await world.code(basic("dev1@app1:pw")) is Code.DENIED
    assert await world.code(basic("dev1@app1:new")) is Code.ACCEPTED
    await world.put("dev1", {"authentication": {"credentials": [{"pass": "new"}]}, "core": {"disabled": True}})
    assert await world.code(basic("dev1@app1:new")) is Code.DENIED


async def test_guessing_is_limited_per_device_and_per_address(world: World) -> None:
    codes = [await world.code(basic(f"dev1@app1:{n}"), peer=f"10.0.0.{n}") for n in range(7)]
    assert codes == [Code.DENIED] * 5 + [Code.TOO_MANY] * 2
    codes = [await world.code(basic(f"d{n}@app1:x"), peer="10.9.9.9") for n in range(22)]
    assert codes == [Code.DENIED] * 20 + [Code.TOO_MANY] * 2
    codes = [await world.code(basic(f"e{n}@app1:x"), peer=f"2001:db8::{n:x}") for n in range(22)]
    assert codes == [Code.DENIED] * 20 + [Code.TOO_MANY] * 2, "one subscriber, however many addresses he has"
    same = [await world.code(basic(f"nobody@app1:{n}"), peer=f"10.1.0.{n}") for n in range(7)]
    assert same == [Code.DENIED] * 5 + [Code.TOO_MANY] * 2, "a device that does not exist is not told apart"
    world.let_pass(61)
    assert await world.code(basic("dev1@app1:pw")) is Code.ACCEPTED


async def test_a_gateway_speaks_for_those_that_name_it(world: World) -> None:
    await world.put("sensor", {"gatewaySelector": {"matchNames": ["dev1"]}})
    await world.put("stranger", {})
    assert await world.code(basic("dev1@app1:pw"), as_device="sensor") is Code.ACCEPTED
    assert (world.telemetry[-1].device, world.telemetry[-1].sender) == ("sensor", "dev1")
    assert await world.code(basic("dev1@app1:pw"), as_device="stranger") is Code.DENIED
    assert await world.code(basic("dev1@app1:pw"), as_device="nobody") is Code.DENIED
    body = a_status()
    assert await world.code(basic("dev1@app1:pw"), as_device="sensor", channel="dfu", body=body) is Code.COMMAND
    await world.put("dev1", {"authentication": {"credentials": [{"pass": "new"}]}})
    assert await world.code(basic("dev1@app1:pw"), as_device="sensor", channel="dfu", body=body) is Code.DENIED
    assert await world.code(basic("dev1@app1:new"), as_device="sensor", channel="dfu", body=body) is Code.COMMAND
    await world.put("sensor", {})
    assert await world.code(basic("dev1@app1:new"), as_device="sensor", channel="dfu", body=body) is Code.DENIED


def certificate(
    subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    start = datetime.datetime.fromtimestamp(1_799_000_000, datetime.UTC)
    ca = x509.BasicConstraints(ca=subject == issuer, path_length=None)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name.from_rfc4514_string(subject))
        .issuer_name(x509.Name.from_rfc4514_string(issuer))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=100))
        .add_extension(ca, critical=True)
        .sign(signer, hashes.SHA256())
    )


async def test_a_client_certificate_is_judged_by_the_anchors_of_the_app(world: World) -> None:
    ours, theirs, device = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    anchor = certificate("CN=anchor", "CN=anchor", ours, ours).public_bytes(Encoding.PEM)
    spec = {"trustAnchors": {"anchors": [{"certificate": base64.b64encode(anchor).decode()}]}}
    await world.store.commit([PutApp(App(Metadata("app1"), spec))])
    world.bus.publish(AppChanged("app1"))
    good = certificate("CN=dev1,O=x", "CN=anchor", device, ours).public_bytes(Encoding.DER)
    forged = certificate("CN=dev1,O=x", "CN=anchor", device, theirs).public_bytes(Encoding.DER)
    unknown = certificate("CN=nobody", "CN=anchor", device, ours).public_bytes(Encoding.DER)

    async def code(der: bytes) -> Code:
        found = await world.post(Credentials(certificate=der))
        assert isinstance(found, Reply)
        return found.code

    assert [await code(c) for c in (good, forged, unknown, b"rubbish")] == [Code.ACCEPTED] + [Code.DENIED] * 3
    # In a name, rfc4514 writes the last attribute first; Drogue writes them as they stand, after a space.
    await world.put("other", {"alias": ["CN=d, O=Drogue IoT, OU=app1"]})
    drogues = certificate("OU=app1,O=Drogue IoT,CN=d", "CN=anchor", device, ours).public_bytes(Encoding.DER)
    assert await code(drogues) is Code.ACCEPTED
    assert world.telemetry[-1].device == "other"
    world.let_pass(200 * 86400)
    assert await code(good) is Code.DENIED, "it has expired"


async def test_commands_reach_who_waits_and_are_kept_for_who_does_not(world: World) -> None:
    me = Credentials(basic("dev1@app1:pw"))
    waiting = await world.post(me, timeout_s=30.0)
    assert isinstance(waiting, Waiting)
    got: list[Reply] = []
    assert await world.endpoint.commands.send("app1", "dev1", "", "early", b"1"), "before listen(): not lost"
    waiting.listen(got.append)
    assert [r.command for r in got] == ["early"]
    assert await world.endpoint.commands.send("app1", "dev1", "", "kept", b"2")
    assert await world.endpoint.commands.send("app1", "dev1", "", "kept too", b"3")
    assert not await world.endpoint.commands.send("app1", "dev1", "", "one too many", b"4")
    assert not await world.endpoint.commands.send("app1", "nobody", "", "now or never", b"", expires_s=0)
    found = await world.post(me)
    assert isinstance(found, Reply)
    assert (found.code, found.command, found.body) == (Code.COMMAND, "kept", b"2")
    world.let_pass(61)
    found = await world.post(me)
    assert isinstance(found, Reply)
    assert found.code is Code.ACCEPTED, "the other one has expired"


class Answering(EventSink):
    """Somebody who sends a command for an event before its device has been answered."""

    name = "answering"

    def __init__(self, endpoint: DeviceEndpoint) -> None:
        self.endpoint = endpoint

    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()

    async def take(self, telemetry: Telemetry) -> None:
        assert await self.endpoint.commands.send(telemetry.app, telemetry.device, "", "quick", b"", expires_s=0), (
            "it waits already"
        )


async def test_a_command_that_answers_the_event_itself_is_not_lost(world: World) -> None:
    world.sinks(Answering(world.endpoint))
    waiting = await world.post(Credentials(basic("dev1@app1:pw")), timeout_s=30.0)
    assert isinstance(waiting, Waiting)
    got: list[Reply] = []
    waiting.listen(got.append)
    assert [r.command for r in got] == ["quick"]


async def test_a_command_for_a_peer_that_has_just_gone_is_kept(world: World) -> None:
    me = Credentials(basic("dev1@app1:pw"))
    waiting = await world.post(me, timeout_s=30.0)
    assert isinstance(waiting, Waiting)
    assert await world.endpoint.commands.send("app1", "dev1", "", "late", b"1")
    waiting.cancel()
    await world.endpoint.commands.kept.settled()
    found = await world.post(me)
    assert isinstance(found, Reply)
    assert found.command == "late"


async def test_a_poll_that_says_nothing_new_is_answered_from_memory(world: World) -> None:
    me = Credentials(basic("dev1@app1:pw"))
    request = Request("http", "127.0.0.1", me, "dfu", a_status())
    assert world.endpoint.quick(request) is None
    first = await world.endpoint.post(request)
    assert isinstance(first, Reply)
    assert decode_command_untrusted(first.body).type is Type.WAIT
    assert world.endpoint.quick(request) == first
    assert world.endpoint.quick(Request("http", "127.0.0.1", me, "dfu", a_status(sequence=1))) is None
    world.bus.publish(DeviceChanged("app1", "dev1"))
    assert world.endpoint.quick(request) is None, "something changed"


async def test_a_parked_poll_is_woken_by_a_change_and_drained_at_the_end(world: World) -> None:
    me = Credentials(basic("dev1@app1:pw"))
    parked = await world.post(me, channel="dfu", body=a_status(), timeout_s=60.0)
    assert isinstance(parked, Waiting)
    got: list[Reply] = []
    parked.listen(got.append)
    assert world.endpoint.parked == 1
    world.endpoint.drain()
    assert [r.code for r in got] == [Code.ACCEPTED]
    assert world.endpoint.parked == 0
    assert isinstance(await world.post(me, channel="dfu", body=a_status(), timeout_s=60.0), Reply), (
        "nobody parks any more"
    )


async def test_who_waits_with_a_secret_that_is_revoked_is_denied_and_told_nothing(world: World) -> None:
    parked = await world.post(Credentials(basic("dev1@app1:pw")), channel="dfu", body=a_status(), timeout_s=60.0)
    assert isinstance(parked, Waiting)
    got: list[Reply] = []
    parked.listen(got.append)
    await world.put("dev1", {"authentication": {"credentials": [{"pass": "new"}]}, "firmware": {"version": "9"}})
    with trio.fail_after(120):
        while not got:
            await trio.sleep(0.002)
    assert [r.code for r in got] == [Code.DENIED] and not world.endpoint.parked


@pytest.mark.parametrize("body", [b"", b"\x80", b"\xa1", b"\x81\x00\x02", a_status() + b"x", b"{}", bytes(5000)])
async def test_a_malformed_status_is_refused(world: World, body: bytes) -> None:
    found = await world.post(Credentials(basic("dev1@app1:pw")), channel="dfu", body=body)
    assert isinstance(found, Reply)
    assert (found.code, found.error) == (Code.MALFORMED, "InvalidFormat")


async def test_nobody_gets_chunks_of_a_package_that_is_not_his(world: World) -> None:
    me = Credentials(basic("dev1@app1:pw"))
    for package in ("ab" * 16, "../../etc/passwd", ""):
        found = await world.endpoint.chunks("127.0.0.1", me, package, 0, 0)
        assert not isinstance(found, Chunks)
        assert found.code is Code.NOT_FOUND
    stranger = await world.endpoint.chunks("127.0.0.1", Credentials(b"x"), "ab" * 16, 0, 0)
    assert isinstance(stranger, Reply)
    assert stranger.code is Code.DENIED


@given(st.binary(max_size=100), st.text(max_size=10), st.text(max_size=10))
def test_no_header_raises(authorization: bytes, application: str, device: str) -> None:
    for value in (authorization, b"Basic " + authorization, basic("x@y:z") + authorization):
        parse_basic_untrusted(Credentials(value, application=application, device=device))


async def test_a_pre_shared_key_is_given_out_until_it_changes_under_whatever_name(world: World) -> None:
    def spec(key: str, **more: Any) -> dict[str, Any]:
        return {"authentication": {"credentials": [{"psk": {"key": base64.b64encode(key.encode()).decode(), **more}}]}}

    e = world.endpoint
    await world.put("a@b", {**spec("first"), "alias": ["nick name"]})
    names = ["a%40b@app1", "nick%20name@app1", "nick name@app1"]
    for name in names:
        assert e.key_for_cached("coap", name) is None
        assert await e.key_for("coap", name) == e.key_for_cached("coap", name) == b"first"
    assert await e.key_for("coap", "dev1@app1") is None and await e.key_for("coap", "a@b@app1") is None
    view = await world.store.device("app1", "a@b")
    assert view is not None
    device = msgspec.structs.replace(view.device, spec=protect(spec("second"), KEY))
    await world.store.commit([PutDevice(device, view.device.metadata.resource_version)])
    world.bus.publish(DeviceChanged("app1", "a@b"))
    assert [e.key_for_cached("coap", name) for name in names] == [None, None, None]
    assert await e.key_for("coap", names[0]) == b"second"
    world.bus.publish(AppChanged("app1"))
    assert e.key_for_cached("coap", names[0]) is None


async def test_a_pre_shared_key_ends_with_its_validity(world: World) -> None:
    psk = {"key": "a2V5", "validity": {"notAfter": "2027-01-15T08:00:10Z"}}  # ten seconds after the clock of this world
    await world.put("d", {"authentication": {"credentials": [{"psk": psk}]}})
    assert await world.endpoint.key_for("coap", "d@app1") == b"key"
    world.let_pass(301)
    assert world.endpoint.key_for_cached("coap", "d@app1") is None
    assert await world.endpoint.key_for("coap", "d@app1") is None


async def test_a_repeated_wish_is_told_apart_from_the_first_and_the_same_one_is_not(world: World) -> None:
    def sent(event: str, device: str = "dev1") -> None:
        deployment = Deployment(
            id="d", app="app1", device=device, version="1.1", sha256="ab", state=State.NOTIFIED, created_s=1.0, updated_s=1.0
        )
        entry = HistoryEntry(deployment="d", app="app1", device=device, at_s=1.0, state=State.NOTIFIED, version="1.1", event=event)
        world.bus.publish(DeploymentChanged(deployment, entry))

    def told() -> int:
        return world.endpoint._command("app1", "dev1", Command(Type.UPDATE, package=bytes(16))).told

    sent("sent")
    first = told()
    sent("sent", "another")
    sent("chunk")
    assert first and told() == first
    sent("cancel")
    sent("sent")
    assert told() > first
    assert world.endpoint._command("app1", "dev1", Command(Type.SYNC, 60)).told == 0


@pytest.mark.parametrize("channel", ["..", "a/../b", "", "a\x1b[31m", "a\u202eb", "u\u0308", "x" * 256])
async def test_a_channel_has_a_name_that_can_be_shown(world: World, channel: str) -> None:
    assert await world.code(basic("dev1@app1:pw"), channel=channel) is Code.MALFORMED
    assert await world.code(basic("dev1@app1:pw"), channel="Türen/1") is Code.ACCEPTED
