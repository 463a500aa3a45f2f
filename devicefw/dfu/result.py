"""What the last change of slots came to. Not kept in RAM: it is needed once a start, and once more when the server has been told."""

from dfu import flash, records
from dfu.errors import BASE, CHUNK, DOWNGRADE, IMAGE_HASH, INTERNAL, SIGNATURE, TOO_LARGE
from dfu.manifest import stored


def result(slots):
    """Return it as the status says it (docs/protocol.md, result), or None if there is nothing to tell, or flash cannot be read."""
    try:
        return _result(slots)
    except OSError as error:
        print("dfu: flash:", error)


def _result(slots):
    state = slots.state
    if state.outcome < 2 or state.outcome == 9 or not state.tried:
        return None
    if state.outcome == 7:
        from dfu import stage

        envelope = stage.envelope_of(slots.stage)
    else:
        envelope = flash.envelope_of(slots.idle, slots.size)
    m = stored(envelope)
    if m is None or int.from_bytes(m.sha256[:4], "little") != state.tried:
        return None
    code = getattr(state, "code", 0) or {2: 1, 3: 3, 4: 4, 5: 5, 10: 2}.get(state.outcome, INTERNAL)
    text, crashes, record = "", int(getattr(state, "code", 0) == 1), b""
    other = 1 - slots.slot
    diagnostics = records.diagnostics(slots)
    told = diagnostics.last(2, other)
    if told is not None:
        try:
            text = bytes(told[52:504]).rstrip(b"\0").decode()
        except UnicodeError:
            text = "the text in dfu_diag cannot be read"
    crash = diagnostics.last(1, other)
    if crash is not None:
        crashes, record = crash[10], bytes(crash)
        cause = int.from_bytes(crash[12:16], "little")
        if cause >> 16 == 0xDF0C:
            code = cause & 0xFFFF
        else:
            # Nobody wrote a text; an older one is of another start.
            text = ended(crash)
    outcome = 3 if state.outcome == 7 else 2
    failed = diagnostics.last(5, other) if outcome == 3 else None
    if failed is not None:
        number = int.from_bytes(failed[12:16], "little")
        text, record = "the bootloader's error %d" % number, bytes(failed)
        code = {3: IMAGE_HASH, 4: SIGNATURE, 5: DOWNGRADE, 11: CHUNK, 12: CHUNK, 13: BASE, 15: TOO_LARGE}.get(number, INTERNAL)
    return {0: outcome, 1: m.sha256, 2: code, 3: text, 4: crashes, 5: state.reset, 6: record}


def ended(record):
    """Return what ended the start that this record of a crash is about: the kind of panic, or the watchdog's name."""
    cause, reset = int.from_bytes(record[12:16], "little"), record[11]
    if cause >> 31:
        return {4: "panic", 5: "interrupt watchdog", 6: "task watchdog"}.get(cause & 0xFFFF, "panic")
    # The chip's reset reasons: ESP32-C3 TRM, "Reset and Clock".
    timer = {7: "timer 0 watchdog", 11: "timer 0 watchdog", 8: "timer 1 watchdog", 17: "timer 1 watchdog", 18: "super watchdog"}
    return timer.get(reset, "RTC watchdog")


def told(slots):
    """The server has the result: forget it. If flash does not take that, it is told once more after the next start."""
    try:
        slots.state.append(outcome=0, tried=0)
        records.diagnostics(slots).clear()
        from dfu import starts

        starts.told()
    except OSError as error:
        print("dfu: flash:", error)
