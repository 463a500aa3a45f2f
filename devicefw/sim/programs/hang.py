# A lamp that waits for ever, and lets nobody else run: only the watchdog gets it out.
import asyncio
import time

import dfu

CONFIG = {}


async def main():
    dfu.start(CONFIG)
    print("app: running", VERSION)
    await asyncio.sleep_ms(20)
    while True:
        time.sleep(1)


dfu.run(main())
