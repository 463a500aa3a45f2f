"""The two ends of a start that need no agent: is it a trial, and what went wrong. Not kept in RAM."""

import io
import sys

from dfu import records
from dfu.state import TRIAL, State


def partition(subtype):
    """Return the partition, or None: with 0x40, the bootloader is not dfud's then, and its registers are the system's."""
    import esp32

    found = esp32.Partition.find(esp32.Partition.TYPE_DATA, subtype)
    return found[0] if found else None


def running():
    import esp32

    return 1 if esp32.Partition(esp32.Partition.RUNNING).info()[4] == "ota_1" else 0


def arm(ms):
    """If the running image is on trial, have the watchdog reset the chip after `ms`: until the agent feeds it, nobody does."""
    part = partition(0x40)
    if part is None:
        from dfu.errors import clear
        from dfu.idf import arm

        arm(ms)
        clear("idf", "manifest")
        return
    state = State(part)
    if state.phase == TRIAL and state.slot == running():
        import machine

        from dfu.trial import feed

        feed(machine, ms)


def keep(what, slot=None, code=0):
    """Keep a text, or an exception's traceback, for the server to be told; and show it on the console. slot: whose end it
    is, if not the slot's that runs: a bank's is 2 + its number. code: the result code, kept where there is no register for it.
    Return whether there is one: dfud's bootloader looks at it."""
    if not isinstance(what, str):
        out = io.StringIO()
        sys.print_exception(what, out)
        what = out.getvalue().rstrip()
    print("dfu:", what)
    if partition(0x40) is None:
        from dfu.idf import keep

        keep(slot, code, what)
        return False
    records.Diagnostics(partition(0x43)).text(running() if slot is None else slot, what)
    return True
