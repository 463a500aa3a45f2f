# esp32.Partition over the board's flash file: NOR rules, and a power cut at a chosen operation. On the chip this takes none of the
# application's heap; here it is as small as it gets.
import json
import os
import sys

from micropython import const

_POWER_CUT = const(71)
_SECTOR = const(4096)
_PIECE = const(64)


def board():
    """Return what devicefw.sim.board says of this start."""
    with open(sys.argv[1] + "/board.json") as file:
        return json.load(file)


_start = board()
_flash = open(_start["flash"], "r+b")
_at = open(sys.argv[1] + "/operations", "r+b")
_count = [_start["operations"], _start["cut_at"], _start["cut_how"]]
_faults = {int(number): kind for number, kind in _start.get("faults", {}).items()}  # of sectors: devicefw/sim/flash.py
del _start


class NVS:
    """Each commit is whole or not there, as in ESP-IDF; whoever opens a namespace sees what others have set in it."""

    _set = {}  # what is not committed yet, by path and key: the rest stays in the file

    def __init__(self, namespace):
        self._path = sys.argv[1] + "/nvs-" + namespace + ".json"

    def _load(self):
        try:
            with open(self._path) as file:
                values = json.load(file)
        except OSError:
            values = {}
        for path, key in NVS._set:
            if path == self._path:
                values[key] = NVS._set[path, key]
        return values

    def _get(self, key):
        value = self._load().get(key)
        if value is None:
            raise OSError(-0x1102)
        return value

    def set_i32(self, key, value):
        NVS._set[self._path, key] = value

    get_i32 = _get

    def set_blob(self, key, value):
        NVS._set[self._path, key] = list(value)

    def get_blob(self, key, buffer):
        value = self._get(key)
        if len(value) > len(buffer):
            raise OSError(-0x110C)
        buffer[: len(value)] = bytes(value)
        return len(value)

    def commit(self):
        values = self._load()
        if len(_count) > 3:
            # Without dfud's bootloader the records are here: one more operation that a power cut comes before.
            _count[0] += 1
            if _count[0] == _count[1]:
                sys.exit(_POWER_CUT)
            _at.seek(0)
            _at.write(b"%12d" % _count[0])
        with open(self._path + ".new", "w") as file:
            json.dump(values, file)
        os.rename(self._path + ".new", self._path)
        for path, key in list(NVS._set):
            if path == self._path:
                del NVS._set[path, key]


class Partition:
    TYPE_APP, TYPE_DATA = 0, 1
    BOOT, RUNNING = 0, 1

    def __init__(self, name):
        found = board()
        if name == Partition.RUNNING or name == Partition.BOOT:
            name = "ota_%d" % found["slot"] if found["slot"] >= 0 else "factory"
        for p in found["partitions"]:
            if p[4] == name:
                self._info = tuple(p) + (False,)
                return
        raise OSError(2)

    @staticmethod
    def find(type=0, subtype=0xFF, label=None):
        names = [
            p[4] for p in board()["partitions"] if p[0] == type and subtype in (0xFF, p[1]) and label in (None, p[4])
        ]
        return [Partition(name) for name in names]

    def info(self):
        return self._info

    def _seek(self, block, offset, size):
        at = block * _SECTOR + offset
        if at < 0 or at + size > self._info[3]:
            raise OSError(22)
        _flash.seek(self._info[2] + at)
        return self._info[2] + at

    def readblocks(self, block, buffer, offset=0):
        at = self._seek(block, offset, len(buffer))
        if _faults and _faults.get(at // _SECTOR) == "unreadable":
            raise OSError(5)
        _flash.readinto(buffer)

    def writeblocks(self, block, buffer, offset=None):
        if offset is None:
            for i in range(len(buffer) // _SECTOR):
                self.ioctl(6, block + i)
        self._operate(self._seek(block, offset or 0, len(buffer)), memoryview(buffer), len(buffer))

    def ioctl(self, op, arg=None):
        if op in (1, 2, 3):
            return 0
        if op == 4:
            return self._info[3] // _SECTOR
        if op == 5:
            return _SECTOR
        if op == 6:
            self._operate(self._seek(arg, 0, _SECTOR), None, _SECTOR)
            return 0

    def _operate(self, at, view, size):
        # Program `view`, or erase if it is None: whole, or the half of it and no more, or nothing.
        kind = _faults.get(at // _SECTOR, "") if _faults else ""
        if kind.startswith("erase" if view is None else "program"):
            if kind.endswith("refused"):
                raise OSError(5)
            return
        _count[0] += 1
        cut = _count[0] == _count[1]
        if cut:
            size = 0 if _count[2] == "before" else size // 2
        # In small pieces: the chip does this without the application's heap.
        for i in range(0, size, _PIECE):
            new = b"\xff" * _PIECE
            if view is not None:
                new = bytes(view[i : min(i + _PIECE, size)])
                _flash.seek(at + i)
                old = int.from_bytes(_flash.read(len(new)), "big")
                new = (old & int.from_bytes(new, "big")).to_bytes(len(new), "big")
            _flash.seek(at + i)
            _flash.write(new)
        if cut:
            os.sync() if hasattr(os, "sync") else None
            sys.exit(_POWER_CUT)
        _at.seek(0)
        _at.write(b"%12d" % _count[0])
