"""What TLS costs dfud beside nginx: a poll over a connection of its own, and over one that is kept. TLS 1.3, P-256.

Both speak TLS 1.3: nginx has to be told, or it resumes sessions of TLS 1.2, which a client that insists on 1.3 never does. The floor
is Python's ssl module in a bare loop: a handshake, one read, one write.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.table import Table

from bench.http import Bench, header, lua_bytes, pin, wrk
from dfud.testing.daemon import DaemonProcess

Results = dict[str, dict[str, float]]
WAYS = (("close", "a connection each"), ("keep", "kept alive"))


def certificate(directory: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem"), "-subj", "/CN=localhost"]
    subprocess.run([*command, *files], check=True, capture_output=True)


def script(auth: list[str], method: str, path: str, body: bytes, way: str) -> str:
    close = ', ["Connection"] = "close"' if way == "close" else ""
    return f"""
local auth = {{{", ".join(f'"{a}"' for a in auth)}}}
local n = 0
request = function()
  n = n % #auth + 1
  return wrk.format("{method}", "{path}", {{["Authorization"] = auth[n]{close}}}, {lua_bytes(body)})
end"""


async def dfud(directory: Path) -> Results:
    extra = f'certificate = "{directory}/cert.pem"\nkey = "{directory}/key.pem"\nconnections_per_address = 20000\n'
    daemon = DaemonProcess(directory / "dfud", extra=extra)
    await daemon.init()
    found: Results = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        assert daemon._process is not None
        pid = daemon._process.pid
        pin(pid, 0)
        bench = Bench(daemon, directory)
        await bench.prepare()
        auth = [header(name, secret) for name, secret in bench.secrets.items()]
        for way, _ in WAYS:
            text = script(auth, "POST", "/v1/dfu", bench.status(), way)
            found[way] = await wrk([pid], daemon.urls["http"], text, directory)
        nursery.cancel_scope.cancel()
    return found


async def nginx(directory: Path) -> Results:
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        return {}
    root = directory / "nginx"
    root.mkdir()
    (root / "poll").write_bytes(bytes(61))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    (root / "nginx.conf").write_text(
        f"""daemon off; worker_processes 1; pid {root}/pid; error_log {root}/error.log;
events {{ worker_connections 2048; }}
http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {root}; proxy_temp_path {root};
fastcgi_temp_path {root}; uwsgi_temp_path {root}; scgi_temp_path {root};
server {{ listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3; root {root};
ssl_certificate {directory}/cert.pem; ssl_certificate_key {directory}/key.pem; }} }}"""
    )
    process = subprocess.Popen([program, "-c", str(root / "nginx.conf"), "-p", str(root)], stderr=subprocess.DEVNULL)
    os.chmod(directory, 0o755)
    os.chmod(root, 0o755)
    os.chmod(directory / "key.pem", 0o644)
    try:
        await trio.sleep(1)
        pids = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        for pid in pids:
            pin(pid, 0)
        url = f"https://127.0.0.1:{port}"
        return {
            way: await wrk(pids, url, script([header("d0", "secret")], "GET", "/poll", b"", way), directory)
            for way, _ in WAYS
        }
    finally:
        process.terminate()
        process.wait()


FLOOR = """
import select, socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
context.num_tickets = 1
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)
listening.setblocking(False)
epoll = select.epoll()
epoll.register(listening, select.EPOLLIN)
answer = b"HTTP/1.1 200 OK\\r\\ncommand: dfu\\r\\ncontent-length: 61\\r\\n\\r\\n" + bytes(61)
peers = {}
while True:
    for number, _ in epoll.poll():
        if number == listening.fileno():
            plain, _ = listening.accept()
            plain.setblocking(False)
            peer = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            peers[peer.fileno()] = [peer, False]
            epoll.register(peer, select.EPOLLIN)
            continue
        peer, shaken = peers[number]
        try:
            if not shaken:
                peer.do_handshake()
                peers[number][1] = True
            data = peer.recv(16384)
            closes = not data or b"onnection: close" in data
            if data:
                peer.send(answer.replace(b"command", b"connection: close\\r\\ncommand") if closes else answer)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            continue
        except OSError:
            closes = True
        if closes:
            epoll.unregister(number)
            del peers[number]
            try:
                peer.unwrap()
            except (OSError, ValueError):
                pass
            peer.close()
"""


async def floor(directory: Path) -> Results:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-c", FLOOR, str(port), str(directory / "cert.pem"), str(directory / "key.pem")]
    process = subprocess.Popen(command)
    try:
        await trio.sleep(1)
        pin(process.pid, 0)
        url = f"https://127.0.0.1:{port}"
        return {
            way: await wrk([process.pid], url, script([header("d0", "secret")], "GET", "/poll", b"", way), directory)
            for way, _ in WAYS
        }
    finally:
        process.terminate()
        process.wait()


async def run(rounds: int) -> None:
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(rounds):
            directory = Path(temporary) / str(number)
            directory.mkdir()
            os.chmod(temporary, 0o755)
            certificate(directory)
            for who, measure in (("dfud", dfud), ("nginx", nginx), ("floor", floor)):
                for way, values in (await measure(directory)).items():
                    found.setdefault((who, way), []).append(values)
    table = Table("TLS 1.3", "CPU us a poll", "nginx", "x nginx", "Python's ssl alone, x nginx", "goal")
    for way, title in WAYS:
        base = [f["us"] for f in found.get(("nginx", way), [])] or [float("nan")] * rounds
        cells = []
        for who in ("dfud", "floor"):
            ratios = [f["us"] / b for f, b in zip(found[(who, way)], base, strict=True)]
            cells.append(f"{min(ratios):.1f}-{max(ratios):.1f}")
        us = [f["us"] for f in found[("dfud", way)]]
        row = (f"{min(us):.0f}-{max(us):.0f}", f"{min(base):.0f}-{max(base):.0f}", cells[0], cells[1])
        table.add_row(title, *row, "3" if way == "close" else "2.5")
    Console(width=100).print(table)


@click.command()
@click.option("--rounds", default=3, show_default=True)
def main(rounds: int) -> None:
    """Print what a poll over TLS costs."""
    trio.run(run, rounds)


if __name__ == "__main__":
    main()
