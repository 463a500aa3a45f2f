# Runs on MicroPython: works through the lines of the job's cases with the agent's OSCORE; prints one line of JSON a case.
import binascii
import json
import sys

sys.path.insert(0, sys.argv[1])
from dfu.coap import read
from dfu.oscore import Context
from dfu.oscorekeys import derive


def unhex(text):
    return binascii.unhexlify(text) if text is not None else None


def text(data):
    return binascii.hexlify(data).decode()


def keys(case):
    return derive(*[unhex(case[k]) for k in ("secret", "salt", "id_context", "sender", "recipient")])


def run(case):
    if case["do"] == "keys":
        return [text(key) for key in keys(case)]
    c = Context(keys(case), unhex(case["id_context"]), case.get("sequence", 0), unhex(case["sender"]), unhex(case["recipient"]))
    if case["do"] == "protect":
        piv = c.take()
        buf = bytearray(unhex(case["plain"]))
        c.seal(piv, buf, 0)
        return [text(c.option(piv)), text(buf)]
    message = bytearray(unhex(case["message"]))
    try:
        options, start = read(message, 4 + (message[0] & 15), len(message))
    except (ValueError, IndexError):
        return ["refused", "format"]
    option = [value for number, value in options if number == 9]
    if not option:
        return ["plain"]
    opened = c.open(unhex(case["piv"]), option[0], message, start, len(message))
    if opened is None:
        return ["refused", "oscore"]
    end, order = opened
    try:
        _, payload = read(message, start + 1, end)
    except (ValueError, IndexError):
        return ["refused", "inside"]
    return [text(message[start:end]), order, text(message[payload:end])]


with open(sys.argv[2]) as file:
    for line in file:
        print(json.dumps(run(json.loads(line))))
