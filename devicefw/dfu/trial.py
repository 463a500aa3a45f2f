"""An image on trial: the watchdog, the time that it has, and its confirmation. Not kept in RAM.

The RTC watchdog of an ESP32-C3 ends a trial that hangs. The bootloader starts it; ESP-IDF's start-up stops it again. Source: ESP32-C3
TRM, "Low-Power Management", RTC_CNTL_WDT*: CONFIG0, and from there on CONFIG1, FEED and PROTECT.
"""

import asyncio

from dfu.backoff import BEGUN
from dfu.errors import SELF_TEST, forget
from dfu.state import CONFIRMED

WDT = 0x60008090
SLOW_CLOCK_KHZ = 136
UNCONFIRMED = 2


def feed(machine, ms):
    """Have the watchdog reset the chip after `ms` without this being called again; 0 stops it."""
    mem32 = machine.mem32
    mem32[WDT + 0x18] = 0x50D83AA1
    if ms:
        # The chip counts two cycles of the slow clock as one (ESP-IDF, rwdt_ll_config_stage).
        mem32[WDT + 4] = ms * SLOW_CLOCK_KHZ // 2
        mem32[WDT] = 1 << 31 | 3 << 28 | 7 << 16 | 7 << 13
        mem32[WDT + 0x14] = 1 << 31
    else:
        mem32[WDT] = 0
    mem32[WDT + 0x18] = 0


def feeder(ours):
    """Return what is called as feed() is. ours: the bootloader is dfud's."""
    if ours:
        return feed
    from dfu.idf import feed as other

    return other


def interrupted():
    """Somebody is at the console: the watchdog does not reset the chip under their hands."""
    import machine

    from dfu.crash import partition

    if partition(0x40) is not None:
        feed(machine, 0)
    else:
        from dfu.idf import trial

        if trial():
            feeder(False)(machine, 0)
    forget("trial")


async def watch(agent, fail):
    """Feed the watchdog until the image is confirmed; give up when its time is over."""
    left_ms = int(agent.config.get("confirm_s", 120) * 1000)
    watchdog_ms = int(agent.config.get("watchdog_s", 8) * 1000)
    test = agent.config.get("self_test")
    feed = feeder(agent.slots.state.part is not None)
    feed(agent.machine, watchdog_ms)
    if test is not None:
        try:
            test()
        except Exception as error:
            fail(SELF_TEST, error, agent)
    step_ms = max(10, min(watchdog_ms // 4, 1000))
    while not agent.confirmed.is_set():
        if left_ms <= 0:
            fail(UNCONFIRMED, "not confirmed in time", agent)
        await asyncio.sleep_ms(step_ms)
        left_ms -= step_ms
        if agent.trial:
            feed(agent.machine, watchdog_ms)


def confirm(agent):
    """Keep the image. Raises OSError if flash does not take it: the trial goes on then. Without a trial its crashes are forgotten."""
    m, state = agent.slots.manifest, agent.slots.state
    if not agent.trial:
        try:
            state.append(crashes=0)
        except OSError as error:
            print("dfu: flash:", error)  # good firmware goes on, its crashes stay counted
        return
    state.append(**confirmed(state, m))
    agent.trial = False
    agent.backoff.good(BEGUN)
    feed = feeder(state.part is not None)
    feed(agent.machine, 0)


def confirmed(state, m):
    """Return what changes in the record when an image is confirmed. m: its manifest, or None."""
    # Bit 0 of `previous` is the fallback's; behind it the bootloader counts the starts of a trial (bootloader/FORMAT.md).
    changes = {"phase": CONFIRMED, "crashes": 0, "outcome": 1, "tried": 0, "previous": state.previous & 1}
    if m is not None:
        changes["floor"] = min(max(state.floor, m.floor), m.sequence)
        changes["accept"] = m.sequence
    return changes

