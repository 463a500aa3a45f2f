"""What strangers, devices and users of one app cost everybody else, seen from outside: a whole dfud as a process.

Each attack runs beside an honest device over HTTP, one over CoAP and a user. They must be answered while it goes on, and the
process must not grow by more than a fraction of what it was sent. No time is asserted.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from functools import partial
from pathlib import Path

import bcrypt
import httpx
import pytest
import trio
from dfud_coap.block import Block
from dfud_coap.message import CON, Code, Message, Option, encode
from OpenSSL import SSL

from dfud.testing.device import HttpDevice
from dfud.wire.enrol import Enrolment, encode_enrolment
from dfud.wire.messages import Type
from tests.daemon.outside import APPS, DFU, MIB, NEW, OLD, OTHER, Honest, Outside, outside, together
from tests.e2e.certificates import self_signed
from tests.plugins.coap.plainclient import CoapDevice, PlainClient

VALUES = [f"v{number}" for number in range(12)]


def segments(*parts: str) -> list[tuple[int, bytes]]:
    return [(int(Option.URI_PATH), part.encode()) for part in parts]


class Strangers:
    """Sends datagrams from as many addresses and ports of the loopback network as it is asked to; answers are not read."""

    def __init__(self, daemon: Outside, kind: str = "coap") -> None:
        self._port = int(daemon.urls[kind].rpartition(":")[2])
        self.sent_bytes = 0

    async def send(self, number: int, data: bytes) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((f"127.{1 + number // 60000}.{number // 250 % 240}.{1 + number % 250}", 0))
            sock.sendto(data, ("127.0.0.1", self._port))
        self.sent_bytes += len(data)
        if number % 20 == 0:
            await trio.sleep(0.001)


async def test_longest_selectors_of_one_user(tmp_path: Path) -> None:
    async with outside(tmp_path) as (daemon, _):
        terms = ",".join(f"label{n} in ({','.join(VALUES)})" for n in range(100))[:8000]
        statuses: list[int] = []

        async def ask() -> None:
            async with daemon.client() as client:
                for text in (terms, " " * 30_000, "a=b," * 1200, "!" * 8000):
                    answer = await client.get(f"{APPS}/bad/devices", params={"labels": text})
                    statuses.append(answer.status_code)

        async def attack() -> None:
            await together(*[ask] * 40)

        grown = await Honest(daemon).meanwhile(attack)
        assert grown < 60 * MIB, grown / MIB
        assert len(statuses) == 160 and set(statuses) <= {200, 400, 414, 431}, set(statuses)


async def test_one_device_that_names_many_payload_sizes(tmp_path: Path) -> None:
    """Another app's device gets its package while the first one's are made, of which there are few."""
    async with outside(tmp_path, {"controller": "packages_per_hour = 5\nworkers = 1"}) as (daemon, user):
        for app in ("good", "bad"):
            await daemon.publish(user, app, ("1.0", OLD), ("1.1", NEW if app == "bad" else OTHER))
            spec = {"signing": {"mode": "optional"}, "firmware": {"version": "1.1"}}
            if app == "bad":
                (await user.put(f"{APPS}/{app}", json={"metadata": {"name": app}, "spec": spec})).raise_for_status()
        order: list[str] = []

        async def greedy() -> None:
            async with daemon.http("bad", "b0") as client:
                for number in range(40):
                    device = HttpDevice(client, OLD, "1.0", payload=512 + 1600 * number)
                    await device.poll()
                    if number == 10:
                        (
                            await user.put(f"{APPS}/good", json={"metadata": {"name": "good"}, "spec": spec})
                        ).raise_for_status()
            order.append("greedy")

        async def honest() -> None:
            async with daemon.http("good", "h1") as client:
                device = HttpDevice(client, OLD, "1.0", payload=4160)
                with trio.fail_after(120):
                    while (command := await device.poll()) is None or command.type is not Type.UPDATE:
                        await trio.sleep(0.02)
            order.append("honest")

        grown = await Honest(daemon).meanwhile(partial(together, greedy, honest))
        assert grown < 60 * MIB, grown / MIB
        assert sorted(order) == ["greedy", "honest"]
        made = list((tmp_path / "packages").glob("*.key"))
        assert len(made) <= 5 + 2, "five of the greedy one, and those of the honest devices"


async def test_many_guesses_at_a_device_with_a_slow_password(tmp_path: Path) -> None:
    async with outside(tmp_path, {"endpoint": "failures_per_device = 6\nslow_checks = 1"}) as (daemon, user):
        hashed = bcrypt.hashpw(b"right", bcrypt.gensalt(10)).decode()
        await daemon.device(user, "bad", "slow", authentication={"credentials": [{"pass": {"bcrypt": hashed}}]})
        codes: list[int] = []

        async def guess(address: int) -> None:
            async with daemon.http("bad", "slow", "wrong", local=f"127.0.9.{address}") as client:
                for _ in range(5):
                    codes.append((await client.post("/v1/temp", content=b"x")).status_code)

        async def attack() -> None:
            await together(*[partial(guess, 1 + number % 200) for number in range(60)])

        grown = await Honest(daemon).meanwhile(attack, least=2, rest=0.0)
        assert grown < 60 * MIB, grown / MIB
        assert len(codes) == 300 and set(codes) == {403, 429}
        judged = await daemon.counted(user, "dfud_devices_denied_total", 'reason="password"')
        assert 0 < judged <= 2 * 6, "as many as may fail in a minute, in two minutes at the most"


async def test_dtls_handshakes_that_stall(tmp_path: Path) -> None:
    """They are begun with a right cookie and never ended; one at another address is not kept waiting by them."""
    certificate, key, _ = self_signed(tmp_path)
    coap = f'certificate = "{certificate}"\nkey = "{key}"\ndtls_port = 0\n'
    coap += "handshake_s = 600.0\nhandshakes = 8\nhandshakes_per_address = 4"
    async with outside(tmp_path / "dfud", {"transport.coap": coap}) as (daemon, _):
        port = next(
            int(line["url"].rpartition(":")[2])
            for line in daemon.lines
            if str(line.get("url", "")).startswith("coaps://")
        )
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)

        async def stall(number: int) -> None:
            sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
            opened.enter_context(sock)
            await sock.bind((f"127.0.8.{1 + number % 3}", 0))
            await sock.connect(("127.0.0.1", port))
            connection = SSL.Connection(context, None)
            connection.set_connect_state()
            for _ in range(2):  # the first flight is answered with a cookie, the second one brings it
                with pytest.raises(SSL.WantReadError):
                    connection.do_handshake()
                await sock.send(connection.bio_read(2000))
                with trio.move_on_after(5):
                    connection.bio_write(await sock.recv(4000))

        async def attack() -> None:
            await together(*[partial(stall, number) for number in range(150)])
            with trio.fail_after(120):
                while not await handshake():
                    pass

        async def handshake() -> bool:
            """As a device does it: begin anew where no answer comes for long."""
            address = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
            with trio.DTLSEndpoint(address) as endpoint, trio.move_on_after(8) as waiting:
                channel = endpoint.connect(("127.0.0.1", port), SSL.Context(SSL.DTLS_CLIENT_METHOD))
                await channel.do_handshake()
            return not waiting.cancelled_caught

        with contextlib.ExitStack() as opened:
            grown = await Honest(daemon).meanwhile(attack)
        assert grown < 60 * MIB, grown / MIB


async def test_coap_bodies_in_blocks_that_never_end(tmp_path: Path) -> None:
    settings = {"transport.coap": "transfers = 200\ntransfers_per_address = 20"}
    async with outside(tmp_path, settings) as (daemon, _):
        strangers = Strangers(daemon)

        async def attack() -> None:
            for number in range(6_000):
                options = [*segments("v1", "temp"), (int(Option.URI_QUERY), b"device=%d" % number)]
                options.append((int(Option.BLOCK1), Block(0, True, 6).value()))
                await strangers.send(
                    number, encode(Message(CON, Code.POST, number & 0xFFFF, b"", options, bytes(1024)))
                )

        grown = await Honest(daemon).meanwhile(attack, rounds=8)
        assert grown < 60 * MIB, grown / MIB


async def test_coap_peers_whose_addresses_are_made_up(tmp_path: Path) -> None:
    """Each sends one request, at a device that there is, with a password that is not its own."""
    settings = {
        "transport.coap": "peers = 500\nrequests_known = 500\nremembered = 2000\nverified = 500\ncounted_max = 500",
        "endpoint": "counted_max = 500",
    }
    async with outside(tmp_path, settings) as (daemon, _):
        strangers = Strangers(daemon)

        async def attack() -> None:
            for number in range(6_000):
                authorization = (int(Option.AUTHORIZATION), b"Basic " + b"eA==" * 50 + b"%d" % number)
                message = Message(
                    CON, Code.POST, number & 0xFFFF, b"", [*segments("v1", "dfu"), authorization], bytes(300)
                )
                await strangers.send(number, encode(message))

        # Datagrams are lost where there are too many, and repeated after a second.
        grown = await Honest(daemon).meanwhile(attack, rounds=30)
        assert grown < 40 * MIB, grown / MIB


async def test_a_device_that_registers_observations_without_end(tmp_path: Path) -> None:
    settings = {"transport.coap": "waiting = 400\nwaiting_per_address = 200"}
    async with outside(tmp_path, settings) as (daemon, _):
        answered = {"2": 0, "5": 0}

        async def attack() -> None:
            url, authorization = daemon.urls["coap"], daemon.authorization("bad", "b0")
            async with PlainClient(url, authorization, local="127.0.0.77") as client:
                for _ in range(900):
                    message = client.message(Code.FETCH, "v1/dfu", status, (int(Option.OBSERVE), b""))
                    answer = await client.exchange(message)
                    answered[str(answer.code >> 5)] = answered.get(str(answer.code >> 5), 0) + 1

        async with daemon.http("bad", "b0") as client:
            recorded = HttpDevice(client, OLD, "1.0", payload=4160)
            status = b""

            async def keep(body: bytes) -> bytes | None:
                nonlocal status
                status = body
                return None

            recorded._exchange = keep
            await recorded.poll()
        grown = await Honest(daemon).meanwhile(attack)
        assert grown < 60 * MIB, grown / MIB
        assert sum(answered.values()) == 900 and answered["2"], answered


async def test_a_webhook_that_answers_without_end_or_not_at_all(tmp_path: Path) -> None:
    """Telemetry waits for it, in a line that ends; updates do not."""
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener[0].socket.getsockname()[1]
    connections = [0]

    async def serve(stream: trio.SocketStream) -> None:
        connections[0] += 1
        try:
            if connections[0] % 2:
                await trio.sleep_forever()
            await stream.receive_some(4096)
            await stream.send_all(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                await stream.send_all(b"10000\r\n" + bytes(65536) + b"\r\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    (tmp_path / "key").write_text(secrets.token_hex(32))
    hook = f'url = "http://127.0.0.1:{port}/"\nsecret_file = "{tmp_path}/key"\n'
    hook += "timeout_s = 2.0\nattempts = 1\nconcurrent = 4\nwaiting_max = 8"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, serve, listener))
        async with outside(tmp_path / "dfud", {"events.webhook": hook}) as (daemon, _):
            codes: list[int] = []

            async def telemetry() -> None:
                async with daemon.http("bad", "b0") as client:
                    for _ in range(3):
                        codes.append((await client.post("/v1/temp", content=bytes(60_000))).status_code)

            async def attack() -> None:
                await together(*[telemetry] * 60)

            honest = Honest(daemon)
            honest.by_coap = partial(status_by_coap, daemon)  # type: ignore[method-assign]
            grown = await honest.meanwhile(attack)
            assert grown < 60 * MIB, grown / MIB
            assert len(codes) == 180 and set(codes) == {503}, set(codes)
        nursery.cancel_scope.cancel()


async def status_by_coap(daemon: Outside) -> bytes:
    async with PlainClient(daemon.urls["coap"], daemon.authorization("good", "h1")) as client:
        await CoapDevice(client, OLD, "1.0", payload=4160).poll()
    return b""


async def test_large_telemetry_without_pause(tmp_path: Path) -> None:
    async with outside(
        tmp_path, {"events.log": f'path = "{tmp_path}/events"\nwaiting_max = 64\nmax_bytes = 4194304\nkeep = 1'}
    ) as (
        daemon,
        _,
    ):
        codes: list[int] = []

        async def flood() -> None:
            async with daemon.http("bad", "b0") as client:
                for _ in range(30):
                    codes.append((await client.post("/v1/temp", content=secrets.token_bytes(60_000))).status_code)

        async def attack() -> None:
            await together(*[flood] * 16)

        grown = await Honest(daemon).meanwhile(attack)
        assert grown < 80 * MIB, grown / MIB
        assert len(codes) == 480 and set(codes) <= {202, 503}
        assert sum(path.stat().st_size for path in tmp_path.glob("events*")) < 12 * MIB


async def test_wrong_claim_codes_without_end(tmp_path: Path) -> None:
    """Somebody else enrols with a right one meanwhile, and no device is made of the wrong ones."""
    async with outside(
        tmp_path, {"endpoint": "failures_per_address = 10\nfailures_per_device = 5\ncounted_max = 400"}
    ) as (daemon, user):
        answer = await user.post(f"{DFU}/good/claims", json={"uses": 2})
        code = answer.json()["code"]
        codes: list[int] = []

        async def guess(address: int) -> None:
            transport = httpx.AsyncHTTPTransport(local_address=f"127.0.7.{address}")
            async with httpx.AsyncClient(base_url=daemon.urls["http"], timeout=60, transport=transport) as client:
                for number in range(25):
                    body = encode_enrolment(
                        Enrolment("good", f"x{address}-{number}", "wrong-code-1234", secrets.token_urlsafe(16))
                    )
                    codes.append((await client.post("/v1/enrol", content=body)).status_code)

        enrolled: list[int] = []

        async def honest() -> None:
            async with httpx.AsyncClient(base_url=daemon.urls["http"], timeout=60) as client:
                body = encode_enrolment(Enrolment("good", "new", code, secrets.token_urlsafe(16)))
                enrolled.append((await client.post("/v1/enrol", content=body)).status_code)

        async def attack() -> None:
            await together(*[partial(guess, 1 + number) for number in range(40)], honest)

        grown = await Honest(daemon).meanwhile(attack)
        assert grown < 60 * MIB, grown / MIB
        assert enrolled == [200] and len(codes) == 1000 and set(codes) <= {403, 429}, (enrolled, set(codes))
        names = [d["metadata"]["name"] for d in (await user.get(f"{APPS}/good/devices")).json()]
        assert sorted(names) == ["h0", "h1", "new"]
        assert (await daemon.counted(user, "dfud_devices_denied_total", 'reason="code"')) <= 40 * 10 * 2
