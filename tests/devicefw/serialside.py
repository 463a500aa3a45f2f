"""The agent's serial transport on CPython, its clock and its line in the test's hands: every moment of it can be made to happen."""

from __future__ import annotations

import importlib
import sys
import time
import types
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest

from dfud.wire.serialline import Answer, Link, Question, Text

SOURCES = Path(__file__).parents[2] / "devicefw" / "dfu"
WIRE_MS = 3  # from one end to the other


class _Sleep:
    def __init__(self, ms: int) -> None:
        self.ms = ms

    def __await__(self) -> Generator[int, None, None]:
        yield self.ms


class Clock:
    def __init__(self) -> None:
        self.now_ms = 0


@pytest.fixture(scope="session")
def device() -> Any:
    """The module dfu.serial; its `clock` is what it takes for the time."""
    clock = Clock()
    package = types.ModuleType("dfu")
    package.__path__ = [str(SOURCES)]
    times = {"ticks_ms": lambda: clock.now_ms, "ticks_add": lambda a, b: a + b, "ticks_diff": lambda a, b: a - b}
    before = {name: found for name, found in sys.modules.items() if name.split(".")[0] == "dfu"}
    sys.modules["dfu"] = package
    for name, function in times.items():
        setattr(time, name, function)
    try:
        module = importlib.import_module("dfu.serial")
    finally:
        for name in times:
            delattr(time, name)
        for name in [name for name in sys.modules if name.split(".")[0] == "dfu"]:
            del sys.modules[name]
        sys.modules.update(before)
    module.asyncio = types.SimpleNamespace(sleep_ms=_Sleep)  # type: ignore[attr-defined]
    module.clock = clock  # type: ignore[attr-defined]
    return module


class Wire:
    """A device and a bridge, and the line between. faults: what happens to what is sent, one after the other; then it is a good line.

    server(question) answers after `server_ms`.
    """

    def __init__(self, device: Any, faults: list[Any], server: Any, server_ms: int = 50, *, baud: int = 0, piece: int = 64) -> None:
        self.device, self.faults, self.server, self.server_ms = device, faults, server, server_ms
        self.piece, self._byte_ms, self._free_ms = piece, 10_000 / baud if baud else 0.0, 0.0
        self.link = Link()
        self.asked: list[Question] = []
        self._to_bridge: list[tuple[int, bytes]] = []
        self._to_device: list[tuple[int, bytes]] = []
        self._answers: list[tuple[int, Question]] = []
        self.printed = b""
        self.carried = 0  # bytes that went to the device
        self.dead = False
        self.start()

    def start(self) -> None:
        """Switch the device on, as after a reset."""
        line = types.SimpleNamespace(read=self._read, write=self._write)
        config = {"line": line, "app": "lamps", "device": "lamp1", "secret": "s" * 22, "timeout_s": 60, "piece": self.piece}
        if self._byte_ms:
            config["baudrate"] = round(10_000 / self._byte_ms)
        self.transport = self.device.SerialTransport(config)

    def _sent(self, data: bytes) -> list[bytes]:
        fault = self.faults.pop(0) if self.faults else None
        match fault:
            case "lost" | ("lost",):
                return []
            case "twice":
                return [data, data]
            case ("bit", at):
                changed = bytearray(data)
                changed[at % len(data)] ^= 1 << at % 8
                return [bytes(changed)]
            case ("cut", at):
                return [data[: at % len(data)]]
            case ("noise", noise):
                return [noise, data, noise]
            case ("within", noise):
                return [data[: len(data) // 2] + noise + data[len(data) // 2 :]]
            case "restart":
                self.link = Link()
                self._answers.clear()
        return [data]

    def _read(self, size: int) -> bytes | None:
        now = self.device.clock.now_ms
        out = b""
        while self._to_device and self._to_device[0][0] <= now and len(out) < size:
            at, data = self._to_device.pop(0)
            take = data[: size - len(out)]
            out += take
            if data[len(take) :]:
                self._to_device.insert(0, (at, data[len(take) :]))
        return out or None

    def _write(self, data: bytes) -> int:
        if not self.dead:
            self._to_bridge += [(self.device.clock.now_ms + WIRE_MS, part) for part in self._sent(bytes(data))]
        return len(data)

    def _bridge(self, data: bytes) -> None:
        now = self.device.clock.now_ms
        for part in self._sent(data) if data else []:
            if not self._byte_ms:
                self._to_device.append((now + WIRE_MS, part))
                continue
            self._free_ms = max(self._free_ms, now)
            self.carried += len(part)
            for at in range(len(part)):
                self._free_ms += self._byte_ms
                self._to_device.append((int(self._free_ms) + 1, part[at : at + 1]))

    def _step(self) -> None:
        now = self.device.clock.now_ms
        while self._to_bridge and self._to_bridge[0][0] <= now:
            for found in self.link.heard(self._to_bridge.pop(0)[1]):
                if isinstance(found, Question):
                    self.asked.append(found)
                    self._answers.append((now + self.server_ms, found))
                elif isinstance(found, Text):
                    self.printed += found.data
                else:
                    self._bridge(found)
        for at, question in list(self._answers):
            if at <= now:
                self._answers.remove((at, question))
                self._bridge(self.link.answered(question, Answer(*self.server(question))))

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run one of the transport's coroutines to its end; return what it returns."""
        clock = self.device.clock
        try:
            while True:
                pause = coroutine.send(None)
                until = clock.now_ms + max(1, pause)
                while clock.now_ms < until:
                    clock.now_ms += 1
                    self._step()
        except StopIteration as end:
            return end.value


