"""The sockets: what reaches the server through them, what does not, and what a config may not say."""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from dfud_coap.config import CoapConfig
from dfud_coap.message import CON, DATAGRAM_MAX_BYTES, Code, Message, Option, decode_untrusted, encode
from dfud_coap.oscore import Context, Header, OscoreError
from dfud_coap.transport import CoapTransport, _plain_address

from dfud.api import Code as Outcome
from dfud.api import ConfigError, Reply, faults
from dfud.testing.transport import AUTHORIZATION, FakeEndpoint
from tests.plugins.coap.test_libcoap import AUTH, client, pki  # noqa: F401  # a fixture
from tests.plugins.coap.world import LIMIT_S, World, until


def post(message_id: int, body: bytes = b"s", channel: bytes = b"dfu", query: bytes = b"") -> bytes:
    options = [
        (int(Option.URI_PATH), b"v1"),
        (int(Option.URI_PATH), channel),
        (int(Option.AUTHORIZATION), AUTHORIZATION),
    ]
    if query:
        options.append((int(Option.URI_QUERY), query))
    return encode(Message(CON, Code.POST, message_id, b"t", options, body))


@pytest.fixture(params=["together", "one by one"])
async def world(nursery: trio.Nursery, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Both ways that there are to take and to send datagrams."""
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "one by one":
            patched.setattr("dfud_coap.datagrams._calls", lambda: None)
        found = await World().start(nursery)
        await trio.testing.wait_all_tasks_blocked()
    yield found
    nursery.cancel_scope.cancel()


@pytest.fixture
async def sock(world: World) -> AsyncIterator[Any]:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as found:
        await found.connect(("127.0.0.1", world.port))
        yield found


async def answer(sock: Any) -> Message:
    with trio.fail_after(LIMIT_S):
        return decode_untrusted(await sock.recv(2048))


async def test_hundreds_of_datagrams_at_once_are_all_answered(world: World, sock: Any) -> None:
    for number in range(150):
        await sock.send(post(number, b"%d" % number))
    got = {(await answer(sock)).message_id for _ in range(150)}
    assert got == set(range(150)) and len(world.endpoint.requests) == 150


async def test_what_is_no_coap_or_too_long_is_dropped(world: World, sock: Any) -> None:
    for data in (b"", b"\0", b"\x80\1\0\0rest", b"\xff" * 100, post(1, bytes(DATAGRAM_MAX_BYTES))):
        await sock.send(data)
    await sock.send(post(2))
    assert (await answer(sock)).message_id == 2 and len(world.endpoint.requests) == 1


async def test_an_exception_costs_one_datagram(world: World, sock: Any) -> None:
    def broken(request: Any) -> Any:
        raise ValueError("a bug")

    right, world.endpoint.quick = world.endpoint.quick, broken  # type: ignore[method-assign]
    await sock.send(post(1))
    assert (await answer(sock)).code == Code.FAILED and faults()["coap.datagram"]
    world.endpoint.quick = right  # type: ignore[method-assign]
    await sock.send(post(2))
    assert (await answer(sock)).code == Code.CONTENT


async def test_draining_waits_for_the_acknowledgement_of_what_was_parked(world: World, sock: Any) -> None:
    await sock.send(post(1, channel=b"x", query=b"ct=60"))
    assert (await answer(sock)).code == Code.EMPTY
    drained = trio.Event()

    async def drain() -> None:
        await world.transport.drain()
        drained.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        separate = await answer(sock)
        assert separate.code == Code.CHANGED and not drained.is_set()
        await sock.send(bytes.fromhex(f"6000{separate.message_id:04x}"))
        with trio.fail_after(LIMIT_S):
            await drained.wait()


async def test_a_separate_answer_is_sent_again_until_it_is_acknowledged(
    world: World, sock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfud_coap.reliability.ACK_TIMEOUT_S", 0.05)
    await sock.send(post(1, channel=b"x", query=b"ct=60"))
    assert (await answer(sock)).code == Code.EMPTY
    world.endpoint.wake(Reply(Outcome.COMMAND, "blink", b"now"))
    first = await answer(sock)
    assert (first.type, first.token, first.payload) == (CON, b"t", b"now")
    assert await answer(sock) == first  # the timers run
    await sock.send(bytes.fromhex(f"6000{first.message_id:04x}"))
    await until(lambda: world.server.idle)


async def test_ipv6_and_mapped_addresses(nursery: trio.Nursery) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        assert _plain_address("::ffff:192.0.2.1") == "192.0.2.1"
        return  # a machine without IPv6
    world = await World(host="::").start(nursery)
    for family, address in ((trio.socket.AF_INET, "127.0.0.1"), (trio.socket.AF_INET6, "::1")):
        with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
            await sock.connect((address, world.port))
            await sock.send(post(1))
            assert (await answer(sock)).code == Code.CONTENT
        assert world.endpoint.requests[-1].peer == address
    assert world.url.startswith("coap://[::]:")
    nursery.cancel_scope.cancel()


def test_addresses_for_limits_have_one_form() -> None:
    assert _plain_address("::ffff:192.0.2.1") == "192.0.2.1"
    assert _plain_address("fe80::1%eth0") == "fe80::1"
    assert _plain_address("::ffff:nonsense") == "::ffff:nonsense"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"block_max": 1000}, "block_max 1000, expected a power of two"),
        ({"client_required": True}, "need a certificate"),
        ({"certificate": "/nowhere.pem"}, "certificate /nowhere.pem"),
    ],
)
def test_a_config_that_cannot_be_right(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CoapTransport(CoapConfig(**config))


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            await CoapTransport(CoapConfig(port=port)).run(FakeEndpoint())


def test_what_oscore_decrypts_is_not_logged_whatever_the_level(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("aiocoap.cryptography").setLevel(logging.NOTSET)
    CoapTransport(CoapConfig())
    caplog.set_level(logging.DEBUG)
    context = Context(Header(b"\0", b"\1" * 8 + b"d@a", "d@a"), b"k" * 16, 0)
    with pytest.raises(OscoreError):
        context.unprotect_untrusted(2, b"\x19\0\x0b" + context.id_context + b"\1", bytes(20), False)
    assert caplog.records == []


# DTLS


async def test_a_new_certificate_is_used_for_new_sessions_and_a_broken_one_is_not(
    nursery: trio.Nursery,
    pki: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    for kind in ("crt", "key"):
        shutil.copy(pki / f"server.{kind}", tmp_path / f"own.{kind}")
    world = await World(certificate=f"{tmp_path}/own.crt", key=f"{tmp_path}/own.key").start(nursery)
    arguments = ("-v", "6", "-n", "-m", "post", "-e", "hello", *AUTH, f"{world.urls[1]}/v1/dfu")
    out, log = await client(*arguments, part="coap-client-openssl")
    assert "CN 'server'" in out.decode() + log and "hello" in out.decode()
    for kind in ("crt", "key"):
        shutil.copy(pki / f"ca.{kind}", tmp_path / f"own.{kind}")
    world.transport.reload()
    out, log = await client(*arguments, part="coap-client-openssl")
    assert "CN 'ca'" in out.decode() + log and "hello" in out.decode()
    (tmp_path / "own.crt").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"own\.crt"):
        world.transport.reload()
    out, log = await client(*arguments, part="coap-client-openssl")
    assert "CN 'ca'" in out.decode() + log and "hello" in out.decode()
    nursery.cancel_scope.cancel()


async def test_sessions_are_bounded_and_rubbish_does_not_end_the_listener(
    nursery: trio.Nursery,
    pki: Path,  # noqa: F811
) -> None:
    config = {"certificate": f"{pki}/server.crt", "key": f"{pki}/server.key", "sessions_per_address": 1}
    world = await World(**config).start(nursery)
    port = int(world.urls[1].rpartition(":")[2])
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(("127.0.0.1", port))
        for data in (b"", b"\x16", b"\x16\xfe\xfd" + bytes(200), post(1), b"\x17\xfe\xfd" + bytes(8) + b"\0\x05hello"):
            await sock.send(data)
    world.endpoint.answers.clear()
    waiting = ("-n", "-m", "post", "-e", "x", *AUTH, f"{world.urls[1]}/v1/x?ct=50")
    async with trio.open_nursery() as clients:
        clients.start_soon(lambda: client(*waiting, part="coap-client-openssl"))
        await until(lambda: world.endpoint.parked)
        out, _ = await client(
            *("-n", "-B", "2", "-m", "post", "-e", "hello", *AUTH, f"{world.urls[1]}/v1/dfu"),
            part="coap-client-openssl",
        )
        assert b"hello" not in out
        world.endpoint.wake(Reply(Outcome.ACCEPTED))
    await until(lambda: not world.transport._sessions)
    out, _ = await client(
        "-n", "-m", "post", "-e", "hello", *AUTH, f"{world.urls[1]}/v1/dfu", part="coap-client-openssl"
    )
    assert out == b"hello"
    nursery.cancel_scope.cancel()
