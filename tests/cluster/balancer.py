"""nginx and HAProxy in front of several dfud, with the very configurations that docs/cluster.md shows."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.real_parts import require

DOCUMENT = Path(__file__).parents[2] / "docs" / "cluster.md"
KINDS = ("nginx", "haproxy")
START_S = 60.0


def documented(kind: str) -> str:
    """Return the configuration of that name in the document."""
    found = re.findall(rf"^```{kind}\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(found) == 1, f"{len(found)} configurations of {kind} in {DOCUMENT}"
    return str(found[0])


def once(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the document's configuration, expected once"
    return text.replace(old, new)


def configuration(kind: str, port: int, ports: list[tuple[int, int]]) -> str:
    """Return the documented configuration for this machine: nothing but addresses differ.

    ports: of devices and of users, of each dfud, as many as the document has.
    """
    text = documented(kind)
    for number, (devices, users) in enumerate(ports, 1):
        here = f"127.0.0.1:{devices}"
        if kind == "haproxy":
            text = once(text, f"10.0.0.{number}:8880 check port 8881", f"{here} check port {users}")
        else:
            text = once(text, f"10.0.0.{number}:8880", here)
    assert "10.0.0." not in text, f"the document has more servers than {len(ports)}"
    if kind == "haproxy":
        return once(text, "bind :8880", f"bind 127.0.0.1:{port}")
    text = once(text, "listen 8880;", f"listen 127.0.0.1:{port};")
    # What a distribution's nginx.conf has around it.
    user = "user root;" if os.getuid() == 0 else ""
    paths = "".join(f"{what}_temp_path temp-{what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    head = f"{user} worker_processes 2; daemon off; pid nginx.pid; error_log stderr warn; events {{ worker_connections 1024; }}"
    return f"{head}\nhttp {{\naccess_log off; {paths}\n{text}}}\n"


class Balancer:
    """One of KINDS, on a free port of the loopback. `port` is taken from the start on; it serves once started."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self._program = require(kind)
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, ports: list[tuple[int, int]]) -> None:
        path = self._directory / f"{self.kind}.conf"
        path.write_text(configuration(self.kind, self.port, ports))
        command = [self._program, "-p", str(self._directory), "-c", str(path)] if self.kind == "nginx" else []
        command = command or [self._program, "-db", "-f", str(path)]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.kind} does not serve: {self.log()[-2000:]}")
            time.sleep(0.02)

    def log(self) -> str:
        return (self._directory / "log").read_text("utf-8", "replace")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait()
