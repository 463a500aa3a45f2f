# Runs on MicroPython and CPython: whole updates by dfu.update.Update over a flash in RAM. Each line of the file of cases is a package and
# what is done to it; prints one line for each: what came of it, and what it did to the flash.
import asyncio
import binascii
import json
import sys
import time

if not hasattr(time, "ticks_ms"):
    time.ticks_ms, time.ticks_diff = lambda: int(time.monotonic() * 1000), lambda after, before: after - before

sys.path.insert(0, sys.argv[1])
CPYTHON = sys.implementation.name == "cpython"
if CPYTHON:
    # Viper checks no index. The same code as plain Python, with sequences that refuse what Python would forgive, shows that none is needed.
    from array import array

    asyncio.sleep_ms = lambda ms: asyncio.sleep(ms / 1000)

    def checked(key, n):
        if isinstance(key, int) and not 0 <= key < n:
            raise IndexError("index %d of %d" % (key, n))

    class Bytes(bytearray):
        def __getitem__(self, key):
            checked(key, len(self))
            return bytearray.__getitem__(self, key)

        def __setitem__(self, key, value):
            checked(key, len(self))
            bytearray.__setitem__(self, key, value)

    class Words(array):
        def __getitem__(self, key):
            checked(key, len(self))
            return array.__getitem__(self, key)

        def __setitem__(self, key, value):
            checked(key, len(self))
            array.__setitem__(self, key, value)

    import dfu.mapped
    import dfu.room
    import dfu.table
    import dfu.zstd

    for module in (dfu.mapped, dfu.room, dfu.table, dfu.zstd):
        module.bytearray, module.array = Bytes, Words
else:
    Bytes = bytearray

from dfu import flash
from dfu.errors import UpdateError
from dfu.pack import unpack
from dfu.update import Update
from dfu.room import make

SECTOR = 4096
SLOT = 48 * 1024
BLANK = b"\xff" * SECTOR
BUFFER = Bytes(8192)


class Cut(Exception):
    pass


class Part:
    def __init__(self, size):
        self.size, self.data = size, bytearray(b"\xff" * size)
        self.writes = 0
        self.cut_at = self.cut_half = None

    def info(self):
        return (0, 0, 0, self.size, "", False)

    def _place(self, block, offset, length):
        at = block * SECTOR + offset
        if at < 0 or at + length > self.size:
            raise OSError(22)
        return at

    def readblocks(self, block, buffer, offset=0):
        at = self._place(block, offset, len(buffer))
        buffer[:] = memoryview(self.data)[at : at + len(buffer)]

    def _operation(self, at, data):
        Part.count += 1
        self.writes += 1
        n = len(data)
        if Part.count == Part.cut:
            n //= 2
        self.data[at : at + n] = data[:n]
        if Part.count == Part.cut:
            raise Cut

    def writeblocks(self, block, buffer, offset):
        at = self._place(block, offset, len(buffer))
        data = bytes(buffer)
        old = bytes(self.data[at : at + len(data)])
        if old != BLANK[: len(data)]:
            data = bytes(a & b for a, b in zip(old, data))
        self._operation(at, data)

    def ioctl(self, op, block):
        assert op == 6
        self._operation(self._place(block, 0, SECTOR), b"\xff" * SECTOR)


class State:
    accept = floor = 0


class Slots:
    """As dfu.slots.Slots is after a start; the flash outlives it."""

    apps = None

    def __init__(self, base, running, idle, stage):
        self.running, self.idle, self.stage = running, idle, stage
        self.running_size, self.size, self.capacity = len(base), idle.size, idle.size - SECTOR
        self.digest = flash.digest(running, len(base), bytearray(SECTOR))
        self.state, self.manifest = State, None
        self.room, self.trusted = ROOM, Part(2 * SECTOR)


class Transport:
    """Gives chunks out; `wrong`: {"number": [bytes of chunk, ...]} given out first, in this order."""

    def __init__(self, chunks, wrong):
        self.chunks, self.wrong = chunks, {int(k): [binascii.unhexlify(x) for x in v] for k, v in wrong.items()}
        self.asked = []

    async def chunk(self, package, number, buffer):
        self.asked.append(number)
        instead = self.wrong.get(number)
        data = instead.pop(0) if instead else self.chunks[number]
        buffer[: len(data)] = data
        return len(data)


ROOM = make()
POOL = []  # the file's first line: what many cases have in common, which they name by its number


def data_of(said):
    return POOL[said] if isinstance(said, int) else binascii.unhexlify(said)


async def one(case):
    raw = binascii.unhexlify(case["command"])
    base = data_of(case["base"])
    running, idle, stage = Part(SLOT), Part(SLOT), Part(40 * 1024)
    running.data[: len(base)] = base
    chunks = [data_of(x) for x in case["chunks"]]
    transport = Transport(chunks, case.get("wrong", {}))
    Part.count, Part.cut = 0, case.get("cut")
    said = "no end"
    config = {"app": "lamps", "hardware": "esp32c3"}
    if case.get("stage"):
        config["install"] = "bootloader"
    for _ in range(3):
        try:
            update = Update(unpack(raw), raw, Slots(base, running, idle, stage), config, BUFFER)
            await update.judge()
            await update.find()
            await update.begin()
            while not update.written:
                await update.fetch(transport)
            said = "written"
            break
        except UpdateError as error:
            said = "error %d %s" % (error.args[0], error.args[1])
            break
        except Cut:
            said = "cut"
    from dfu.manifest import read  # what an update has given back is loaded anew

    size = read(unpack(raw)[3]).size
    outside = running.writes or bytes(running.data[: len(base)]) != base
    crc = flash.crc32(bytes(idle.data[:size]))
    print("%s|%d|%d|%d|%s" % (said, crc, idle.writes, outside, ",".join(str(n) for n in transport.asked)))


async def main():
    print(sys.implementation.name)
    with open(sys.argv[2]) as file:
        POOL.extend(binascii.unhexlify(x) for x in json.loads(file.readline()))
        for line in file:
            await one(json.loads(line))


asyncio.run(main())
