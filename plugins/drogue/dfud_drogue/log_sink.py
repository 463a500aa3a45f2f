"""Events in a file, one CloudEvent a line; what is answered is on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from dfud.api import Bus, ChangeEvent, EventSink, StoreError, Telemetry, change_event, note
from dfud_drogue.cloudevents import cloud_event
from dfud_drogue.config import EventLogConfig


class _Line:
    """One line on its way to the disk."""

    __slots__ = ("done", "error", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.done = trio.Event()
        self.error = ""


class LogSink(EventSink):
    """Appends and syncs; lines that come while the disk is busy go together with the next sync."""

    name = "log"

    def __init__(self, config: EventLogConfig, instance: str) -> None:
        self._config = config
        self._instance = instance
        self._path = Path(config.path)
        self.telemetry, self.changes = config.telemetry, config.changes
        self._send, self._receive = trio.open_memory_channel[_Line](config.waiting_max)

    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        async for first in self._receive:
            lines = [first]
            while True:
                try:
                    lines.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            try:
                await trio.to_thread.run_sync(self._append, b"".join(line.text for line in lines))
            except Exception as error:
                # Costs these lines, whose devices send them again; the sink goes on.
                if not isinstance(error, OSError):
                    note("sink.log", error)
                for line in lines:
                    line.error = getattr(error, "strerror", None) or type(error).__name__
            for line in lines:
                line.done.set()

    async def take(self, telemetry: Telemetry) -> None:
        await self._put(cloud_event(telemetry, self._instance))

    async def tell(self, event: ChangeEvent) -> None:
        await self._put(change_event(event, self._instance))

    async def _put(self, text: bytes) -> None:
        line = _Line(text + b"\n")
        try:
            self._send.send_nowait(line)
        except trio.WouldBlock:
            raise StoreError("too many events wait for the disk", retryable=True) from None
        await line.done.wait()
        if line.error:
            raise StoreError(f"[events.log] {self._path}: {line.error}", retryable=True)

    def _append(self, data: bytes) -> None:
        """Write all of `data` or, as far as the disk lets us, nothing."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and self._path.stat().st_size + len(data) > self._config.max_bytes:
            self._put_aside()
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            before = os.fstat(fd).st_size
            if not before:
                self._sync_directory()
            elif os.pread(fd, 1, before - 1) != b"\n":
                # The power went within a line that nobody was promised: it must not take the next one with it.
                data = b"\n" + data
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                os.fdatasync(fd)
            except OSError:
                os.ftruncate(fd, before)
                raise
        finally:
            os.close(fd)

    def _sync_directory(self) -> None:
        """Make a file that is new outlive a power cut by its name, too."""
        fd = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _put_aside(self) -> None:
        def aside(number: int) -> Path:
            return self._path.with_name(f"{self._path.name}.{number}")

        keep = self._config.keep
        if keep == 0:
            self._path.unlink()
            return
        for number in range(keep - 1, 0, -1):
            if aside(number).exists():
                aside(number).replace(aside(number + 1))
        self._path.replace(aside(1))
