"""What stays of dfu.idf while the agent runs, on a board without dfud's bootloader."""

from dfu.errors import clear

SECTOR = 4096
WATCHDOG_MAX_MS = (1 << 30) - 1  # twelve days: the task watchdog cannot be stopped
settled = []  # Slots.crashes and Slots.flags, once this start is counted


class State:
    """As dfu.state.State. append() also does what goes with a change: it has ESP-IDF boot the other slot, or keep this one.

    part: None, by which this board is told from one with dfud's bootloader. code: the result code of what was left; step: how far a
    change of slots came; lacks: NO_FALLBACK, once that was seen; fed: there is a watchdog that has to be fed for good.
    """

    part, starts, fed = None, 0, False

    def __init__(self, p):
        from dfu.idf import load

        self.p = p
        load(self)

    def said(self, flags):
        """Feed the watchdog, if one was started; return `flags`. Called with each status."""
        if self.fed:
            import machine

            feed(machine, 0)
        return flags

    def append(self, **changes):
        """Write the record with `changes`. Raises OSError: what is booted is then as before."""
        from dfu.idf import append

        try:
            append(self, self.p, changes)
        finally:
            clear("idf")


def feed(machine, ms):
    """As dfu.trial.feed(), with the task watchdog; 0: as long as it can be, for it cannot be stopped."""
    # A second one is the first one with another time.
    machine.WDT(timeout=max(ms, 1000) if ms else WATCHDOG_MAX_MS).feed()


class Part:
    """`sectors` sectors of another partition, from one of its own on."""

    def __init__(self, part, first, sectors):
        self.part, self.first, self.sectors = part, first, sectors

    def readblocks(self, block, buffer, offset=0):
        self.part.readblocks(self.first + block, buffer, offset)

    def writeblocks(self, block, buffer, offset):
        self.part.writeblocks(self.first + block, buffer, offset)

    def ioctl(self, operation, block):
        return self.part.ioctl(operation, self.first + block)

    def info(self):
        return (1, 0x42, 0, self.sectors * SECTOR, "", False)
