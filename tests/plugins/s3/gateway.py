"""A real S3 service over a directory: versitygw."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from dfud.testing.ports import KeptPort
from tests.real_parts import require

KEY, SECRET = "access", "very-secret-words"
START_S = 60.0


class Gateway:
    """Serves `objects`, with one bucket, images. options: more of them for the service."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._options = options
        self._command = require("versitygw")
        self.objects = directory / "objects"
        (self.objects / "images").mkdir(parents=True)
        self._kept = KeptPort()  # it comes back on it
        self.port = self._kept.number
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = {**os.environ, "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
        command = [self._command, "--port", f"127.0.0.1:{self.port}", *self._options, "posix", "--nometa", str(self.objects)]
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self._process.poll() is None, f"versitygw ended with {self._process.returncode}"
            assert time.monotonic() < deadline, f"versitygw does not listen after {START_S:.0f} s"
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def object(self, sha256: str) -> Path:
        return self.objects / "images" / "blobs" / sha256[:2] / sha256
