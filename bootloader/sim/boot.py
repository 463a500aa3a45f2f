"""Running the bootloader's ELF as the mask ROM would: ROM functions are hooked, everything else is the shipped code.

What is not modelled: the ROM's own behaviour, caches, watchdogs that fire, the word-only instruction bus.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
from elftools.elf.elffile import ELFFile
from unicorn import UC_ARCH_RISCV, UC_HOOK_CODE, UC_MODE_RISCV32, UC_PROT_ALL, UC_PROT_EXEC, UC_PROT_READ
from unicorn import Uc as _Uc  # type: ignore[attr-defined]  # it ships no annotations
from unicorn import UcError as _UcError  # type: ignore[attr-defined]  # it ships no annotations
from unicorn.riscv_const import UC_RISCV_REG_A0, UC_RISCV_REG_PC, UC_RISCV_REG_SP

Uc: Any = _Uc
UcError: type[Exception] = _UcError
ELF = Path(__file__).parents[2] / "build" / "bootloader" / "bootloader.elf"
SECTOR_BYTES = 4096
SLOTS = (0x10000, 0x1C0000)
SRAM, IRAM, SRAM_BYTES = 0x3FC80000, 0x40380000, 0x60000
ICACHE_RAM = 0x4037C000
RTC_RAM, RTC_RAM_BYTES = 0x50000000, 0x2000
APP_END = 0x403CE710
RAM = ((SRAM, SRAM + SRAM_BYTES), (RTC_RAM, RTC_RAM + RTC_RAM_BYTES))
ROM_STACK = 0x3FCDE110
PERIPHERALS, PERIPHERALS_BYTES = 0x60000000, 0xD1000
MMU_TABLE, MMU_ENTRIES = 0x600C5000, 128
STORES = (0x60008050, 0x60008054, 0x60008058, 0x6000805C, 0x600080B8, 0x600080BC, 0x600080C0, 0x600080C4)
WDTCONFIG0, SPI1_CMD, SPI1_W0 = 0x60008090, 0x60002000, 0x60002058
UART_FIFO, UART_STATUS, USB_EP1_CONF, GPIO_IN = 0x60000000, 0x6000001C, 0x60043004, 0x6000403C
RECOVERY_PIN = 9
PRESSED_MS = 300
POWER_ON = 1
DOWNLOAD = "waiting for download\n"  # what the mask ROM says
PAGE_PROGRAM_BYTES = 256
RUN_MAX_S = 120.0
IDLE_S = 5  # of the thread that watches over it


class Flash(Protocol):
    """NOR rules are its own business. An OSError is the flash's own answer, which the ROM's function returns as an error;
    anything else that it raises goes through boot() to the caller.
    """

    size: int

    def read(self, offset: int, size: int) -> bytes: ...
    def program(self, offset: int, data: bytes) -> None: ...
    def erase(self, offset: int) -> None: ...


class Line(Protocol):
    """The other end of the serial line, for recovery."""

    def receive(self) -> bytes:
        """Return what came, waiting a while for it; b"" ends the run, as if the power went."""

    def send(self, data: bytes) -> None: ...


class BootResult(msgspec.Struct, frozen=True):
    """slot: whose image was loaded, mapped and entered; None: none was (`recovery` says that it waited for a host)."""

    slot: int | None
    entry: int
    console: str
    wdt_armed: bool
    recovery: bool


class Hang(Exception):
    """The bootloader neither booted nor asked for recovery; the text says where it stood."""


class _Watch:
    """Stops runs that take too long: one thread for all of them, since a timer of its own is a thread for each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[object, tuple[float, Callable[[], None]]] = {}
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, stop: Callable[[], None]) -> Iterator[None]:
        """Have `stop` called when this takes longer than RUN_MAX_S."""
        run = object()
        with self._lock:
            self._running[run] = (time.monotonic() + RUN_MAX_S, stop)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                del self._running[run]

    def _look(self) -> None:
        idle = 0
        while True:
            time.sleep(1)
            with self._lock:
                for until, stop in self._running.values():
                    if time.monotonic() > until:
                        stop()
                idle = 0 if self._running else idle + 1
                if idle > IDLE_S:
                    self._thread = None
                    return


