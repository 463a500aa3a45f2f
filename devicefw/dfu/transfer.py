"""An update in the agent's loop: begun, fetched chunk by chunk, left. Not kept in RAM while there is none."""

import asyncio
import gc
from random import getrandbits

from dfu.backoff import ANSWER, BEGUN
from dfu.errors import clear
from dfu.update import Update


async def serve(agent, command, raw):
    """Do what the update command says; return 0: ask at once."""
    if agent.update is None or agent.update.raw != raw:
        agent.drop(False)
        left_ms = agent.backoff.left_ms()
        if left_ms:
            await asyncio.sleep_ms(min(left_ms, 60000))
            return 0
        await begin(agent, command, raw)
        command.clear()
        progress(agent)
    elif agent.update.written:
        # Nothing is decoded any more, and what is called now may need room.
        agent.update.decoder = agent.update.mapped = None
        clear("zstd", "mapped", "chunk")
        await agent.update.switch()
        await agent.close()
        agent.machine.reset()
    await fetch(agent)
    return 0


async def begin(agent, command, raw):
    """Begin the update that a command asks for. Raises UpdateError; before it is judged nothing is written."""
    agent.tried = None
    update = Update(command, raw, agent.slots, agent.config, agent.buffer)
    agent.tried = update.manifest.sha256
    if hasattr(agent.transport, "rest"):
        agent.transport.rest()  # verifying a signature takes what there is
    await update.judge()
    await update.find()
    if not update.resumed:
        # Counted before the first byte, so that no way of ending is forgotten; only a confirmation takes it back.
        agent.backoff.failed(BEGUN)
        agent.backoff.hold()
    agent.update = update
    await update.begin()


async def fetch(agent):
    """Fetch until the image is whole, telling the server now and then."""
    update = agent.update
    since = 0
    while update is not None and not update.written:
        gc.collect()
        await update.fetch(agent.transport)
        agent.backoff.good(ANSWER)
        progress(agent)
        since += 1
        if since % 16 == 0 and agent.may_update() is not None:
            return


def progress(agent):
    tell = agent.config.get("progress")
    if tell is not None and agent.update is not None:
        try:
            tell(agent.update.next, agent.update.chunks)
        except Exception as error:
            print("dfu: progress:", error)


def failed(agent, code, text):
    """Remember that an update cannot be done, for the next status: the one under way, or one that was refused."""
    agent.drop()
    # Of a manifest that cannot be read nothing is known. The number is above all that dfu.starts gives.
    number = 1 << 29 | getrandbits(29)
    agent.result = {0: 3, 1: agent.tried or bytes(32), 2: code, 3: text, 4: 0, 5: 0, 6: b"", 7: number}
