"""TLS: the client certificate reaches the endpoint, plain bytes are turned away, new files are taken up."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from dfud_http.config import HttpConfig
from dfud_http.transport import HttpTransport

from dfud.api import Code, ConfigError, Reply
from dfud.testing.ports import KeptPort
from dfud.testing.transport import AUTHORIZATION, FakeEndpoint

REQUEST = b"POST /v1/dfu HTTP/1.1\r\nAuthorization: " + AUTHORIZATION + b"\r\nConnection: close\r\nContent-Length: 1\r\n\r\n\x81"


def make_certificate(directory: Path, name: str) -> bytes:
    """Write <name>.pem and <name>.key, self-signed for 127.0.0.1; return the DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made.public_bytes(serialization.Encoding.DER)


async def ask(port: int, directory: Path, *, client: str = "", server: str = "server") -> bytes:
    context = ssl.create_default_context(cafile=directory / f"{server}.pem")
    if client:
        context.load_cert_chain(directory / f"{client}.pem", directory / f"{client}.key")
    stream = trio.SSLStream(
        await trio.open_tcp_stream("127.0.0.1", port), context, server_hostname="127.0.0.1", https_compatible=True
    )
    with trio.fail_after(120):
        await stream.send_all(REQUEST)
        return b"".join([data async for data in stream])


async def start(nursery: trio.Nursery, directory: Path, **options: object) -> tuple[HttpTransport, FakeEndpoint, int]:
    config = HttpConfig(
        port=0,
        certificate=str(directory / "server.pem"),
        key=str(directory / "server.key"),
        client_ca=str(directory / "client.pem"),
        **options,  # type: ignore[arg-type]  # tests name what they set
    )
    transport, endpoint = HttpTransport(config), FakeEndpoint()
    (url,) = await nursery.start(transport.run, endpoint)
    assert url.startswith("https://127.0.0.1:")
    return transport, endpoint, int(url.rpartition(":")[2])


async def test_a_client_certificate_is_passed_on_and_none_is_needed(nursery: trio.Nursery, tmp_path: Path) -> None:
    make_certificate(tmp_path, "server")
    der = make_certificate(tmp_path, "client")
    _, endpoint, port = await start(nursery, tmp_path)
    assert (await ask(port, tmp_path, client="client")).startswith(b"HTTP/1.1 200")
    assert (await ask(port, tmp_path)).startswith(b"HTTP/1.1 200")
    assert [r.credentials.certificate for r in endpoint.requests] == [der, b""]
    assert all(r.encrypted for r in endpoint.requests)


async def test_a_connection_without_a_required_certificate_gets_nothing(nursery: trio.Nursery, tmp_path: Path) -> None:
    make_certificate(tmp_path, "server")
    make_certificate(tmp_path, "client")
    _, endpoint, port = await start(nursery, tmp_path, client_required=True)
    try:
        assert await ask(port, tmp_path) == b""
    except trio.BrokenResourceError:
        pass  # whether the alert or the end of the stream is seen first depends on the client's TLS version
    plain = await trio.open_tcp_stream("127.0.0.1", port)
    await plain.send_all(REQUEST)
    with trio.fail_after(120):
        try:
            while data := await plain.receive_some(1000):
                assert not data.startswith(b"HTTP")
        except trio.BrokenResourceError:
            pass
    assert (await ask(port, tmp_path, client="client")).startswith(b"HTTP/1.1 200")
    assert len(endpoint.requests) == 1


