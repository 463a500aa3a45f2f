"""The start of a board without dfud's bootloader: what has come of the last change of slots, and of the last start. Not kept in RAM.

Survives a power cut between any two writes: the record says what is about to be done before it is done, and otadata says whether it was.
"""

from dfu import flash
from dfu.errors import clear
from dfu.idf import (
    ABORTED,
    BACK,
    INVALID,
    NO_FALLBACK,
    NO_SIGNATURE,
    ONE_TRIAL,
    PENDING,
    STALE,
    STARTED,
    SWITCHED,
    VALID,
    active,
    blob,
    entry,
    number,
    put,
    values,
    write,
)
from dfu.idfstate import Part, State, feed, settled
from dfu.manifest import stored
from dfu.state import CONFIRMED, TRIAL

CRASHED, UNCONFIRMED = 1, 2  # result codes
LEFT_CRASHED, LEFT_HASH, LEFT_UNCONFIRMED = 2, 3, 10  # outcomes: bootloader/FORMAT.md
CRASHES_MAX = 3
POWER_ON, RESET, WATCHDOG, DEEP_SLEEP = 1, 2, 3, 4  # machine.reset_cause()
WHY = {
    POWER_ON: "the power went away while it was on trial",
    WATCHDOG: "reset by a watchdog",
    DEEP_SLEEP: "it went to deep sleep while it was on trial",
}


