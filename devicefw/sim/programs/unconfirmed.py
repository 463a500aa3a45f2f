# A lamp that runs, but never finds that it works.
import asyncio

import dfu

CONFIG = {}


async def main():
    dfu.start(CONFIG)
    print("app: running", VERSION)
    while True:
        await asyncio.sleep(1)


dfu.run(main())
