# What the agent uses of `machine` on an ESP32-C3: reset, the RTC's store registers and its watchdog.
import hashlib
import struct
import sys

from esp32 import BOARD

SOFTWARE_RESET = 70
STORE = [0x60008050 + 4 * i for i in range(4)] + [0x600080B8 + 4 * i for i in range(4)]
CONFIG0, CONFIG1, FEED, PROTECT = 0x60008090, 0x60008094, 0x600080A4, 0x600080A8
PWRON_RESET, HARD_RESET, WDT_RESET, DEEPSLEEP_RESET, SOFT_RESET = 1, 2, 3, 4, 5
KEY = 0x50D83AA1
_rtc = open(sys.argv[1] + "/rtc", "r+b")


class _Memory:
    def __init__(self):
        self.unlocked = False
        self.registers = {}

    def __getitem__(self, address):
        if address in STORE:
            _rtc.seek(4 * STORE.index(address))
            return struct.unpack("<I", _rtc.read(4))[0]
        return self.registers.get(address, 0)

    def __setitem__(self, address, value):
        if address in STORE:
            _rtc.seek(4 * STORE.index(address))
            _rtc.write(struct.pack("<I", value & 0xFFFFFFFF))
        elif address == PROTECT:
            self.unlocked = value == KEY
        elif self.unlocked:
            self.registers[address] = value
            if address == CONFIG0 or address == FEED:
                armed = self.registers.get(CONFIG0, 0) >> 31
                print("\x02wdt", self.registers.get(CONFIG1, 0) * 2 // 136 if armed else 0)


mem32 = _Memory()


def unique_id():
    # Six bytes, as an ESP32-C3's; another one for each board.
    return hashlib.sha256(sys.argv[1].encode()).digest()[:6]


def reset():
    sys.exit(SOFTWARE_RESET)


def reset_cause():
    return {1: PWRON_RESET, 0xF: PWRON_RESET, 5: DEEPSLEEP_RESET, 3: HARD_RESET, 0xC: HARD_RESET}.get(
        BOARD["reset_reason"], WDT_RESET
    )