def find(slots, p):
    """Find the partitions. Raises ValueError: this board has none for updates."""
    if not (p.find(p.TYPE_DATA, 0) and p.find(p.TYPE_APP, 0x10) and p.find(p.TYPE_APP, 0x11)):
        raise ValueError("the partition table has no otadata with ota_0 and ota_1, and none of dfud's: docs/other-boards.md")
    slots.partitions, slots.slot = p, number(p)
    slots.running = p(p.RUNNING)
    slots.idle = p("ota_%d" % (1 - slots.slot))
    slots.size = slots.idle.info()[3]
    # Where a transfer stands is kept in the idle slot, below its trailer.
    slots.capacity = slots.size - 2 * flash.SECTOR
    slots.stage = Part(slots.idle, slots.size // flash.SECTOR - 2, 1)
    slots.trusted = slots.diagnostics = None
    slots.state = State(p)
    slots.flags = ONE_TRIAL | NO_SIGNATURE


class _Slots:
    crashes = 0


def arm(ms):
    """Settle what is open, before the application has its turn; on trial, have the watchdog reset the chip after `ms`."""
    import esp32

    slots = _Slots()
    find(slots, esp32.Partition)
    once(slots)
    if slots.state.phase == TRIAL:
        import machine

        feed(machine, ms)


def begin(slots, p):
    """Find the partitions, settle what is open, and say what is weaker here."""
    find(slots, p)
    once(slots)
    print("dfu: not dfud's bootloader: a new image has one trial, and no signature is checked at a start")
    if slots.flags & NO_FALLBACK:
        print("dfu: this bootloader does not roll back: only the agent does, once it runs")


def once(slots):
    """Settle what is open, if nobody has at this start. Does not return if the other slot is to run."""
    import machine

    if settled:
        slots.crashes, slots.flags = settled
        return
    back = False
    try:
        back = settle(slots, machine.reset_cause())
    except OSError as error:
        print("dfu: flash:", error)
    if back:
        machine.reset()
    settled.extend((slots.crashes, slots.flags))


def _manifest(part):
    return stored(flash.envelope_of(part, part.info()[3]))


def _short(m):
    return int.from_bytes(m.sha256[:4], "little") if m is not None else 0


def _ended(state, slot):
    """Return the code of an end of this slot that was kept since the record was written, or None."""
    data = blob("end%d" % slot, 512)
    return data[4] if len(data) > 4 and int.from_bytes(data[:4], "little") == state.seq else None


def _say(slot, code, text):
    # Of no record: it is not counted again.
    put("end%d" % slot, bytes(4) + bytes((code,)) + text.encode())


def settle(slots, cause):
    """Find out what has come of the last start and set the record right. Return True if the chip has to be reset, for the other slot to
    run. cause: machine.reset_cause(). Raises OSError: what is booted is as before, and the next start looks at it again."""
    state, p, here = slots.state, slots.partitions, slots.slot
    own = entry(p, here)
    if not state.known:
        write(state, slot=here, phase=TRIAL if own == PENDING else CONFIRMED)
    elif state.slot != here:
        if _elsewhere(slots, own, cause):
            return True
    elif state.phase == TRIAL:
        if _on_trial(slots, own, cause):
            return True
    elif _confirmed(slots, own, cause):
        return True
    slots.flags |= state.lacks
    if state.phase == CONFIRMED:
        from dfu.idfkeys import rotate

        rotate(slots.running)
        clear("idfkeys")
    return False


def _elsewhere(slots, own, cause):
    """Another slot runs than the record says. Return True to reset into that one."""
    state, p, here, other = slots.state, slots.partitions, slots.slot, 1 - slots.slot
    theirs, m = entry(p, other), _manifest(slots.idle)
    if state.phase == CONFIRMED:
        # ESP-IDF could not boot what it should; or going back was cut; or somebody else has switched.
        if active(p) == state.slot != here:
            write(state, slot=here, crashes=0, previous=0, outcome=LEFT_HASH, tried=_short(m), code=LEFT_HASH, step=0)
        elif state.step & BACK and _boot(slots.idle):
            return True
        else:
            write(state, 
                slot=here, phase=TRIAL if own == PENDING else CONFIRMED, crashes=0, previous=0, outcome=0, tried=0, code=0, step=0
            )
        return False
    changes = {"slot": here, "phase": CONFIRMED, "crashes": 0, "previous": 0, "step": 0, "tried": _short(m)}
    switched = state.step & SWITCHED
    if theirs in (ABORTED, INVALID) and (switched or not state.step & STALE):
        code = _ended(state, other)
        if code is None:
            code = CRASHED if cause == WATCHDOG else UNCONFIRMED
            _say(other, code, WHY.get(cause) or "reset while it was on trial: a panic, machine.reset() or the reset button")
        write(state, outcome=LEFT_UNCONFIRMED if code == UNCONFIRMED else LEFT_CRASHED, code=code, **changes)
    elif theirs not in (ABORTED, INVALID, None) and switched:
        _say(other, LEFT_HASH, "ESP-IDF's bootloader did not take the image")
        write(state, outcome=LEFT_HASH, code=LEFT_HASH, **changes)
    else:
        # It never came to it: the transfer goes on where it was.
        changes["tried"] = 0
        write(state, outcome=0, code=0, **changes)
    return False


def _on_trial(slots, own, cause):
    state = slots.state
    if own == VALID:
        # Power went away in the confirmation, or the application has marked the image itself.
        from dfu.trial import confirmed

        write(state, **confirmed(state, _manifest(slots.running)))
    elif own != PENDING:
        # A bootloader without rollback. So the agent does it, if it comes to that.
        code = _ended(state, slots.slot)
        if state.previous and (state.step & STARTED or code is not None):
            return _back(slots, code, cause)
        if not state.step & STARTED:
            write(state, step=STARTED, lacks=NO_FALLBACK)
    elif state.lacks:
        write(state, lacks=0)  # the bootloader was replaced
    return False


def _confirmed(slots, own, cause):
    state, here = slots.state, slots.slot
    if own == PENDING:
        # It was gone back to: it was confirmed before.
        slots.partitions.mark_app_valid_cancel_rollback()
    code = _ended(state, here)
    if code is None and cause != WATCHDOG:
        if state.step:
            write(state, step=0)
        return False
    slots.crashes = 1
    crashes = min(state.crashes + 1, CRASHES_MAX)
    if crashes == CRASHES_MAX and state.previous:
        return _back(slots, code, cause)
    if code is None:
        _say(here, CRASHED, WHY[WATCHDOG])
    write(state, crashes=crashes, step=0)
    return False


def _back(slots, code, cause):
    """Have the other slot run, if ESP-IDF takes its image. code: that of the end that was kept, or None."""
    state, here = slots.state, slots.slot
    if code is None:
        code = CRASHED if cause == WATCHDOG else UNCONFIRMED
        _say(here, code, WHY.get(cause) or "reset before it was confirmed")
    kept = values(state)
    outcome = LEFT_UNCONFIRMED if code == UNCONFIRMED else LEFT_CRASHED
    tried = _short(_manifest(slots.running))
    changes = {"phase": CONFIRMED, "crashes": 0, "previous": 0, "outcome": outcome, "tried": tried, "code": code, "step": BACK}
    write(state, slot=1 - here, **changes)
    if _boot(slots.idle):
        return True
    kept.update(previous=0)
    write(state, **kept)
    return False


def _boot(part):
    try:
        part.set_boot()
    except OSError as error:
        print("dfu: no way back:", error)
        return False
    return True
