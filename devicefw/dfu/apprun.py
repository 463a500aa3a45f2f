"""The application of a bank, beside the agent: entered, watched, and ended when it does not work."""

import asyncio
import sys

import dfu.agent
from dfu.trial import UNCONFIRMED, feed

STORE0, MARK = 0x60008050, 0xDFA90000  # bootloader/FORMAT.md, "Banks"
_tasks = []


async def run(agent, folder="/app"):
    """Run the application that the agent chose at its start, mounted at `folder`. Returns when its main() does; False: there is none.

    What it raises, a hang and a trial that is over end in a reset, and are counted for its bank.
    """
    banks, config = agent.apps, agent.config
    if banks is None or banks.manifest is None:
        return False
    if banks.state.crashes and not agent.trial:
        # Whatever it does to the board, the agent has had its turn before.
        left_s = config.get("app_pause_s", 300) if banks.paused else config.get("app_first_s", 10)
        while left_s > 0 and (banks.paused or agent.serves != 2):
            await asyncio.sleep_ms(1000)
            left_s -= 1
    mem32 = agent.machine.mem32
    mem32[STORE0] = MARK
    _feed(agent)  # before the first line of the application, which may be its last
    _tasks.append(asyncio.create_task(_watch(agent)))
    try:
        import vfs

        from pack import Pack

        vfs.mount(Pack(banks.running), folder, readonly=True)
        sys.path.insert(0, folder)
        await __import__("main").main()
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise
    except BaseException as error:
        # SystemExit, too: an application that ends itself does not work.
        dfu.agent.fail(dfu.agent.CRASHED, error, agent, True)
    mem32[STORE0] = 0
    return True


def _feed(agent):
    """Have the watchdog reset the chip unless this is called again; return how many ms it waits: less while there is a trial."""
    config = agent.config
    trial = agent.apps.trial or agent.trial
    ms = int((config.get("watchdog_s", 8) if trial else config.get("app_watchdog_s", 60)) * 1000)
    feed(agent.machine, ms)
    return ms


async def _watch(agent):
    """Feed the watchdog, on trial as often as a trial's; give up when a trial's time is over."""
    banks, config = agent.apps, agent.config
    left_ms = int(config.get("confirm_s", 120) * 1000)
    while True:
        step_ms = max(10, min(_feed(agent) // 4, 1000))
        await asyncio.sleep_ms(step_ms)
        if banks.trial:
            left_ms -= step_ms
            if left_ms <= 0:
                dfu.agent.fail(UNCONFIRMED, "not confirmed in time", agent, True)
