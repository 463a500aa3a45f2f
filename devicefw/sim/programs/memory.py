# A lamp that keeps everything it ever saw.
import asyncio

import dfu

CONFIG = {}


async def main():
    dfu.start(CONFIG)
    print("app: running", VERSION)
    seen = []
    while True:
        await asyncio.sleep_ms(0)
        seen.append(bytearray(1000))


dfu.run(main())
