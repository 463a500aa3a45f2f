# An oven whose user is asked before an update, and says no as long as something is in it.
import asyncio
import dfu

CONFIG = {}


def may_update():
    return "something is in the oven", 1


async def main():
    CONFIG["may_update"] = may_update
    dfu.start(CONFIG)
    print("app: running", VERSION)
    await asyncio.sleep_ms(50)
    dfu.confirm()
    while True:
        await asyncio.sleep(1)


dfu.run(main())
