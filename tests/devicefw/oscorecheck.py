# Runs on MicroPython: works through the lines of the job's cases with the agent's OSCORE; prints one line of JSON a case.
import binascii
import json
import sys

sys.path.insert(0, sys.argv[1])
from dfu import coapmsg
from dfu.oscore import Context, OscoreError


def unhex(text):
    return binascii.unhexlify(text) if text is not None else None


def text(data):
    return binascii.hexlify(data).decode()


def context(case):
    made = Context(
        unhex(case["secret"]), unhex(case["id_context"]), unhex(case["sender"]), unhex(case["recipient"]), unhex(case["salt"])
    )
    made.sequence = case.get("sequence", 0)
    return made


def run(case):
    c = context(case)
    if case["do"] == "keys":
        return [text(c.sealing.key), text(c.opening.key), text(c.iv)]
    if case["do"] == "protect":
        piv = c.take()
        buf = bytearray(unhex(case["plain"]))
        c.seal(piv, buf, 0)
        return [text(c.option(piv)), text(buf)]
    try:
        message = bytearray(unhex(case["message"]))
        m = coapmsg.parse(message, len(message))
        option = m.first(coapmsg.OSCORE)
        if option is None:
            return ["plain"]
        end, order = c.open(unhex(case["piv"]), option, message, m.start, m.end)
        inside = coapmsg.Message()
        coapmsg.inner(inside, message, m.start + 1, end)
        return [text(message[m.start : end]), order, text(message[inside.start : inside.end])]
    except (OscoreError, coapmsg.FormatError) as error:
        return ["refused", type(error).__name__]


with open(sys.argv[2]) as file:
    for line in file:
        print(json.dumps(run(json.loads(line))))
