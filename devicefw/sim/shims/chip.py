# What the agent uses of `machine` on an ESP32-C3: reset, the RTC's store registers and its watchdog.
import hashlib
import struct
import sys

from micropython import const

_SOFTWARE_RESET = const(70)
# Four store registers at the one address, four at the other.
_STORE0, _STORE4 = const(0x60008050), const(0x600080B8)
_CONFIG0, _CONFIG1, _FEED, _PROTECT = const(0x60008090), const(0x60008094), const(0x600080A4), const(0x600080A8)
_KEY = const(0x50D83AA1)
_rtc = open(sys.argv[1] + "/rtc", "r+b")


class _Memory:
    def __init__(self):
        self.unlocked = False
        self.registers = {}

    def _seek(self, address):
        # Find a store register in its file; False for any other address.
        for first, place in ((_STORE0, 0), (_STORE4, 16)):
            if first <= address < first + 16:
                _rtc.seek(place + address - first)
                return True
        return False

    def __getitem__(self, address):
        if self._seek(address):
            return struct.unpack("<I", _rtc.read(4))[0]
        return self.registers.get(address, 0)

    def __setitem__(self, address, value):
        if self._seek(address):
            _rtc.write(struct.pack("<I", value & 0xFFFFFFFF))
        elif address == _PROTECT:
            self.unlocked = value == _KEY
        elif self.unlocked:
            self.registers[address] = value
            if address == _CONFIG0 or address == _FEED:
                armed = self.registers.get(_CONFIG0, 0) >> 31
                print("\x02wdt", self.registers.get(_CONFIG1, 0) * 2 // 136 if armed else 0)


mem32 = _Memory()


def unique_id():
    # Six bytes, as an ESP32-C3's; another one for each board.
    return hashlib.sha256(sys.argv[1].encode()).digest()[:6]


def reset():
    sys.exit(_SOFTWARE_RESET)


PWRON_RESET, HARD_RESET, WDT_RESET, DEEPSLEEP_RESET = 1, 2, 3, 4


def reset_cause():
    from esp32 import board

    return {1: 1, 0xF: 1, 5: 4, 3: 2, 0xC: 2, 0x15: 2}.get(board()["reset_reason"], 3)
