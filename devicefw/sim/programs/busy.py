# A lamp that puts updates off while it is being painted, and shows how far one is.
import asyncio
import time
import dfu

CONFIG = {}
BUSY_MS = 1500
_started = time.ticks_ms()


def may_update():
    if time.ticks_diff(time.ticks_ms(), _started) < BUSY_MS:
        return "being painted", 1
    return True


def progress(done, total):
    print("app: progress", done, total)


def self_test():
    print("app: self-test")


async def main():
    CONFIG["may_update"] = may_update
    CONFIG["progress"] = progress
    CONFIG["self_test"] = self_test
    dfu.start(CONFIG)
    print("app: running", VERSION)
    await asyncio.sleep_ms(50)
    dfu.confirm()
    while True:
        await asyncio.sleep(1)


dfu.run(main())
