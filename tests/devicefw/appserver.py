"""A server of recorded commands, for boards without dfud: it says what should run, as dfud does, and keeps every status."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import msgspec
import trio

from dfud.package.build import build_delta, build_full
from dfud.package.file import PackageFile
from dfud.wire.manifest import FLAG_APP, Manifest, unsigned
from dfud.wire.messages import Command, Phase, Result, Status, Type, decode_status_untrusted, encode_command

HEAD_MAX = 8192


class Image(msgspec.Struct, frozen=True):
    data: bytes
    envelope: bytes
    version: str

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.data).digest()


def app_image(data: bytes, version: str, sequence: int, **fields: Any) -> Image:
    manifest = Manifest(
        app="lamps",
        version=version,
        hardware="esp32c3",
        sequence=sequence,
        size=len(data),
        sha256=hashlib.sha256(data).digest(),
        flags=FLAG_APP,
        **fields,
    )
    return Image(data, unsigned(manifest), version)


def system_image(data: bytes, version: str, sequence: int, **fields: Any) -> Image:
    manifest = Manifest("lamps", version, "esp32c3", sequence, len(data), hashlib.sha256(data).digest(), **fields)
    return Image(data, unsigned(manifest), version)


class Server:
    """`app` and `system` are what should run, None: whatever does. `statuses`, `results` and `packages` (version and kind of what was
    given out) are what happened. What ended without success is not sent again."""

    def __init__(self) -> None:
        self.app: Image | None = None
        self.system: Image | None = None
        self.known: list[Image] = []  # what a delta may start from
        self.statuses: list[Status] = []
        self.results: list[Result] = []
        self.sent: list[tuple[str, int]] = []
        self.url = ""
        self.lost = 0  # so many connections are not answered
        self._left: set[bytes] = set()
        self._packages: dict[tuple[bytes, bytes], PackageFile] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            listen = partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1")
            listeners: list[trio.SocketListener] = await nursery.start(listen)
            self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            task_status.started()

    async def until(self, what: Any, timeout_s: float = 120) -> Status:
        """Wait for a status of which what() is true; return it."""
        seen = 0
        with trio.move_on_after(timeout_s):
            while True:
                for status in self.statuses[seen:]:
                    if what(status):
                        return status
                seen = len(self.statuses)
                await trio.sleep(0.05)
        raise AssertionError(f"not said; the last: {self.statuses[-3:]}, {self.results}")

    async def _serve(self, stream: trio.SocketStream) -> None:
        data = b""
        try:
            while True:
                while b"\r\n\r\n" not in data:
                    more = await stream.receive_some(4096)
                    if not more or len(data) > HEAD_MAX:
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                lines = head.split(b"\r\n")
                size = next((int(line[15:]) for line in lines if line.lower().startswith(b"content-length:")), 0)
                while len(data) < size:
                    more = await stream.receive_some(4096)
                    if not more:
                        return
                    data += more
                body, data = data[:size], data[size:]
                if self.lost:
                    self.lost -= 1
                    return
                await stream.send_all(self._answer(lines[0].split()[1], body))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    def _answer(self, target: bytes, body: bytes) -> bytes:
        if target.startswith(b"/v1/dfu?"):
            command = self._command(decode_status_untrusted(body))
            answer = encode_command(command)
            return b"HTTP/1.1 200 OK\r\ncommand: dfu\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer
        _, _, _, name, number = target.split(b"/")
        for package in self._packages.values():
            if package.id.hex().encode() == name:
                chunk = bytes(package.chunks[int(number)])
                return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(chunk) + chunk
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"

    def _command(self, status: Status) -> Command:
        self.statuses.append(status)
        if status.result is not None:
            self.results.append(status.result)
            self._left.add(status.result.digest)
        runs = status.app.digest if status.app is not None else b""
        for image, base, app in ((self.system, status.digest, False), (self.app, runs, True)):
            if image is None or image.digest == base or image.digest in self._left or (app and status.app is None):
                continue
            package = self._package(image, base)
            if not (status.progress and status.progress.phase == Phase.WRITTEN):
                self.sent.append((image.version, package.kind))
            return Command(
                type=Type.UPDATE,
                version=image.version,
                manifest=image.envelope,
                package=package.id,
                kind=package.kind,
                size=package.size,
                chunks=len(package.chunks),
                total_bytes=package.total_bytes,
                base=package.base_sha256 or b"",
            )
        return Command(Type.WAIT, 1)

    def _package(self, image: Image, base: bytes) -> PackageFile:
        found = self._packages.get((image.digest, base))
        if found is None:
            start = next((known.data for known in self.known if known.digest == base), None)
            found = build_full(image.data, 4112) if start is None else build_delta(image.data, start, 4112)
            self._packages[image.digest, base] = found
        return found