async def test_new_certificates_are_taken_up_and_wrong_ones_leave_the_old(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    make_certificate(tmp_path, "server")
    make_certificate(tmp_path, "client")
    transport, _, port = await start(nursery, tmp_path)
    old = (tmp_path / "server.pem").read_bytes()
    (tmp_path / "server.pem").write_text("rubbish")
    with pytest.raises(ConfigError, match="server.pem"):
        transport.reload()
    (tmp_path / "old.pem").write_bytes(old)
    assert (await ask(port, tmp_path, server="old")).startswith(b"HTTP/1.1 200")
    make_certificate(tmp_path, "server")
    transport.reload()
    assert (await ask(port, tmp_path)).startswith(b"HTTP/1.1 200")


async def heard(port: int, sent: bytes) -> bytes:
    """Send plain bytes and return all that comes back until the other side closes."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    out = b""
    with trio.fail_after(120):
        try:
            await stream.send_all(sent)
            while data := await stream.receive_some(4096):
                out += data
        except trio.BrokenResourceError:
            pass
    return out


@pytest.mark.parametrize("target", ["/v1/dfu?ct=5", "//elsewhere.example/x"])
async def test_plain_requests_are_sent_to_the_tls_port_and_go_no_further(
    nursery: trio.Nursery, tmp_path: Path, target: str
) -> None:
    make_certificate(tmp_path, "server")
    kept = KeptPort()
    plain = kept.number
    config = HttpConfig(
        port=0, redirect_port=plain, certificate=str(tmp_path / "server.pem"), key=str(tmp_path / "server.key")
    )
    transport, endpoint = HttpTransport(config), FakeEndpoint()
    urls = await nursery.start(transport.run, endpoint)
    port = int(urls[0].rpartition(":")[2])
    answer = await heard(plain, REQUEST.replace(b"/v1/dfu", target.encode()))
    assert answer.startswith(b"HTTP/1.1 308 ")
    path = target if not target.startswith("//") else "/"
    assert f"location: https://127.0.0.1:{port}{path}\r\n".encode() in answer
    assert (await heard(plain, b"\x16\x03\x01\x00\x05hello")).startswith(b"HTTP/1.1 400")
    named = await heard(plain, REQUEST.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nHost: dfud.example:80\r\n"))
    assert f"location: https://dfud.example:{port}/v1/dfu\r\n".encode() in named
    strange = await heard(plain, REQUEST.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nHost: a@b/c\r\n"))
    assert f"location: https://127.0.0.1:{port}/v1/dfu\r\n".encode() in strange
    assert not endpoint.requests


async def test_who_does_not_finish_the_handshake_in_time_is_dropped(nursery: trio.Nursery, tmp_path: Path) -> None:
    make_certificate(tmp_path, "server")
    make_certificate(tmp_path, "client")
    _, endpoint, port = await start(nursery, tmp_path, handshake_s=0.3)
    for begun in (b"", b"\x16\x03\x01\x02\x00"):
        assert not (await heard(port, begun)).startswith(b"HTTP")
    assert (await ask(port, tmp_path)).startswith(b"HTTP/1.1 200")
    assert len(endpoint.requests) == 1


PARKED = b"POST /v1/dfu?ct=60 HTTP/1.1\r\nAuthorization: " + AUTHORIZATION + b"\r\nContent-Length: 1\r\n\r\n\x81"


async def test_a_device_that_waits_over_tls_has_no_task_and_goes_on(nursery: trio.Nursery, tmp_path: Path) -> None:
    for name in ("server", "client"):
        make_certificate(tmp_path, name)
    transport, endpoint, port = await start(nursery, tmp_path)
    context = ssl.create_default_context(cafile=tmp_path / "server.pem")
    stream = trio.SSLStream(
        await trio.open_tcp_stream("127.0.0.1", port), context, server_hostname="127.0.0.1", https_compatible=True
    )
    with trio.fail_after(120):
        for _ in range(2):
            await stream.send_all(PARKED)
            # The connection stays in the lot after an answer: only the endpoint says that somebody waits again.
            while not endpoint.parked or transport._lot is None or len(transport._lot) != 1:
                await trio.sleep(0.01)
            assert not transport._connections
            assert endpoint.wake(Reply(Code.COMMAND, "dfu", b"new")) == 1
            answer = b""
            while not answer.endswith(b"new"):
                answer += await stream.receive_some(4096)
        await stream.send_all(REQUEST)
        assert b"200" in b"".join([data async for data in stream])
    while transport._open:
        await trio.sleep(0.01)
    nursery.cancel_scope.cancel()


async def test_a_peer_that_goes_while_it_waits_over_tls_is_noticed(nursery: trio.Nursery, tmp_path: Path) -> None:
    for name in ("server", "client"):
        make_certificate(tmp_path, name)
    transport, endpoint, port = await start(nursery, tmp_path)
    context = ssl.create_default_context(cafile=tmp_path / "server.pem")
    stream = trio.SSLStream(
        await trio.open_tcp_stream("127.0.0.1", port), context, server_hostname="127.0.0.1", https_compatible=True
    )
    with trio.fail_after(120):
        await stream.send_all(PARKED)
        while not endpoint.parked:
            await trio.sleep(0.01)
        await stream.aclose()
        while endpoint.parked or transport._open:
            await trio.sleep(0.01)
    assert endpoint.last_waiting is not None and endpoint.last_waiting.ended == "cancelled"
    nursery.cancel_scope.cancel()


async def test_a_session_is_resumed_by_its_ticket(nursery: trio.Nursery, tmp_path: Path) -> None:
    for name in ("server", "client"):
        make_certificate(tmp_path, name)
    _, _, port = await start(nursery, tmp_path)

    def twice() -> list[bool]:
        context = ssl.create_default_context(cafile=tmp_path / "server.pem")
        reused: list[bool] = []
        session = None
        for _ in range(2):
            with (
                socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as secured,
            ):
                secured.sendall(REQUEST)
                while secured.recv(4096):
                    pass
                session = secured.session
                reused.append(bool(secured.session_reused))
        return reused

    assert await trio.to_thread.run_sync(twice) == [False, True]
    nursery.cancel_scope.cancel()


async def test_a_connection_over_tls_needs_a_task_for_its_handshake_only(nursery: trio.Nursery, tmp_path: Path) -> None:
    for name in ("server", "client"):
        make_certificate(tmp_path, name)
    transport, endpoint, port = await start(nursery, tmp_path)
    endpoint.quickly = True
    await trio.testing.wait_all_tasks_blocked()
    before = trio.lowlevel.current_statistics().tasks_living
    context = ssl.create_default_context(cafile=tmp_path / "server.pem")
    plain = await trio.open_tcp_stream("127.0.0.1", port)
    await trio.testing.wait_all_tasks_blocked()
    assert transport._open == 1 and trio.lowlevel.current_statistics().tasks_living == before, "nothing was said yet"
    stream = trio.SSLStream(plain, context, server_hostname="127.0.0.1", https_compatible=True)
    with trio.fail_after(120):
        for _ in range(3):
            await stream.send_all(REQUEST.replace(b"Connection: close\r\n", b""))
            assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 200")
            await trio.testing.wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().tasks_living == before and not transport._connections
        await stream.send_all(REQUEST)
        assert b"200" in b"".join([data async for data in stream])
    assert all(r.encrypted for r in endpoint.requests) and len(endpoint.requests) == 4
    nursery.cancel_scope.cancel()
