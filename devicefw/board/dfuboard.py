"""A board's start: Wi-Fi, clock, agent, application. What it is told stands in /dfu.json, who it is in NVS. docs/board.md."""

import asyncio
import json
import sys
import time

import dfu

IDENTITY_MAX = 512
FIRST_YEAR = 2024
CLOCK_S, CLOCK_MAX_S = 2, 600
_tasks = []


def settings():
    """Return the agent's configuration and the Wi-Fi's. Raises OSError or ValueError: a board without them is none."""
    import esp32

    with open("/dfu.json") as file:
        found = json.load(file)
    buffer = bytearray(IDENTITY_MAX)
    try:
        size = esp32.NVS("dfud").get_blob("identity", buffer)
    except OSError:
        raise ValueError("NVS holds no identity: flash board.bin, or the nvs image of this board, again")
    found["agent"].update(json.loads(bytes(buffer[:size])))
    for name in ("ca", "pin"):
        if name in found:
            with open(found[name], "rb") as file:
                found["agent"][name] = file.read()
    return found


def join(wifi):
    """Begin to join the Wi-Fi; the port goes on trying by itself. Returns at once: a network that is away is no crash."""
    import network

    station = network.WLAN(network.STA_IF)
    station.active(True)
    station.connect(wifi["ssid"], wifi["password"])


def is_set():
    return time.gmtime()[0] >= FIRST_YEAR


def set_clock(host):
    import ntptime

    ntptime.host = host
    ntptime.settime()


async def clock(host):
    pause_s = CLOCK_S
    while not is_set():
        await asyncio.sleep(pause_s)
        try:
            set_clock(host)
        except Exception as error:
            print("clock:", error)
        pause_s = min(2 * pause_s, CLOCK_MAX_S)


async def main():
    found = settings()
    agent, host = found["agent"], found["ntp"]
    if found.get("wifi"):
        join(found["wifi"])
    if host and agent["url"].startswith("https:"):
        agent["set_clock"] = lambda: set_clock(host)  # before the first certificate is looked at
    running = dfu.start(agent)
    if host:
        _tasks.append(asyncio.create_task(clock(host)))
    from dfu.apprun import run

    if running.apps is None:
        # A board without banks: the application is in the file system.
        sys.path.insert(0, "/app")
        await __import__("main").main()
    elif not await run(running):
        print("dfu: no application")
        while running.trial and running.serves != 2:
            await asyncio.sleep(1)
        # Nobody else says that this MicroPython works: it has reached the server.
        running.confirm()
    # The application has nothing more to do; the agent has.
    while True:
        await asyncio.sleep(3600)


def run():
    dfu.run(main())
