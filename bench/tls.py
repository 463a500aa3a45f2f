"""What TLS costs dfud beside nginx: a poll over a connection of its own, and over one that is kept. TLS 1.3, P-256."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
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
server {{ listen 127.0.0.1:{port} ssl; root {root};
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


async def run() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        certificate(directory)
        ours, theirs = await dfud(directory), await nginx(directory)
    table = Table("TLS 1.3", "CPU us a poll", "polls/s on a core", "nginx", "x nginx")
    for way, title in WAYS:
        base = theirs[way]["us"] if theirs else float("nan")
        us = ours[way]["us"]
        table.add_row(title, f"{us:.1f}", f"{ours[way]['rate']:,.0f}", f"{base:.1f}", f"{us / base:.1f}")
    Console(width=100).print(table)


@click.command()
def main() -> None:
    """Print what a poll over TLS costs."""
    trio.run(run)


if __name__ == "__main__":
    main()
