"""What the agent does once, at its start. Not kept in RAM."""

import asyncio
import gc
import sys

from dfu.backoff import Backoff
from dfu.errors import clear, forget
from dfu.state import TRIAL


def setup(agent, config):
    """Find out what runs and what came of the last start; make everything that stays."""
    import esp32
    import machine

    agent.config = config
    agent.machine = machine
    agent.serves = False  # or 1 in its tasks, and 2 once the server has answered
    # Collecting early and often keeps the free heap in large pieces: an update needs some of 4 KB.
    gc.collect()
    gc.threshold(config.get("gc_threshold", 8192))
    agent.payload = config.get("payload", 6144)
    # A chunk's header; and a datagram's, which is received where its block belongs.
    agent.buffer = bytearray(agent.payload + 32 + 128)
    from dfu.slots import find
    from dfu.transport import chip_name, hardware_name, make

    agent.slots = find(esp32.Partition)
    agent.backoff = Backoff(config, machine.reset_cause() == machine.PWRON_RESET)
    agent.enrolment = None
    if config.get("claim") and not config.get("secret"):
        from dfu.enrol import Enrolment

        enrolment = Enrolment(config)
        agent.enrolment = enrolment if enrolment.needed else None
    config["hardware"] = hardware_name(config.get("hardware") or chip_name(getattr(sys.implementation, "_machine", "")))
    agent.transport = make(config)
    forget("transport")
    if agent.enrolment is not None and not hasattr(agent.transport, "enrol"):
        raise ValueError("this transport cannot enrol")
    agent.update = agent.tried = None
    from dfu.result import result

    agent.result = result(agent.slots)
    clear("result", "manifest", "slots")
    from dfu.starts import count

    agent.starts = count(agent.slots, agent.result, machine.reset_cause() == machine.WDT_RESET)
    clear("starts", "result", "records", "flash", "idf")
    agent.trial = agent.slots.state.phase == TRIAL and agent.slots.state.slot == agent.slots.slot
    agent.confirmed = asyncio.Event()
    if not agent.trial:
        agent.confirmed.set()
    agent.apps = None
    if esp32.Partition.find(esp32.Partition.TYPE_DATA, 0x46):
        from dfu.apps import find

        find(agent)
        clear("apps", "manifest", "records", "flash")
