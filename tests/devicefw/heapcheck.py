# Runs on a 32-bit MicroPython (test_heap32.py): an update by the agent, its chunks from files, and what it takes of the heap.
# A collection takes place when control goes back to JavaScript, so each count waits for one.
import sys

sys.path.insert(0, "/agent")
import chip
import esp32

sys.modules["machine"] = chip
import asyncio, binascii, gc, hashlib, json, random, struct, time

import mviper, zviper  # on a chip machine code, and not in the heap


async def count(what):
    gc.collect()
    await asyncio.sleep_ms(1)
    print("heap", what, gc.mem_alloc())


GO = asyncio.Event()  # nothing sleeps in a circle: each pause leaves 16 bytes behind in this build


class Files:
    def __init__(self, config):
        pass

    async def status(self, message, wait_s, buffer):
        await GO.wait()
        GO.clear()
        with open("/board/command", "rb") as file:
            return file.readinto(buffer)

    async def chunk(self, package, number, buffer):
        with open("/board/chunk%d" % number, "rb") as file:
            return file.readinto(buffer)

    async def close(self):
        pass


TURNS = [0]


async def turn(seconds):
    # A real pause now and then, so that there is something to count; not in every turn, see above.
    TURNS[0] += 1
    if TURNS[0] % 7 == 0:
        await asyncio.sleep_ms(4)  # longer than a count, of which it would else be the garbage


asyncio.sleep = turn
await count("before")
await count("before")
import dfu

await count("imported")
await count("imported")
import dfu.http  # beside the files' transport, which is ours: what most devices have

agent = dfu.start({"app": "pump", "payload": 4112, "transport": Files})
await count("idle")
await count("idle")
GO.set()
slot = agent.slots.idle.info()[4]
for left, suffix in (("left", ""), ("again", "2")):
    while agent.result is None and not (agent.update and agent.update.written):
        await count(("decoding" if agent.update and agent.update.mapped else "waiting") + suffix)
    await count("written" + suffix)
    await count("written" + suffix)
    agent.drop()
    dfu.agent.clear(*dfu.agent.UPDATING)
    await count(left)
    await count(left)
    agent.backoff.good(1)  # as after a confirmation: no pause before the next one
    GO.set()
print("end", agent.result, slot)
