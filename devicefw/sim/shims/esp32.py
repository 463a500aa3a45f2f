# esp32.Partition over the board's flash file: NOR rules, and a power cut at a chosen operation.
import json
import os
import sys

with open(sys.argv[1] + "/board.json") as _file:
    BOARD = json.load(_file)
POWER_CUT = 71
_BLANK = b"\xff" * 64
_flash = open(BOARD["flash"], "r+b")
_count = [BOARD["operations"]]
_at = open(sys.argv[1] + "/operations", "r+b")


def _operation(apply):
    # apply(fraction) does the whole operation for 1, half of it for 0.5.
    _count[0] += 1
    cut = BOARD["cut_at"]
    if cut is not None and _count[0] == cut:
        if BOARD["cut_how"] != "before":
            apply(0.5)
        os.sync() if hasattr(os, "sync") else None
        sys.exit(POWER_CUT)
    apply(1)
    _at.seek(0)
    _at.write(b"%12d" % _count[0])


class NVS:
    """Each commit is whole or not there, as in ESP-IDF."""

    def __init__(self, namespace):
        self._path = sys.argv[1] + "/nvs-" + namespace + ".json"
        try:
            with open(self._path) as file:
                self._values = json.load(file)
        except OSError:
            self._values = {}

    def set_blob(self, key, value):
        self._values[key] = list(value)

    def get_blob(self, key, buffer):
        if key not in self._values:
            raise OSError(-0x1102)
        value = self._values[key]
        if len(value) > len(buffer):
            raise OSError(-0x110C)
        buffer[: len(value)] = bytes(value)
        return len(value)

    def commit(self):
        with open(self._path + ".new", "w") as file:
            json.dump(self._values, file)
        os.rename(self._path + ".new", self._path)


class Partition:
    TYPE_APP, TYPE_DATA = 0, 1
    BOOT, RUNNING = 0, 1

    def __init__(self, name):
        if name == Partition.RUNNING or name == Partition.BOOT:
            name = "ota_%d" % BOARD["slot"]
        self._info = next(p for p in BOARD["partitions"] if p[4] == name)
        self._offset, self._size = self._info[2], self._info[3]

    @staticmethod
    def find(type=0, subtype=0xFF, label=None):
        return [
            Partition(p[4])
            for p in BOARD["partitions"]
            if p[0] == type and subtype in (0xFF, p[1]) and label in (None, p[4])
        ]

    def info(self):
        return tuple(self._info) + (False,)

    def _place(self, block, offset, size):
        at = block * 4096 + offset
        if at < 0 or at + size > self._size:
            raise OSError(22)
        return self._offset + at

    def readblocks(self, block, buffer, offset=0):
        _flash.seek(self._place(block, offset, len(buffer)))
        _flash.readinto(buffer)

    def writeblocks(self, block, buffer, offset=None):
        if offset is None:
            for i in range(len(buffer) // 4096):
                self.ioctl(6, block + i)
            offset = 0
        view = memoryview(buffer)
        at = self._place(block, offset, len(view))

        def program(fraction):
            # In small pieces: the chip does this without the application's heap.
            n = len(view) if fraction == 1 else len(view) // 2
            for i in range(0, n, 64):
                k = min(64, n - i)
                _flash.seek(at + i)
                new = int.from_bytes(_flash.read(k), "big") & int.from_bytes(view[i : i + k], "big")
                _flash.seek(at + i)
                _flash.write(new.to_bytes(k, "big"))

        _operation(program)

    def ioctl(self, op, arg=None):
        if op == 4:
            return self._size // 4096
        if op == 5:
            return 4096
        if op == 6:
            at = self._place(arg, 0, 4096)

            def wipe(fraction):
                _flash.seek(at)
                for _ in range(int(64 * fraction)):
                    _flash.write(_BLANK)

            _operation(wipe)
            return 0
