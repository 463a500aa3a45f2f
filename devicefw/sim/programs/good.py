# A lamp that works: it starts, finds everything in order, and keeps its firmware.
import asyncio

import dfu

CONFIG = {}


async def main():
    dfu.start(CONFIG)
    print("app: running", VERSION)
    await asyncio.sleep_ms(50)
    dfu.confirm()
    print("app: confirmed", VERSION)
    while True:
        await asyncio.sleep(1)


dfu.run(main())