_watch = _Watch()


class Bootloader:
    """One ELF, to be booted as often as wanted. Raises FileNotFoundError if it is not built (make -C bootloader)."""

    def __init__(self, elf: Path | None = None, *, page_bytes: int = PAGE_PROGRAM_BYTES) -> None:
        path = elf or ELF
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there: make -C bootloader")
        self._page_bytes = page_bytes
        self.uc = uc = Uc(UC_ARCH_RISCV, UC_MODE_RISCV32)
        self.sram = ctypes.create_string_buffer(SRAM_BYTES + 0x4000)
        at = ctypes.addressof(self.sram)
        uc.mem_map_ptr(ICACHE_RAM, SRAM_BYTES + 0x4000, UC_PROT_ALL, at)
        uc.mem_map_ptr(SRAM, SRAM_BYTES, UC_PROT_ALL, at + 0x4000)
        uc.mem_map(0x40000000, 0x60000, UC_PROT_READ | UC_PROT_EXEC)
        uc.mem_write(0x40000000, b"\x82\x80" * 0x800)  # c.jr ra
        uc.mem_map(RTC_RAM, RTC_RAM_BYTES)
        uc.mmio_map(PERIPHERALS, PERIPHERALS_BYTES, self._load, None, self._store, None)
        with path.open("rb") as file:
            elffile = ELFFile(file)
            self._start = elffile["e_entry"]
            self._segments = [
                (s["p_vaddr"], s.data()) for s in elffile.iter_segments() if s["p_type"] == "PT_LOAD" and s["p_filesz"]
            ]
        rom: dict[int, Callable[[], int | None]] = {
            0x40000018: lambda: self._reason,
            0x40000040: self._printf,
            0x40000050: self._delay,
            0x40000090: lambda: self._stop("reset"),
            0x40000128: self._erase,
            0x4000012C: self._program,
            0x40000130: self._read,
            0x40000134: self._configure,
            0x40000140: lambda: 0,
            0x40000650: self._sha_init,
            0x4000065C: self._sha_update,
            0x40000660: self._sha_finish,
        }
        for address, function in rom.items():
            uc.hook_add(UC_HOOK_CODE, self._hook(function), begin=address, end=address)
        uc.hook_add(UC_HOOK_CODE, self._entered, begin=IRAM, end=APP_END - 1)
        uc.hook_add(UC_HOOK_CODE, self._entered, begin=RTC_RAM, end=RTC_RAM + RTC_RAM_BYTES - 1)

    def boot(
        self,
        flash: Flash,
        *,
        reset_reason: int,
        store: list[int],
        sram: bytes | None = None,
        line: Line | None = None,
        strap: bool | int = False,
        fuses: dict[int, int] | None = None,
    ) -> BootResult:
        """Run from the reset to the first instruction of an image, or to recovery without a `line`, or to a reset.

        `store`: the RTC STORE registers, updated in place. `sram`: what the last run left from 0x3fc80000 on. `strap`: the
        recovery pin is pressed and held, at power-on a moment after it; a number: so many milliseconds after the reset, 0:
        before it. `fuses`: registers that are not 0 at the reset. Raises Hang, and whatever the flash raises (a power cut, say).
        """
        self.flash, self._reason, self._line = flash, reset_reason, line
        self._console: list[str] = []
        self._registers = dict(zip(STORES, store, strict=True)) | (fuses or {})
        # A finger presses after power-on; a reset from within finds the pin held.
        self._us, self._pressed_us = 0, (PRESSED_MS * 1000 if reset_reason == POWER_ON else 0) if strap else None
        if isinstance(strap, int) and not isinstance(strap, bool):
            self._pressed_us = strap * 1000
        self._pin()
        if reset_reason == POWER_ON and self._pressed_us == 0:
            # The mask ROM's rule: the strap is low when the chip comes up, so no second stage runs (ESP32-C3 datasheet, 3.3).
            return BootResult(None, 0, DOWNLOAD, False, True)
        self._end, self._error, self._entry = "", None, 0  # type: str, BaseException | None, int
        self._received = bytearray()
        self._sent = bytearray()
        self._claimed = 2 << 20
        ctypes.memset(self.sram, 0, SRAM_BYTES + 0x4000)
        if sram is not None:
            ctypes.memmove(ctypes.addressof(self.sram) + 0x4000, sram, min(len(sram), SRAM_BYTES))
        for address, data in self._segments:
            self._put(address, data)
        self.uc.reg_write(UC_RISCV_REG_SP, ROM_STACK)
        try:
            self._emulate()
        except UcError as error:
            pc = self.uc.reg_read(UC_RISCV_REG_PC)
            if self._error is None and not self._end:
                if 0x42000000 <= pc < 0x42800000:  # mapped code: its first page is fetched
                    self._end, self._entry = "entered", pc
                else:
                    raise Hang(f"{error} at {pc:#x}; console: {''.join(self._console)}") from error
        if self._error is not None:
            raise self._error
        if not self._end:
            pc = self.uc.reg_read(UC_RISCV_REG_PC)
            raise Hang(f"still running at {pc:#x}; console: {''.join(self._console)}")
        for i, address in enumerate(STORES):
            store[i] = self._registers.get(address, 0)
        slot = self._loaded() if self._end == "entered" else None
        return BootResult(
            slot,
            self._entry,
            "".join(self._console),
            bool(self._registers.get(WDTCONFIG0, 0) >> 31),
            self._end != "entered",
        )

    def _put(self, address: int, data: bytes) -> None:
        """Load a part of the bootloader itself. Not by way of Unicorn, where it may be: that would forget what it has translated of
        the same bytes for the start before, which is most of what a start costs."""
        for start, size, at in ((ICACHE_RAM, SRAM_BYTES + 0x4000, 0), (SRAM, SRAM_BYTES, 0x4000)):
            if start <= address <= start + size - len(data):
                ctypes.memmove(ctypes.addressof(self.sram) + at + address - start, data, len(data))
                return
        self.uc.mem_write(address, data)

    def _emulate(self) -> None:
        """Run until something stops it, for RUN_MAX_S at most. Unicorn's own timeout polls every few microseconds."""
        with _watch.over(self.uc.emu_stop):
            self.uc.emu_start(self._start, 0)

    def register(self, address: int) -> int:
        """Return what the last run left in a peripheral's register."""
        return self._registers.get(address, 0)

    def _hook(self, function: Callable[[], int | None]) -> Callable[..., None]:
        def call(uc: Any, address: int, size: int, data: object) -> None:
            try:
                value = function()
            except BaseException as error:  # carried over the C code to the caller of boot()
                self._error = error
                uc.emu_stop()
                return
            if value is not None:
                uc.reg_write(UC_RISCV_REG_A0, value & 0xFFFFFFFF)

        return call

    def _argument(self, i: int) -> int:
        return int(self.uc.reg_read(UC_RISCV_REG_A0 + i))

    def _stop(self, end: str) -> None:
        self._end = end
        self.uc.emu_stop()

    def _entered(self, uc: Any, address: int, size: int, data: object) -> None:
        self._entry = address
        self._stop("entered")

    # registers
    def _load(self, uc: Any, offset: int, size: int, data: object) -> int:
        address = PERIPHERALS + offset
        if address == UART_STATUS:
            return len(self._received) and 1
        if address == UART_FIFO:
            return self._received.pop(0)
        if address == SPI1_CMD:
            return 0
        return self._registers.get(address, 0)

    def _store(self, uc: Any, offset: int, size: int, value: int, data: object) -> None:
        address = PERIPHERALS + offset
        if address == SPI1_CMD and value >> 28 & 1:
            self._registers[SPI1_W0] = self._rdid()
        elif address == UART_FIFO:
            self._sent.append(value & 0xFF)
            if value & 0xFF == 0xC0 and self._line is not None:
                self._line.send(bytes(self._sent))
                self._sent.clear()
        else:
            self._registers[address] = value

    def _rdid(self) -> int:
        return 0xEF | 0x40 << 8 | (self.flash.size.bit_length() - 1) << 16

    # ROM functions
    def _printf(self) -> None:
        template = self._string(self._argument(0))
        self._console.append(template.replace("%s", self._string(self._argument(1))))

    def _string(self, address: int) -> str:
        out = b""
        while b"\0" not in out and len(out) < 1024:
            out += bytes(self.uc.mem_read(address + len(out), 16))
        return out.split(b"\0")[0].decode("utf-8", "replace")

    def _pin(self) -> None:
        low = self._pressed_us is not None and self._us >= self._pressed_us
        self._registers[GPIO_IN] = 0 if low else 1 << RECOVERY_PIN

    def _delay(self) -> None:
        self._us += (us := self._argument(0))
        self._pin()
        if us == 1000 and "recovery: waiting" in "".join(self._console[-3:]):
            if self._line is None:
                self._stop("recovery")
                return
            data = self._line.receive()
            if not data:
                self._stop("recovery")
            self._received += data

    def _configure(self) -> int:
        self._claimed = self._argument(1)
        return 0

    def _erase(self) -> int:
        if self._argument(0) * SECTOR_BYTES >= self._claimed:
            return 1
        try:
            self.flash.erase(self._argument(0) * SECTOR_BYTES)
        except OSError:
            return 1
        return 0

    def _program(self) -> int:
        address, data = self._argument(0), bytes(self.uc.mem_read(self._argument(1), self._argument(2)))
        if (address | self._argument(1) | len(data)) & 3 or address + len(data) > self._claimed:
            return 1
        while data:
            n = min(len(data), self._page_bytes - address % self._page_bytes)
            try:
                self.flash.program(address, data[:n])
            except OSError:
                return 1
            address, data = address + n, data[n:]
        return 0

    def _read(self) -> int:
        address, to, length = self._argument(0), self._argument(1), self._argument(2)
        if (address | to | length) & 3 or address + length > self._claimed:
            return 1
        try:
            self.uc.mem_write(to, self.flash.read(address, length))
        except OSError:
            return 1
        return 0

    def _sha_init(self) -> int:
        self._sha: Any = hashlib.sha256()
        return 0

    def _sha_update(self) -> int:
        self._sha.update(bytes(self.uc.mem_read(self._argument(1), self._argument(2))))
        return 0

    def _sha_finish(self) -> int:
        self.uc.mem_write(self._argument(1), self._sha.digest())
        return 0

    # evidence
    def _loaded(self) -> int:
        """Return the slot whose segments stand in memory and in the MMU's table, every one of them."""
        fits = [slot for slot in (0, 1) if self._can_be_read(slot) and self._stands(slot)]
        if not fits:
            raise Hang(f"entered {self._entry:#x}, but neither slot's image stands in memory")
        if len(fits) == 2:  # the same image twice, and nothing of it mapped: the bootloader's word is all there is
            return int("".join(self._console).rstrip()[-1])
        return fits[0]

    def _can_be_read(self, slot: int) -> bool:
        """Say whether the image's sectors can be read: what cannot was not loaded."""
        try:
            self.flash.read(SLOTS[slot], 2 * SECTOR_BYTES)
        except OSError:
            return False
        return True

    def _stands(self, slot: int) -> bool:
        base = SLOTS[slot]
        header = self.flash.read(base, 24)
        if header[0] != 0xE9 or int.from_bytes(header[4:8], "little") != self._entry:
            return False
        at = base + 24
        for _ in range(header[1]):
            address, size = (int.from_bytes(self.flash.read(at + i, 4), "little") for i in (0, 4))
            at += 8
            if not address:
                pass  # padding
            elif 0x3C000000 <= address < 0x3C800000 or 0x42000000 <= address < 0x42800000:
                first, last = ((address & 0x7FFFFF) + n >> 16 for n in (0, size - 1))
                for page in range(first, last + 1):
                    if self._registers.get(MMU_TABLE + 4 * page) != (at >> 16) + page - first:
                        return False
            else:
                view = address - 0x700000 if IRAM <= address < RTC_RAM else address
                if not any(start <= view <= end - size for start, end in RAM):
                    return False
                if bytes(self.uc.mem_read(view, size)) != self.flash.read(at, size):
                    return False
            at += size
        return True
