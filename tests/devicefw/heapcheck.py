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


class Files:
    def __init__(self, config):
        self.asked = False

    async def status(self, message, wait_s, buffer):
        while self.asked:
            await asyncio.sleep_ms(1000)
        self.asked = True
        with open("/board/command", "rb") as file:
            return file.readinto(buffer)

    async def chunk(self, package, number, buffer):
        with open("/board/chunk%d" % number, "rb") as file:
            return file.readinto(buffer)

    async def close(self):
        pass


asyncio.sleep = lambda seconds: asyncio.sleep_ms(1)  # a real pause between pages, so that there is something to count
await count("before")
await count("before")
import dfu, dfu.http, dfu.mapped, dfu.update, dfu.zstd

await count("code")
await count("code")
agent = dfu.start({"app": "pump", "payload": 4112, "transport": Files})
while agent.result is None and not (agent.update and agent.update.written):
    await count("decoding" if agent.update and agent.update.mapped else "waiting")
await count("written")
print("end", agent.result, agent.slots.idle.info()[4])
