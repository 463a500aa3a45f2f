"""The user plane over TLS, on the real process: certificates that change, old protocols, plain HTTP, slow handshakes."""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio
from hypercorn.config import Sockets

import dfud.registry.server as server
from dfud.api import ConfigError
from dfud.registry.config import RegistryConfig
from dfud.registry.server import hypercorn_config, serve
from dfud.testing.daemon import DaemonProcess
from dfud.testing.ports import KeptPort
from tests.e2e.certificates import Authority
from tests.registry.test_server import application
from tests.security.test_man_in_the_middle import refuses


class Served:
    def __init__(self, urls: list[str], directory: Path, authority: Authority) -> None:
        self.url = urls[0].replace("127.0.0.1", "localhost")
        self.plain = urls[1] if len(urls) > 1 else ""
        self.port = int(self.url.rpartition(":")[2])
        self.directory = directory
        (directory / "ca.pem").write_bytes(ssl.DER_cert_to_PEM_cert(authority.der).encode())

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(verify=ssl.create_default_context(cafile=self.directory / "ca.pem"), base_url=self.url, timeout=60)


@pytest.fixture
def handshake_s() -> float:
    return 600.0


@pytest.fixture
async def served(nursery: trio.Nursery, tmp_path: Path, handshake_s: float) -> AsyncIterator[Served]:
    authority, shutdown = Authority(), trio.Event()
    certificate, key, _ = authority.server(tmp_path)

    async def run(task_status: trio.TaskStatus[list[str]]) -> None:
        await serve(application(shutdown), config, graceful_s=1.0, shutdown=shutdown, task_status=task_status)

    plain = KeptPort()
    config = RegistryConfig(
        port=0, certificate=str(certificate), key=str(key), redirect_port=plain.number, handshake_s=handshake_s
    )
    yield Served(await nursery.start(run), tmp_path, authority)
    shutdown.set()


