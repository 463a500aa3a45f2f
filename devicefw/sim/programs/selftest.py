# A lamp that finds its own fault.
import asyncio
import dfu

CONFIG = {}


def self_test():
    raise OSError("the lamp does not light")


async def main():
    CONFIG["self_test"] = self_test
    dfu.start(CONFIG)
    print("app: running", VERSION)
    while True:
        await asyncio.sleep(1)


dfu.run(main())
