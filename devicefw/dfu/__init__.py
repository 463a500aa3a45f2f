"""Firmware updates for an application on MicroPython:

    import dfu

    async def main():
        import lamp         # the application's modules: what fails in here is a failed start, and no end of everything
        dfu.start({"url": "http://192.168.1.2:8880", "app": "lamps", "device": "lamp1", "secret": "..."})
        ...                 # the application
        dfu.confirm()       # it works: keep this firmware

    dfu.run(main())

docs/agent.md has the other keys of the configuration, and says which guard an application has.
"""

import asyncio

from dfu.agent import CRASHED, Agent, fail
from dfu.errors import clear, forget

_agent = None
_tasks = []


def start(config, serve=True):
    """Begin to look for updates, in tasks of the running event loop. Returns the agent."""
    global _agent
    if _agent is None:
        _agent = Agent(config)
        if _agent.trial:
            from dfu.trial import watch

            _tasks.append(asyncio.create_task(_guarded(watch(_agent, fail))))
            forget("trial")
    if serve and not _agent.serves:
        _agent.serves = True
        _tasks.append(asyncio.create_task(_guarded(_agent.run())))
    return _agent


async def once(config):
    """For a device that sleeps: look for an update once, bring it in if there is one. Returns in how many seconds to do so again."""
    from dfu.sleep import once

    return await once(start(config, False))


async def _guarded(coroutine):
    try:
        await coroutine
    except Exception as error:
        fail(CRASHED, error, _agent)


def confirm():
    """Keep the running firmware. Without this a new one is left when its time is over."""
    if _agent is not None:
        _agent.confirm()


def _arm(ms):
    # Not in guard(), whose names live as long as the application: they would keep what is given back here.
    if _agent is None:
        from dfu.crash import arm

        arm(ms)
        forget("trial")
        clear("crash", "records", "flash")


def guard(function, start_s=120):
    """Call `function`, which imports the application, sets up what it needs and calls run(). What it raises becomes a crash that the
    server is told of: traceback, reset, retry, roll back. On trial it has so long to come to start(), or the watchdog resets."""
    try:
        _arm(start_s * 1000)
        function()
    except KeyboardInterrupt:
        # Somebody at the console, such as mpremote: that is no hang, so nobody is to reset the chip under their hands.
        from dfu.trial import interrupted

        interrupted()
        raise
    except Exception as error:
        fail(CRASHED, error, _agent)


def run(coroutine, config=None):
    """Run the application in a guard().

    config: start() with it first, for applications that do nothing asynchronous themselves.
    """

    async def main():
        if config is not None:
            start(config)
        await coroutine

    guard(lambda: asyncio.run(main()))
