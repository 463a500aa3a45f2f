"""Which of the two banks' application is started, and what its starts came to: bootloader/FORMAT.md, "Banks". Not kept in RAM.

Pure: flash is an argument, and so is what ended the last start. Survives a power cut at any operation. The state is the bootloader's record
log with banks in place of slots; the same rules, but for two: the agent runs whatever the banks hold, so where there is nothing to
go back to, none is started; and what is on trial is counted with nothing to go back to, too.
"""

from dfu import flash
from dfu.manifest import stored

APP = 4  # a manifest's flag
CONFIRMED, TRIAL = 0, 1
CRASHED, UNCONFIRMED = 1, 2  # result codes
LEFT_CRASHED, LEFT_HASH, LEFT_UNCONFIRMED = 2, 3, 10  # outcomes
TOLD = 255  # in place of a reset reason: the server knows, and what was left stays left
CRASHES_MAX = 3
START, STARTS_MAX = 8, 80  # as the bootloader counts the starts of a trial: ten


class Banks:
    """As dfu.slots.Slots for an app image. `slot` is the bank that runs, or would be left by an update: its other one is `idle`.
    `manifest` is the one of what is started, None if none is; `paused`: it crashed again and again, and there is nothing to go back to; `slots`: the
    system's dfu.slots.Slots."""

    manifest, running_size, digest, paused, slots = None, 0, bytes(32), False, None


def find(parts, state, page):
    """Return the Banks, of two partitions and the flash.State of app_state; page: a buffer of one sector."""
    found = Banks()
    found.parts, found.state, found.page = parts, state, page
    found.size = parts[0].info()[3]
    found.capacity = found.size - flash.SECTOR
    _place(found)
    return found


def _place(banks):
    banks.slot = banks.state.slot
    banks.running, banks.idle = banks.parts[banks.slot], banks.parts[1 - banks.slot]


def whole(banks, number):
    """Return the manifest of the app image in a bank that holds just that, or None."""
    part = banks.parts[number]
    try:
        m = stored(flash.envelope_of(part, banks.size))
        if m is None or not m.flags & APP or m.size > banks.capacity or flash.digest(part, m.size, banks.page) != m.sha256:
            return None
    except OSError:
        return None
    m.signed = m.key = m.signature = None
    return m


def _short(digest):
    return int.from_bytes(digest[:4], "little")


def choose(banks, crash=0):
    """Choose what is started, having counted the start: sets `manifest` and what goes with it. crash: the result code that the last start
    of the application ended with, 0: not in a crash."""
    state = banks.state
    if state.known:
        m = whole(banks, state.slot)
        if m is None:
            if state.outcome != LEFT_HASH:
                m = _leave(banks, LEFT_HASH, stored_digest(banks, state.slot))
        elif state.outcome >= 2 and state.tried == _short(m.sha256):
            m = None  # it was left, with nothing to go back to
        else:
            m = _count(banks, m, crash)
    else:
        # As the bootloader: what is whole counts, the newest of it.
        both = [whole(banks, 0), whole(banks, 1)]
        state.slot = int(both[1] is not None and (both[0] is None or both[1].sequence > both[0].sequence))
        m = both[state.slot]
        if m is None:
            state.slot = 1  # the first one comes into bank 0
        elif crash:
            m = _count(banks, m, crash)
    _place(banks)
    banks.manifest = m
    if m is not None:
        banks.running_size, banks.digest = m.size, m.sha256
        if state.phase == CONFIRMED and state.crashes >= (state.max_crashes or CRASHES_MAX):
            banks.paused = True


def stored_digest(banks, number):
    """Return what the manifest in a bank, whole or not, says of its image's digest, or b""."""
    try:
        m = stored(flash.envelope_of(banks.parts[number], banks.size))
    except OSError:
        return b""
    return m.sha256 if m is not None else b""


def _count(banks, m, crash):
    """Count a crash, or the start of a trial; return the manifest of what is started then."""
    state = banks.state
    most = state.max_crashes or CRASHES_MAX
    trial = state.phase == TRIAL
    crashes = min(state.crashes + 1, most) if crash else state.crashes
    if crash and crashes == most and (trial or state.previous):
        return _leave(banks, LEFT_UNCONFIRMED if crash == UNCONFIRMED else LEFT_CRASHED, m.sha256, crash)
    if trial and not crash and state.starts + START > STARTS_MAX:
        return _leave(banks, LEFT_UNCONFIRMED, m.sha256, UNCONFIRMED)
    starts = state.starts
    try:
        if crashes != state.crashes:
            state.append(crashes=crashes, reset=crash)
        elif trial:
            state.starts += START
            state.append()
    except OSError as error:
        state.starts = starts
        # A start that is not counted would have no end.
        print("dfu: flash:", error)
        other = _back(banks)
        if other is None and not trial:
            banks.paused = True
            return m
        return other
    return m


def _leave(banks, outcome, digest, code=0):
    """Go back to the other bank, or to none; return its manifest."""
    state = banks.state
    slot = state.slot
    other = _back(banks)
    try:
        state.append(phase=CONFIRMED, crashes=0, previous=0, outcome=outcome, reset=code, tried=_short(digest))
    except OSError as error:
        print("dfu: flash:", error)  # the next start finds it as this one did
    if other is None:
        state.slot = slot
    return other


def _back(banks):
    """Have the other bank be what is started, in RAM alone, if it can be gone back to; return its manifest, or None."""
    state = banks.state
    other = whole(banks, 1 - state.slot) if state.previous else None
    if other is not None:
        state.slot = 1 - state.slot
        # What is gone back to is on no trial: nothing that it does counts for the one that was left.
        state.phase, state.starts = CONFIRMED, 0
    return other


def confirm(banks):
    """Keep what is started. Raises OSError if flash does not take it: the trial goes on then."""
    state, m = banks.state, banks.manifest
    if state.phase != TRIAL:
        if state.crashes:
            state.append(crashes=0)
        banks.paused = False
        return
    floor = min(max(state.floor, m.floor), m.sequence)
    state.append(
        phase=CONFIRMED, crashes=0, outcome=1, reset=0, tried=0, previous=state.previous & 1, floor=floor, accept=m.sequence
    )


def result(banks, text):
    """Return what the last change of banks came to, as a status says it (docs/protocol.md, result), or None if there is nothing to tell.
    text: of a bank by its number: what the agent kept of its end."""
    state = banks.state
    if state.outcome < 2 or not state.tried or state.reset == TOLD:
        return None
    for number in (1 - state.slot, state.slot):
        digest = stored_digest(banks, number)
        if digest and _short(digest) == state.tried:
            code = 3 if state.outcome == LEFT_HASH else state.reset or CRASHED
            crashes = 0 if state.outcome == LEFT_HASH else state.max_crashes or CRASHES_MAX
            # Another number for each result, and the same one until it is told; dfu.starts gives lower ones.
            number_of = 1 << 28 | state.seq & 0xFFFFFFF
            return {0: 2, 1: digest, 2: code, 3: text(number), 4: crashes, 5: 0, 6: b"", 7: number_of}
    return None


def told(banks):
    """The server has the result. What was left with nothing to go back to stays left. Raises OSError: it is told once more."""
    state = banks.state
    if banks.manifest is None and state.tried == _short(stored_digest(banks, state.slot)):
        state.append(reset=TOLD)
    else:
        state.append(outcome=0, reset=0, tried=0)


def begin(banks):
    """The idle bank is about to be written: from now on there is nothing in it to go back to, and what is whole in it is not to be
    taken for what a factory put there. Raises OSError."""
    if banks.state.previous or not banks.state.known:
        banks.state.append(previous=0)
