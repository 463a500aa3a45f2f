"""devicefw/dfu/starts.py on real MicroPython, from logs in RAM as the bootloader writes them."""

from __future__ import annotations

from typing import Any

from tests.devicefw.test_link import run

BOARD = """
import struct
class Part:
    def __init__(self, sectors): self.data = bytearray(b"\\xff" * 4096 * sectors)
    def readblocks(self, block, buffer, offset=0):
        at = block * 4096 + offset
        buffer[:] = self.data[at : at + len(buffer)]
    def writeblocks(self, block, buffer, offset):
        at = block * 4096 + offset
        self.data[at : at + len(buffer)] = bytes(buffer)
    def ioctl(self, op, block): self.data[block * 4096 : (block + 1) * 4096] = b"\\xff" * 4096
class NVS:
    kept, worn = {}, False
    def __init__(self, name): pass
    def get_blob(self, key, buffer):
        if key not in NVS.kept:
            raise OSError(-0x1102)
        value = NVS.kept[key]
        if len(value) > len(buffer):
            raise OSError(-0x110C)
        buffer[: len(value)] = value
        return len(value)
    def set_blob(self, key, value):
        if NVS.worn:
            raise OSError(5)
        NVS.kept[key] = bytes(value)
    def commit(self): pass
class Esp32: pass
esp = Esp32()
esp.NVS = NVS
sys.modules["esp32"] = esp
from dfu import flash, records, starts
from dfu.state import State
starts.print = lambda *text: None
class Slots: pass
slots = Slots()
part, diag = Part(2), Part(4)
slots.diagnostics, diagnostics = diag, records.Diagnostics(diag)
def log(writer=1, **changes):
    "Append to the state log; FIELDS as they stand, with changes, by the bootloader."
    s = State(part)
    values = {name: getattr(s, name) for name in s.FIELDS}
    values.update(changes)
    values["writer"] = writer
    flash.state_log(part).append(struct.pack(s.FORMAT, *[values[name] for name in s.FIELDS]))
def crashed(slot=0, cause=0xDF0C0001, text=None, recorded=True):
    "What is written by a crash: the agent's text, then the bootloader's record."
    if text is not None:
        diagnostics.text(slot, text)
    if recorded:
        diagnostics.log.append(struct.pack("<BBBBI", 1, slot, 1, 12, cause) + bytes(492))
def start(result=None, watchdog=False):
    slots.state = State(part)
    told = starts.count(slots, result, watchdog)
    print(json.dumps([told and [told[i] for i in range(4)], result and result.get(7)]))
"""
TRACEBACK = "Traceback (most recent call last):\\n  File \\\"lamp.py\\\"\\nValueError: "


def rows(program: str) -> list[Any]:
    return run(BOARD + program)


def test_starts_are_counted_and_crashes_of_confirmed_firmware_with_their_last_line() -> None:
    found = rows(f"""
start()
log(2, slot=0, accept=5)
start()
crashed(text="{TRACEBACK}dark"); log(crashes=1, reset=12)
start()
log(2, crashes=0)
start()
crashed(cause=0x80040004); log(crashes=1, reset=12)
start()
start()
crashed(cause=0); log(crashes=2, reset=16)
start()
""")
    dark = [1, 12, "ValueError: dark"]
    assert [row[0] for row in found[:4]] == [[1, 0, 0, ""], [2, 0, 0, ""], [3, *dark], [4, *dark]]
    assert [row[0] for row in found[4:]] == [[5, 2, 12, "panic"], [6, 2, 12, "panic"], [7, 3, 16, "RTC watchdog"]]


def test_crashes_before_the_agent_started_count_and_so_do_those_that_took_the_image_off() -> None:
    found = rows(f"""
log(2, slot=1, previous=1, accept=5)
start()
for n in (1, 2):
    crashed(1, text="{TRACEBACK}" + str(n)); log(crashes=n, reset=12)
crashed(1, text="{TRACEBACK}3"); log(slot=0, crashes=0, previous=0, outcome=2, tried=7)
start({{0: 2}})
""")
    assert found == [[[1, 0, 0, ""], None], [[4, 3, 12, "ValueError: 3"], 4]], "two starts did not come as far as the agent"


def test_crashes_on_trial_are_the_trial_s() -> None:
    found = rows(f"""
log(2, slot=0, accept=5)
start()
log(2, slot=1, phase=1, previous=1)
start()
for n in (1, 2):
    crashed(1, text="{TRACEBACK}x"); log(crashes=n, reset=12)
    start()
crashed(1, text="{TRACEBACK}x"); log(slot=0, phase=0, crashes=0, previous=0, outcome=2, tried=7)
start({{0: 2}})
""")
    assert [row[0] for row in found] == [[n, 0, 0, ""] for n in range(1, 6)]


def test_where_there_is_nothing_to_go_back_to_crashes_count_on_after_the_bootloader_s_last() -> None:
    found = rows(f"""
log(2, slot=0)
start()
for n in (1, 2, 3):
    crashed(text="{TRACEBACK}%d" % n); log(crashes=n, reset=12)
    start()
crashed(text="{TRACEBACK}4", recorded=False)
start()
start()
start(watchdog=True)
""")
    assert [row[0][:2] for row in found] == [[1, 0], [2, 1], [3, 2], [4, 3], [5, 4], [6, 4], [7, 5]]
    assert found[4][0][3] == "ValueError: 4"


def test_a_result_has_one_number_until_it_is_told_and_the_next_another() -> None:
    found = rows("""
log(2, slot=0, accept=5)
start()
log(slot=0, outcome=2, tried=7)
start({0: 2})
start({0: 2})
starts.told()
start({0: 2})
start()
start({0: 2})
NVS.worn = True
start({0: 2})
""")
    numbers = [row[1] for row in found]
    assert numbers == [None, 2, 2, 4, None, 6, None]
    assert found[-1][0] is None, "what cannot be kept is not told: a count that stands still would be a lie"


def test_a_long_text_is_cut_between_characters_and_a_state_log_that_is_new_is_no_crash() -> None:
    found = rows("""
log(2, slot=0)
start()
crashed(text="ValueError: " + "ü" * 200); log(crashes=1, reset=12)
start()
part.data[:] = b"\\xff" * 8192
log(2, slot=0)
start()
""")
    assert found[1][0][3] == "ValueError: " + "ü" * 26
    assert found[2][0][:2] == [3, 1]
