"""The attacker sits between device and dfud: he reads, changes and answers what he likes."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
from dfud_http.config import HttpConfig
from dfud_http.transport import HttpTransport

from devicefw.sim.board import Board
from tests.e2e.certificates import Authority, self_signed
from tests.e2e.fleet import fleet
from tests.real_parts import require
from tests.security.hostile import HostileEndpoint, board_at, firmware

RUNNING, NEW = firmware("1.0"), firmware("1.1")


class Middle:
    """Listens where the device thinks dfud is; `heard` is all that came in, `connections` how often."""

    def __init__(self, answer: bytes = b"", tls: ssl.SSLContext | None = None, pass_to: int = 0) -> None:
        self.answer, self.tls, self.pass_to = answer, tls, pass_to
        self.heard = bytearray()
        self.connections = 0

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(int(listeners[0].socket.getsockname()[1]))
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, stream: Any) -> None:
        self.connections += 1
        try:
            if self.pass_to:
                await self._pass(stream)
                return
            if self.tls is not None:
                stream = trio.SSLStream(stream, self.tls, server_side=True)
            while data := await stream.receive_some(4096):
                self.heard += data
                if self.answer:
                    await stream.send_all(self.answer)
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
            return

    async def _pass(self, client: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self.pass_to) as server, trio.open_nursery() as nursery:

            async def back() -> None:
                async for data in server:
                    await client.send_all(data)

            nursery.start_soon(back)
            async for data in client:
                self.heard += data
                await server.send_all(data)
            nursery.cancel_scope.cancel()


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


async def tries(directory: Path, middle: Middle, *, scheme: str = "https", **trust: Any) -> Board:
    """Let a board try to reach the man in the middle until it has complained twice; return the board."""
    require("micropython")
    require("riscv-gcc")
    async with trio.open_nursery() as nursery:
        port = await nursery.start(middle.run)
        board = board_at(directory / "board", f"{scheme}://localhost:{port}", RUNNING, **trust)
        nursery.start_soon(board.run)
        with trio.fail_after(60):
            while sum(line.startswith("dfu:") for line in board.console) < 2:
                assert len(board.boots) < 2, board.console
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    return board


def nothing_was_told(middle: Middle) -> None:
    assert middle.connections, "the device never came"
    for word in (b"HTTP/1.1", b"Authorization", b"its own secret", base64.b64encode(b"lamp1@lamps:its own secret")):
        assert word not in middle.heard


async def test_a_device_with_a_pin_is_updated_by_the_pinned_server(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    certificate, key, der = self_signed(tmp_path / "tls", "dfud.example")
    section = f'certificate = "{certificate}"\nkey = "{key}"\n'
    async with fleet(tmp_path, extra=section) as f:
        await f.publish(RUNNING, "1.0")
        await f.publish(NEW, "1.1")
        url = f"https://localhost:{f.daemon.ports['http']}"
        board = await f.board("lamp1", RUNNING, url=url, pin=der, server_name="dfud.example")
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        assert (await f.wait("lamp1", "done", timeout_s=60))["current"] == "1.1"


@pytest.mark.parametrize("how", ["self-signed, too", "by an authority of the pinned one's name", "by any authority"])
async def test_another_certificate_than_the_pinned_one_hears_nothing(tmp_path: Path, how: str) -> None:
    _, _, pinned = self_signed(tmp_path / "dfud")
    if how.startswith("self"):
        certificate, key, _ = self_signed(tmp_path / "middle")
    else:
        certificate, key, _ = Authority("localhost" if "name" in how else "another").server(tmp_path / "middle")
    middle = Middle(tls=server_context(certificate, key))
    await tries(tmp_path, middle, pin=pinned)
    nothing_was_told(middle)


async def test_https_without_a_certificate_to_judge_by_is_refused(tmp_path: Path) -> None:
    """Nothing is trusted in silence: without ca and pin, or with a hash in their place, the program does not start."""
    require("micropython")
    require("riscv-gcc")
    for trust in ({}, {"pin": bytes(32)}, {"ca": b""}):
        board = board_at(tmp_path / str(len(str(trust))), "https://localhost:1", RUNNING, **trust)
        with trio.move_on_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(board.run)
                while not any("https needs a certificate" in line for line in board.console):
                    await trio.sleep(0.02)
                nursery.cancel_scope.cancel()
        assert any("https needs a certificate" in line for line in board.console), board.console


@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_a_certificate_of_another_authority_or_name_hears_nothing(tmp_path: Path, wrong: str) -> None:
    ours, theirs = Authority(), Authority()
    signer, host = (theirs, "localhost") if wrong == "authority" else (ours, "elsewhere.example")
    certificate, key, _ = signer.server(tmp_path / "middle", host)
    middle = Middle(tls=server_context(certificate, key))
    await tries(tmp_path, middle, ca=ours.der)
    nothing_was_told(middle)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 308 Permanent Redirect\r\nLocation: http://localhost/\r\nContent-Length: 0\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
    ],
    ids=["silence", "a redirect to plain HTTP", "an alert: no such version"],
)
async def test_a_device_told_https_never_falls_back_to_plain(tmp_path: Path, answer: bytes) -> None:
    authority = Authority()
    middle = Middle(answer or b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
    await tries(tmp_path, middle, ca=authority.der)
    nothing_was_told(middle)
    assert middle.heard[:1] == b"\x16", "a TLS handshake and nothing else"


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    """Even the right server cannot send a device, and with it its secret, elsewhere."""
    async with trio.open_nursery() as nursery:
        elsewhere = Middle(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
        port = await nursery.start(elsewhere.run)
        location = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://localhost:{port}/v1/dfu\r\nContent-Length: 0\r\n\r\n"
        middle = Middle(location.encode())
        await tries(tmp_path, middle, scheme="http")
        assert middle.connections and not elsewhere.connections
        nursery.cancel_scope.cancel()


async def _through(directory: Path, scheme: str, config: HttpConfig, **trust: Any) -> Middle:
    """Return what somebody heard who passed on everything between a board and a server that answers."""
    require("micropython")
    require("riscv-gcc")
    endpoint = HostileEndpoint([])
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(HttpTransport(config).run, endpoint)
        middle = Middle(pass_to=int(url.rpartition(":")[2]))
        port = await nursery.start(middle.run)
        board = board_at(directory / "board", f"{scheme}://localhost:{port}", RUNNING, **trust)
        nursery.start_soon(board.run)
        with trio.fail_after(60):
            while not endpoint.statuses:
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    return middle


async def test_over_tls_he_hears_noise(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key, _ = authority.server(tmp_path / "tls")
    middle = await _through(
        tmp_path, "https", HttpConfig(port=0, certificate=str(certificate), key=str(key)), ca=authority.der
    )
    nothing_was_told(middle)
    assert len(middle.heard) > 300


async def test_over_plain_http_he_reads_the_devices_secret(tmp_path: Path) -> None:
    """What he can do, and why plain HTTP is refused off the loopback unless somebody allows it."""
    middle = await _through(tmp_path, "http", HttpConfig(port=0))
    assert base64.b64encode(b"lamp1@lamps:its own secret") in bytes(middle.heard)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "ciphers"),
    [
        (ssl.TLSVersion.TLSv1, "ALL:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_2, "AES128-SHA:AES256-SHA256:AES128-GCM-SHA256"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA384"),
    ],
    ids=["TLS 1.0", "TLS 1.1", "no forward secrecy", "CBC"],
)
async def test_old_versions_and_suites_are_refused_on_the_device_plane(
    tmp_path: Path, nursery: trio.Nursery, version: ssl.TLSVersion, ciphers: str
) -> None:
    certificate, key, _ = Authority().server(tmp_path)
    transport = HttpTransport(HttpConfig(port=0, certificate=str(certificate), key=str(key)))
    (url,) = await nursery.start(transport.run, HostileEndpoint([]))
    await refuses(int(url.rpartition(":")[2]), version, ciphers)
    nursery.cancel_scope.cancel()


async def refuses(port: int, version: ssl.TLSVersion, ciphers: str) -> None:
    """Insist that a handshake with these does not succeed, and that one with TLS 1.2 and newer does."""

    async def handshake(context: ssl.SSLContext) -> None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context, server_hostname="localhost")
        with trio.fail_after(120):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)

    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.set_ciphers(ciphers)
    old.minimum_version = old.maximum_version = version
    with pytest.raises(trio.BrokenResourceError):
        await handshake(old)
    modern = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    modern.minimum_version = ssl.TLSVersion.TLSv1_2
    await handshake(modern)
