"""Firmware updates for an application on MicroPython:

    import dfu

    async def main():
        dfu.start({"url": "http://192.168.1.2:8880", "app": "lamps", "device": "lamp1", "secret": "..."})
        ...                 # the application
        dfu.confirm()       # it works: keep this firmware

    dfu.run(main())

docs/agent.md has the other keys of the configuration: may_update, progress, self_test, confirm_s, ca, pin.
"""

import asyncio

from dfu.agent import CRASHED, Agent

_agent = None
_tasks = []


def start(config):
    """Begin to look for updates, in tasks of the running event loop. Returns the agent."""
    global _agent
    if _agent is None:
        _agent = Agent(config)
    if not _tasks:
        if _agent.trial:
            _tasks.append(asyncio.create_task(_guarded(_agent._trial())))
        _tasks.append(asyncio.create_task(_guarded(_agent.run())))
    return _agent


async def _guarded(coroutine):
    try:
        await coroutine
    except Exception as error:
        _agent.fail(CRASHED, error)


def confirm():
    """Keep the running firmware. Without this a new one is left when its time is over."""
    if _agent is not None:
        _agent.confirm()


def run(coroutine, config=None):
    """Run the application. What it raises becomes a crash that the server is told of: traceback, reset, retry, roll back.

    config: start() with it first, for applications that do nothing asynchronous themselves.
    """

    async def main():
        if config is not None:
            start(config)
        await coroutine

    try:
        asyncio.run(main())
    except Exception as error:
        if _agent is None:
            raise
        _agent.fail(CRASHED, error)
