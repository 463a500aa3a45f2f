"""Starts over the device's life, and crashes of confirmed firmware: docs/protocol.md, starts; and the number of a result. Not kept in RAM.

All of it is one blob in NVS (namespace `dfud`, key `starts`), written once a start, which levels its wear. Crashes are what the
bootloader says in the state log since the last start: so one that comes before the agent counts, too.
"""

import struct

import esp32
from dfu import flash, records
from micropython import const

# Starts, crashes, reset reason, state record and diagnostics record seen last, number of the result that is told.
_HEAD, _HEAD_SIZE = const("<6I"), const(24)
_TEXT_MAX = const(64)
_REACH = const(16)  # records of the state log that are looked at: a start adds two at most
_CONFIRMED, _BOOTLOADER, _LEFT_CRASHED = const(0), const(1), const(2)  # state log: phase, writer, outcome
_CRASH, _TEXT = const(1), const(2)  # types of diagnostics



# Few names are defined here: those of a module that is given back stay in the interpreter's table.
def load():
    """Return the blob: _HEAD's values, and what the last crash said."""
    buffer = bytearray(_HEAD_SIZE + _TEXT_MAX)
    try:
        size = esp32.NVS("dfud").get_blob("starts", buffer)
        text = bytes(buffer[_HEAD_SIZE:size]).decode()
    except (OSError, UnicodeError):
        size, text = 0, ""
    return list(struct.unpack_from(_HEAD, buffer)) if size >= _HEAD_SIZE else [0] * 6, text


def write(values, text):
    """Raises OSError: NVS then holds what it did."""
    nvs = esp32.NVS("dfud")
    nvs.set_blob("starts", struct.pack(_HEAD, *values) + text.encode())
    nvs.commit()


def count(slots, result, watchdog):
    """Count this start, and what crashed since the last one. Return what the status says of it, or None: nothing can be kept.

    result: the one that is to be told, which gets its number here; None: there is none. watchdog: the chip says that one reset it.
    """
    state = slots.state
    (number, crashes, reset, seen, read, told), text = load()
    fallen = scan(state, seen) if state.part is not None else slots.crashes
    if not fallen and state.part is not None and state.crashes and state.seq == seen and state.phase == _CONFIRMED:
        # Where there is nothing to go back to, the bootloader ends counting: then what the agent kept speaks, or the chip.
        newest = records.Diagnostics(slots.diagnostics).log.newest()
        fallen = int(watchdog or newest is not None and newest[0] != read and newest[2][8] == _TEXT)
        read = newest[0] if newest else 0
    slots.crashes = fallen
    # The last start that was counted is one of those that crashed; the others did not get as far as here.
    number += 1 + fallen - (1 if number and fallen else 0)
    if fallen:
        crashes, reset = crashes + fallen, state.reset
        text = last(records.diagnostics(slots))
    # The same at every start until it is told, and another for the next result.
    told = 0 if result is None else told or number
    try:
        write([number, crashes, reset, state.seq, read, told], text)
    except OSError as error:
        print("dfu: nvs:", error)
        return None
    if told:
        result[7] = told
    return {0: number, 1: crashes, 2: reset, 3: text}


def scan(state, seq):
    """Return how many crashes of confirmed firmware the bootloader has counted since the record number `seq`."""
    seen = max(seq if seq <= state.seq else 0, state.seq - _REACH)
    found = {}
    for seq, _, record in flash.state_log(state.part).scan():
        if seq >= seen:
            found[seq] = struct.unpack_from("<8B", record, 8)
    n = 0
    for seq in found:
        slot, phase, crashes, _, _, outcome, _, writer = found[seq]
        if seq > seen and writer == _BOOTLOADER:
            was = found.get(seq - 1, (slot, phase, 0))
            if was[1] == _CONFIRMED and (outcome == _LEFT_CRASHED if slot != was[0] else crashes > was[2]):
                n += 1
    return n


def last(diagnostics):
    """Return what the newest crash said: the last line of its traceback, or the kind of reset."""
    newest = diagnostics.log.newest()
    if newest is None:
        return ""
    record = newest[2]
    cause = struct.unpack_from("<I", record, 12)[0]
    if record[8] == _CRASH and cause >> 16 != 0xDF0C:
        from dfu.result import ended

        return ended(record)
    record = diagnostics.last(_TEXT, record[9])
    try:
        line = bytes(record[52:504]).rstrip(b"\0").decode().rpartition("\n")[2] if record else ""
    except UnicodeError:
        return ""
    while len(line.encode()) > _TEXT_MAX:
        line = line[:-1]
    return line


def told():
    """The result was told: the next one has another number. Raises OSError."""
    values, text = load()
    if values[5]:
        values[5] = 0
        write(values, text)
