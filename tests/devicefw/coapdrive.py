# Runs on MicroPython: does the steps of a job with the agent's CoAP client; prints one line of JSON a step, and last its counts.
import asyncio
import binascii
import gc
import hashlib
import json
import sys
from time import ticks_add, ticks_ms

sys.path.insert(0, sys.argv[1])
from dfu.coap import CoapTransport, put
from dfu.coapstatus import listen, send

with open(sys.argv[2]) as _file:
    JOB = json.load(_file)
BUFFER = bytearray(JOB.get("buffer", 6304))
PATH, QUERY, OBSERVE, GET, CONTENT = 11, 15, 6, 1, 0x45


def shown(length):
    data = memoryview(BUFFER)[:length]
    return [length, binascii.hexlify(hashlib.sha256(data).digest()).decode(), binascii.hexlify(bytes(data[:64])).decode()]


def payload_of(what):
    """Hexadecimal text; or a number: so many bytes, made here, where a long text would not fit beside them."""
    if isinstance(what, str):
        return binascii.unhexlify(what)
    data = bytearray(what)
    for i in range(what):
        data[i] = (i * 7 + what) & 0xFF
    return data


async def ask(t, code, path, payload, query=None):
    """Any request to any server: what the other steps are made of."""
    options = []
    for part in path:
        put(options, PATH, part.encode())
    if query:
        put(options, QUERY, query.encode())
    await send(t, code, options, payload_of(payload), memoryview(BUFFER))
    if t.code != CONTENT:
        return [t.code]
    return [t.code] + shown(await t._body(code, options, BUFFER))  # noqa: RUF005  # MicroPython has no other way


async def observe(t, path, count, wait_s):
    options = [(OBSERVE, b"")]
    for part in path:
        put(options, PATH, part.encode())
    await t._ask(GET, options, b"", memoryview(BUFFER))
    deadline = ticks_add(ticks_ms(), wait_s * 1000)
    got = []
    while True:
        got.append(bytes(t.room[t.start : t.end]).decode())
        if len(got) == count or not await listen(t, deadline):
            return got


async def status(t, message, wait_s):
    return shown(await t.status(payload_of(message), wait_s, BUFFER))


async def chunk(t, package, number):
    return shown(await t.chunk(binascii.unhexlify(package), number, BUFFER))


async def close(t):
    await t.close()


STEPS = {"ask": ask, "observe": observe, "status": status, "chunk": chunk, "close": close}


async def main():
    t = CoapTransport(JOB["config"])
    if not JOB.get("auth", True):
        t.auth = None
    for name, *arguments in JOB["steps"]:
        try:
            result = await STEPS[name](t, *arguments)
        except Exception as error:
            result = [type(error).__name__, str(error)]
            if type(error).__name__ not in ("TransportError", "Denied", "Gone"):
                sys.print_exception(error, sys.stderr)
        print(json.dumps(result))
    gc.collect()
    print(json.dumps({"sent": t.sent, "repeated": t.repeated}))


asyncio.run(main())
