"""What the agent does about app banks at a start, and when an application is confirmed or its result was told. Not kept in RAM."""

from dfu.backoff import BEGUN
from dfu import banks as rules
from dfu import records
from dfu.banks import CRASHED, TRIAL, choose, result, stored_digest
from dfu.errors import clear
from dfu.state import State

STORE0, MARK = 0x60008050, 0xDFA90000  # RTC register and what is in it while an application runs: bootloader/FORMAT.md, "Banks"


def find(agent):
    """Find out which bank's application is to run, and what came of the last one: sets agent.apps, and what the status says of it."""
    import esp32

    p, slots = esp32.Partition, agent.slots
    if slots.diagnostics is None:
        return  # without dfud's bootloader nobody counts for them
    parts = [p.find(p.TYPE_DATA, subtype) for subtype in (0x44, 0x45, 0x46)]
    if not all(parts):
        return
    banks = agent.apps = rules.find((parts[0][0], parts[1][0]), State(parts[2][0]), slots.room[-1])
    banks.stage, banks.trusted, banks.room = slots.stage, slots.trusted, slots.room
    banks.slots, slots.apps = slots, banks
    choose(banks, _ended(agent, banks))
    banks.trial = banks.manifest is not None and banks.state.phase == TRIAL
    say(banks)

    def text(number):
        told = records.Diagnostics(slots.diagnostics).last(2, 2 + number)
        try:
            return bytes(told[52:504]).rstrip(b"\0").decode() if told is not None else ""
        except UnicodeError:
            return "the text in dfu_diag cannot be read"

    try:
        banks.result = result(banks, text)
    except OSError as error:
        print("dfu: flash:", error)
        banks.result = None
    if agent.result is None:
        agent.result = banks.result
    clear("banks")


def _ended(agent, banks):
    """Return the code of the crash in which the last start of the application ended, or 0. What a watchdog or a panic ended the
    bootloader has counted for the image in the slot: that is set back, unless it is the one on trial."""
    machine, slots = agent.machine, agent.slots
    mark = machine.mem32[STORE0]
    if mark >> 16 != MARK >> 16:
        return 0
    machine.mem32[STORE0] = 0
    code = mark & 0xFFFF
    fallen = machine.reset_cause() == machine.WDT_RESET or slots.crashes
    if agent.trial and banks.state.phase != TRIAL or not (code or fallen):
        return 0
    try:
        if fallen and slots.state.crashes and not agent.trial:
            slots.state.append(crashes=0)
        if not code and stored_digest(banks, banks.state.slot):
            said = agent.starts[3] if agent.starts is not None and slots.crashes else ""
            records.Diagnostics(slots.diagnostics).text(2 + banks.state.slot, said or "reset by a watchdog")
    except OSError as error:
        print("dfu: flash:", error)
    return code or CRASHED


def say(banks):
    """Make up what the status says of the application: docs/protocol.md, app."""
    m = banks.manifest
    banks.said = said = {0: m.version if m else "", 1: banks.digest, 2: banks.capacity}
    if banks.trial:
        said[3] = True
    if banks.state.accept:
        said[4] = banks.state.accept
    if m:
        said[5] = m.sequence


def confirm(agent):
    """Keep the application. Raises OSError if flash does not take it: the trial goes on then."""
    banks = agent.apps
    rules.confirm(banks)
    if banks.trial:
        banks.trial = False
        agent.backoff.good(BEGUN)
        say(banks)
    clear("banks")


def begin(banks):
    """An image is about to be written into the idle bank. Raises OSError."""
    rules.begin(banks)
    clear("banks")


def told(banks):
    """The server has the result: forget it. If flash does not take that, it is told once more after the next start."""
    banks.result = None
    try:
        rules.told(banks)
    except OSError as error:
        print("dfu: flash:", error)
    clear("banks")
