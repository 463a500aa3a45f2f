"""The partitions, the running image and the state log, as they are found at a start. Not kept in RAM."""

from dfu import flash, records
from dfu.errors import clear, forget
from dfu.manifest import stored
from dfu.state import State


class Slots:
    """`slot` runs, in `running`, an image of `running_size` bytes with this `digest`; `idle` is written, `size` bytes long, `capacity` of
    them for an image. `manifest` is the running image's, None if it has none that can be read. `state` is a
    dfu.state.State; `diagnostics`, `stage` and `trusted` are partitions, `room` is the buffers of the decoder (dfu.room). `apps`: the same
    of the app banks, a dfu.banks.Banks, or None; `crashes`: how many came before this start.

    Without dfud's bootloader `state` is a dfu.idfstate.State, its `part` is None, and so is `diagnostics`; `flags`: what is weaker then."""

    apps, crashes, flags = None, 0, 0


def find(partition):
    """Return the Slots. partition: esp32.Partition."""
    found, p = Slots(), partition

    def data(subtype):
        return p.find(p.TYPE_DATA, subtype)[0]

    from dfu.room import make

    found.room = make()
    forget("room")
    if p.find(p.TYPE_DATA, 0x40):
        found.running = p(p.RUNNING)
        found.slot = 1 if found.running.info()[4] == "ota_1" else 0
        found.idle = p.find(p.TYPE_APP, 0x10 + 1 - found.slot)[0]
        found.size = found.idle.info()[3]
        found.capacity = found.size - flash.SECTOR
        found.stage, found.trusted, found.diagnostics = data(0x42), data(0x41), data(0x43)
        found.state = State(data(0x40))
        if not found.state.known:
            found.state.slot = found.slot
    else:
        from dfu.idf import begin

        begin(found, p)
        clear("idf")
    m = found.manifest = stored(flash.envelope_of(found.running, found.running.info()[3]))
    if m is not None:
        m.signed = m.key = m.signature = None
    found.running_size = m.size if m is not None else records.image_size(found.running)
    found.app_version = records.app_version(found.running)
    found.digest = flash.digest(found.running, found.running_size, found.room[-1])
    return found
