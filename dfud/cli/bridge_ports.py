"""The serial ports of `dfuctl bridge`: each opened, served, and opened again when it comes back. Nothing of one touches another."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import serial  # type: ignore[import-untyped]  # it ships no annotations
import trio

from dfud.board.flashing import no_port
from dfud.cli.bridge_relay import NO_ANSWER, Relay, reason
from dfud.cli.client import CliError
from dfud.cli.output import OutputError
from dfud.errors import PeerError
from dfud.wire.messages import Type, decode_command_untrusted
from dfud.wire.serialline import Answer, Link, Question, Text, What

READ_BYTES = 4096
WRITE_S = 10.0  # a line takes what is sent to it, or is none
AGAIN_S = 1.0  # between looks for a port that is gone
SILENT_S = 30.0  # a device that waits looks every five seconds whether the bridge is there
TOLD_EVERY_S = 5.0  # of a transfer
LINE_MAX = 400
GONE = (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EIO)
Tell = Callable[..., None]


class Port:
    """One port. tell(port, what, **values) shows what happens; console: also what the device prints."""

    def __init__(self, name: str, baud: int, relay: Relay, tell: Tell, *, console: bool = False) -> None:
        self.name, self._baud, self._relay, self._console = name, baud, relay, console
        self._tell: Callable[..., None] = lambda text, **values: tell(name, text, **values)
        self._link = Link()
        self._lock = trio.Lock()
        self._scope = trio.CancelScope()
        self._heard_s = 0.0
        self._bytes = self._odd = 0
        self._told_s = -TOLD_EVERY_S
        self._said = self._who = ""
        self._was_open = False
        self._text = b""

    async def run(self) -> None:
        """Serve the port until cancelled. Raises CliError if it is not to be had: no permission, in use, no port at all."""
        while True:
            try:
                with self._opened() as line:
                    self._was_open = True
                    self._say(f"open, {self._baud} baud")
                    await self._serve(line.fileno())
            except OSError as error:  # pyserial's exceptions are such, too
                # One that comes back may be not yet ready, or not yet ours.
                if not self._said and error.errno not in GONE:
                    raise CliError(no_port(self.name, error)) from None
                self._say(
                    "gone; waiting for it"
                    if self._was_open
                    else "no such port yet; waiting for it. Is the board plugged in?"
                )
            except ExceptionGroup as group:
                # A fault of ours costs this port what it was at, and no other anything; but where nothing can be told, it ends.
                if group.subgroup(OutputError) is not None:
                    raise
                traceback.print_exception(group)
                self._say("a fault of dfuctl's own, its trace is on standard error; starting anew", fault=True)
            await trio.sleep(AGAIN_S)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            found = serial.Serial(self.name, self._baud, timeout=0, exclusive=True)
        except ValueError as error:
            raise CliError(f"{self.name}: {error}") from None
        try:
            yield found
        finally:
            with suppress(OSError):
                found.close()

    def _say(self, text: str, **values: Any) -> None:
        """Tell something that goes on for a while, once."""
        if text != self._said:
            self._said = text
            self._tell(text, **values)

    async def _serve(self, fd: int) -> None:
        self._link, self._bytes, self._odd = Link(), 0, 0
        self._heard_s = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                while True:
                    await trio.lowlevel.wait_readable(fd)
                    try:
                        data = os.read(fd, READ_BYTES)
                    except BlockingIOError:
                        continue
                    except OSError as error:
                        raise _Broken(*error.args) from None
                    if not data:
                        raise _Broken(errno.EIO, "hung up")
                    await self._hear(fd, data, nursery)
        except BaseExceptionGroup as group:
            _, rest = group.split(_Broken)
            if rest is not None:  # also where it broke while it was cancelled
                raise rest from None
            raise _Broken(errno.EIO, "gone") from None

    async def _hear(self, fd: int, data: bytes, nursery: trio.Nursery) -> None:
        if not self._link.frames:
            self._bytes += len(data)
            self._odd += sum(not (32 <= byte < 127 or byte in b"\r\n\t\x1b") for byte in data)
        for found in self._link.heard(data):
            if isinstance(found, Text):
                self._printed(found.data)
                continue
            self._heard_s = trio.current_time()
            if isinstance(found, Question):
                self._scope.cancel()
                self._scope = trio.CancelScope()
                nursery.start_soon(self._do, fd, found, self._scope)
            else:
                await self._send(fd, found)

    async def _do(self, fd: int, question: Question, scope: trio.CancelScope) -> None:
        with scope:
            if question.name and question.name != self._who:
                self._who = question.name
                self._tell(f"device {question.name}", device=question.name)
            self._progress(question)
            answer = await self._relay.ask(question)
            self._answered(question, answer)
            if data := self._link.answered(question, answer):
                await self._send(fd, data)

    async def _send(self, fd: int, data: bytes) -> None:
        async with self._lock:
            with trio.move_on_after(WRITE_S):
                while data:
                    try:
                        data = data[os.write(fd, data) :]
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(fd)
                    except OSError as error:
                        raise _Broken(*error.args) from None
                return
        raise _Broken(errno.EIO, "it takes nothing")

    async def _watch(self) -> None:
        """Hang up for a device that is gone, and say what is wrong with a line on which there is none."""
        while True:
            await trio.sleep(SILENT_S / 3)
            if trio.current_time() - self._heard_s < SILENT_S:
                continue
            if self._link.waits:
                self._scope.cancel()
            self._link.forget()
            if not self._bytes:
                self._say(
                    "nothing heard: does the board run, with transport serial, and does its TX go to this RX? See docs/serial.md"
                )
            elif not self._link.frames and self._odd * 10 > self._bytes:
                self._say(
                    f"{self._bytes} bytes that are neither text nor frames: is {self._baud} the board's rate? See --baud"
                )
            elif not self._link.frames:
                self._say("text, and no frame: is the agent started, with transport serial, and is this its line?")
            else:
                self._say("the device is silent; waiting for it")

    def _printed(self, data: bytes) -> None:
        if not self._console:
            return
        *lines, self._text = (self._text + data).split(b"\n")
        self._text = self._text[-LINE_MAX:]
        for line in lines:
            if text := line[-LINE_MAX:].rstrip(b"\r").decode("utf-8", "replace").strip("\x00"):
                self._tell(f"| {text}", console=text)

    def _progress(self, question: Question) -> None:
        now_s = trio.current_time()
        if question.what is What.ENROL:
            self._tell("a board enrols", enrols=True)
        elif question.what is What.CHUNK and (not question.number or now_s - self._told_s >= TOLD_EVERY_S):
            self._told_s = now_s
            self._tell(
                f"{question.name} fetches chunk {question.number} of {question.message.hex()}",
                device=question.name,
                package=question.message.hex(),
                chunk=question.number,
            )

    def _answered(self, question: Question, answer: Answer) -> None:
        who = question.name or "a board"
        if answer.status == NO_ANSWER:
            self._say(f"{who}: no answer of the server: {reason(answer)}", error=reason(answer))
        elif answer.status in (401, 403):
            self._say(f"{who}: the server does not accept its credentials", status=answer.status)
        elif answer.status == 200 and question.what is What.ENROL:
            self._tell("enrolled", enrolled=True)
        elif answer.status in (200, 202, 404):
            self._say(f"{who}: the server answers", device=question.name)
            if question.what is What.STATUS and answer.body:
                self._commanded(who, answer.body)
        else:
            self._say(f"{who}: the server answers {answer.status}", status=answer.status)

    def _commanded(self, who: str, body: bytes) -> None:
        try:
            command = decode_command_untrusted(body)
        except PeerError:
            return  # the device's to judge
        if command.type is Type.UPDATE:
            chunks = "chunk" if command.chunks == 1 else "chunks"
            self._tell(
                f"{who}: update to {command.version}, {command.chunks} {chunks}, {command.total_bytes} bytes",
                device=who,
                version=command.version,
                chunks=command.chunks,
                bytes=command.total_bytes,
            )


class _Broken(OSError):
    """The port that was open is no longer there."""
