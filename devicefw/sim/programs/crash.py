# A lamp whose new feature divides by zero.
import asyncio

import dfu

CONFIG = {}


def brightness(percent, steps):
    return percent // steps


async def main():
    dfu.start(CONFIG)
    print("app: running", VERSION)
    await asyncio.sleep_ms(20)
    print("app: brightness", brightness(80, 0))
    dfu.confirm()


dfu.run(main())