async def test_users_are_served_over_tls_1_2_and_newer_with_modern_suites_only(served: Served) -> None:
    async with served.client() as client:
        assert (await client.get("/")).text == "hello"
    await refuses(served.port, ssl.TLSVersion.TLSv1_2, "AES128-SHA:AES256-SHA256:AES128-GCM-SHA256")
    await refuses(served.port, ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA384")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_older_versions_are_refused(served: Served, version: ssl.TLSVersion) -> None:
    await refuses(served.port, version, "ALL:@SECLEVEL=0")


async def test_plain_http_on_the_tls_port_is_refused(served: Served) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", served.port)
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n\r\n")
    heard = b""
    with trio.fail_after(120):
        try:
            while data := await stream.receive_some(4096):
                heard += data
        except trio.BrokenResourceError:
            pass
    assert not heard.startswith(b"HTTP")


async def test_the_plain_port_sends_everybody_to_the_tls_one_and_serves_nothing(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.plain, timeout=60) as client:
        found = await client.post("/slow?a=b%20c", content=b"abc", headers={"host": "dfud.example:80"})
        assert (found.status_code, found.content) == (308, b"")
        assert found.headers["location"] == f"https://dfud.example:{served.port}/slow?a=b%20c"
        wrong = await client.get("/", headers={"host": "x@y z"})
        assert (wrong.status_code, "location" in wrong.headers) == (400, False)
    async with served.client() as client:
        assert (await client.get("/")).status_code == 200


async def test_a_body_that_the_plain_port_does_not_look_at_holds_no_stop(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SEND_S", 1e6)
    certificate, key, _ = Authority().server(tmp_path)
    plain, shutdown, stopped = KeptPort(), trio.Event(), trio.Event()
    config = RegistryConfig(port=0, certificate=str(certificate), key=str(key), redirect_port=plain.number)

    async def run(task_status: trio.TaskStatus[list[str]]) -> None:
        await serve(application(shutdown), config, graceful_s=1.0, shutdown=shutdown, task_status=task_status)
        stopped.set()

    await nursery.start(run)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{plain.number}", timeout=60) as client:
        for _ in range(5):  # which of the two ends it first is chance
            assert (await client.post("/slow", content=b"abc")).status_code == 308
            assert (await client.get("/")).status_code == 308
    shutdown.set()
    with trio.fail_after(120):
        await stopped.wait()


@pytest.mark.parametrize("body", [b"abc", bytes(300_000)])
async def test_who_sends_a_body_to_the_plain_port_is_answered_and_closed(
    served: Served, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: the body that nobody reads fills the queue in which the end of the request is told, and no limit of time helps."""
    monkeypatch.setattr(server, "SEND_S", 3600.0)
    for _ in range(10):
        stream = await trio.open_tcp_stream("127.0.0.1", int(served.plain.rpartition(":")[2]))
        heard = b""
        try:
            await stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            while data := await stream.receive_some(4096):
                heard += data
        except trio.BrokenResourceError:
            assert len(body) > 3, "there is nothing that it would not have read"
        assert heard.startswith(b"HTTP/1.1 308 ") or len(body) > 3


@pytest.mark.parametrize("handshake_s", [0.2])
async def test_who_does_not_finish_the_handshake_is_dropped(served: Served) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", served.port)
    await stream.send_all(b"\x16\x03\x01")
    with trio.fail_after(120):
        try:
            assert await stream.receive_some(100) == b""
        except trio.BrokenResourceError:
            pass


async def test_a_connection_counts_before_its_handshake_is_done(nursery: trio.Nursery, tmp_path: Path) -> None:
    certificate, key, _ = Authority().server(tmp_path)
    config = RegistryConfig(port=0, certificate=str(certificate), key=str(key), connections=2, handshake_s=600.0)
    shutdown = trio.Event()

    async def run(task_status: trio.TaskStatus[list[str]]) -> None:
        await serve(application(shutdown), config, graceful_s=1.0, shutdown=shutdown, task_status=task_status)

    port = int((await nursery.start(run))[0].rpartition(":")[2])
    closed = 0
    with trio.fail_after(60):  # long before any handshake has had its time
        async with trio.open_nursery() as strangers:

            async def say_nothing() -> None:
                nonlocal closed
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    assert await stream.receive_some(1) == b""
                    closed += 1
                    if closed == 3:
                        strangers.cancel_scope.cancel()

            for _ in range(5):
                strangers.start_soon(say_nothing)
    assert closed == 3, "all but two"
    nursery.cancel_scope.cancel()


async def test_a_new_certificate_is_taken_up_by_sighup_and_a_wrong_one_leaves_the_old(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    old, new = Authority("old"), Authority("new")
    certificate, key, _ = old.server(tmp_path / "tls")
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    text = daemon.config.read_text().replace("[registry]\n", f'[registry]\ncertificate = "{certificate}"\nkey = "{key}"\n')
    daemon.write_config = lambda: daemon.config.write_text(text)  # type: ignore[assignment,method-assign]  # once
    await nursery.start(daemon.run)
    served = Served([daemon.urls["registry"]], tmp_path, old)

    async def works(authority: Authority) -> bool:
        Served([served.url], tmp_path, authority)
        try:
            async with served.client() as client:
                return (await client.get("/healthz")).status_code == 200
        except httpx.ConnectError:
            return False

    async def reloaded(event: str) -> None:
        before = sum(line.get("event") == event for line in daemon.lines)
        daemon.signal(signal.SIGHUP)
        with trio.fail_after(120):
            while sum(line.get("event") == event for line in daemon.lines) == before:
                await trio.sleep(0.02)

    assert await works(old) and not await works(new)
    certificate.write_text("rubbish")
    await reloaded("not reloaded")
    assert await works(old)
    new.server(tmp_path / "tls")
    await reloaded("reloaded")
    assert await works(new) and not await works(old)
    nursery.cancel_scope.cancel()


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for wrong in (RegistryConfig(redirect_port=80), RegistryConfig(key="x.key")):
        with pytest.raises(ConfigError, match="need a certificate"):
            hypercorn_config(wrong, 1)
    with pytest.raises(ConfigError, match=r"\[registry\] certificate .*nothing.pem"):
        hypercorn_config(RegistryConfig(certificate=str(tmp_path / "nothing.pem")), 1)


async def test_a_redirect_port_that_is_taken_is_named_and_the_other_port_is_free_again(tmp_path: Path) -> None:
    certificate, key, _ = Authority().server(tmp_path)
    kept = KeptPort()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        config = RegistryConfig(port=kept.number, certificate=str(certificate), key=str(key), redirect_port=taken)
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{taken}: Address already in use"):
            await serve(application(trio.Event()), config, graceful_s=1.0, shutdown=trio.Event())
    with socket.create_server(("127.0.0.1", kept.number)):
        pass


async def test_a_server_that_is_cancelled_before_it_accepts_frees_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(*given: object, sockets: Sockets, **more: object) -> None:
        made.extend(sockets.insecure_sockets)
        await trio.sleep_forever()

    made: list[socket.socket] = []
    monkeypatch.setattr(server, "worker_serve", stuck)
    with trio.move_on_after(0):
        await serve(application(trio.Event()), RegistryConfig(port=0), graceful_s=1.0, shutdown=trio.Event())
    assert [sock.fileno() for sock in made] == [-1]


async def test_a_certificate_file_that_holds_its_key_is_served_as_tls_and_not_plain(nursery: trio.Nursery, tmp_path: Path) -> None:
    authority, shutdown = Authority(), trio.Event()
    certificate, key, _ = authority.server(tmp_path)
    certificate.write_bytes(certificate.read_bytes() + key.read_bytes())
    config = RegistryConfig(port=0, certificate=str(certificate))

    async def run(task_status: trio.TaskStatus[list[str]]) -> None:
        await serve(application(shutdown), config, graceful_s=1.0, shutdown=shutdown, task_status=task_status)

    (url,) = await nursery.start(run)
    assert url.startswith("https://")
    async with Served([url], tmp_path, authority).client() as client:
        assert (await client.get("/")).text == "hello"
    shutdown.set()
