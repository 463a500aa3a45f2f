"""The state that bootloader and agent share: bootloader/FORMAT.md. It stays in RAM, what reads and writes it (dfu.flash) does not."""

import struct

CONFIRMED, TRIAL, INSTALL = 0, 1, 2
AGENT = 2


class State:
    """The state log's newest record, as attributes; append() writes it back changed."""

    FIELDS = ("slot", "phase", "crashes", "max_crashes", "previous", "outcome", "reset", "writer", "floor", "accept", "tried")
    FORMAT = "<8BIII"

    def __init__(self, part):
        self.part = part
        from dfu.flash import state_log

        found = state_log(part).newest()
        self.seq = found[0] if found else 0
        values = struct.unpack_from(self.FORMAT, found[2], 8) if found else (0,) * 11
        self.known = found is not None and values[0] < 2 and values[1] <= INSTALL
        self._take(values if self.known else (0,) * 11)

    def _take(self, values):
        for name, value in zip(self.FIELDS, values):
            setattr(self, name, value)
        self.previous, self.starts = self.previous & 1, self.previous >> 1
        # A floor above what was confirmed last would leave nothing to boot.
        self.floor = min(self.floor, self.accept)

    def append(self, **changes):
        """Write the record with `changes`. The starts of a trial go on being counted while slot and phase stay. Raises OSError: the
        record, and what stands here, are then as before.
        """
        values = {name: getattr(self, name) for name in self.FIELDS}
        values.update(changes, writer=AGENT)
        if len(values) != len(self.FIELDS):
            raise ValueError("state: no such field in %r" % changes)
        values["floor"] = min(values["floor"], values["accept"])
        if (values["slot"], values["phase"]) == (self.slot, self.phase):
            values["previous"] |= self.starts << 1
        values = [values[name] for name in self.FIELDS]
        from dfu.flash import state_log

        self.seq = state_log(self.part).append(struct.pack(self.FORMAT, *values), self.seq)
        self._take(values)
        self.known = True
