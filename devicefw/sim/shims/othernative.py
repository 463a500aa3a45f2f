# What boards without dfud's bootloader have beside the others: otadata in esp32.Partition, and another watchdog in `machine`. On a chip
# this takes none of the heap; here a part of it is loaded for each call.
import sys

import esp32


_HERE = sys.path[0]  # of the board's modules, which are in no path of the program's


def _call(name, what):
    sys.path.insert(0, _HERE)
    try:
        import otaparts
    finally:
        sys.path.remove(_HERE)
    try:
        return getattr(otaparts, name)(what)
    finally:
        for name in ("otaparts", "otadata"):
            del sys.modules[name]


class Partition(esp32.Partition):
    def __init__(self, name):
        super().__init__(_call("booted", Partition) if name == Partition.BOOT else name)

    def set_boot(self):
        _call("set_boot", self)

    def get_next_update(self):
        return _call("next_update", self)

    @classmethod
    def mark_app_valid_cancel_rollback(cls):
        _call("mark_valid", cls)


class WDT:
    # The task watchdog: it cannot be stopped; another one is the same with another time.
    def __init__(self, id=0, timeout=5000):
        if id != 0 or timeout <= 0:
            raise ValueError("WDT timeout too short")
        WDT._timeout = timeout
        self.feed()

    def feed(self):
        print("\x02wdt", WDT._timeout)


class Memory:
    # What the agent agrees on with dfud's bootloader is none of its business here: other things are at these addresses.
    def __getitem__(self, address):
        raise RuntimeError("mem32 0x%x on a board without dfud's bootloader" % address)

    def __setitem__(self, address, value):
        self[address]
