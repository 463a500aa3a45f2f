"""Statuses over CoAP: dfu.coap's requests in their order. Apart from it because chunks are fetched without this, and need the RAM.

`t` is the CoapTransport.
"""

import asyncio
import os
from time import ticks_add, ticks_diff, ticks_ms

from dfu.coap import put
from dfu.errors import PackError, TransportError
from dfu.pack import field, unpack
from micropython import const

_BODY_TRIES = const(2)
_POST, _FETCH, _CONTINUE, _INCOMPLETE, _TOO_LARGE = const(2), const(5), const(0x5F), const(0x88), const(0x8D)
_OBSERVE, _PATH, _BLOCK2, _BLOCK1, _TAG, _COMMAND = const(6), const(11), const(23), const(27), const(292), const(4210)
_ANSWER = const(1)

# Commands that are nothing to do, and how soon the agent itself asks again.
_WAIT, _SYNC, _SOON_S, _POLL_MAX_S = const(0), const(1), const(5), const(86400)


async def send(t, code, options, payload, room):
    """Send a payload of any length: in blocks, if it is longer than one."""
    exponent = t.exponent
    if len(payload) <= 16 << exponent:
        return await t._ask(code, options, payload, room)
    for _ in range(_BODY_TRIES):
        # A tag for each body, so that blocks of two are never put together (RFC 9175, section 3).
        tag, at, more = os.urandom(4), 0, True
        while more:
            size = 16 << exponent
            more = at + size < len(payload)
            blocked = list(options)
            put(blocked, _BLOCK1, at >> exponent + 4 << 4 | more << 3 | exponent)
            put(blocked, _TAG, tag)
            await t._ask(code, blocked, payload[at : at + size], room)
            at += size
            exponent = min(exponent, t._block(_BLOCK1)[2])
            if t.code != _CONTINUE:
                break
        if t.code not in (_INCOMPLETE, _TOO_LARGE):
            return


async def status(t, message, wait_s, buffer):
    code = _FETCH if wait_s and len(message) <= 16 << t.exponent else _POST
    plain = [(_PATH, b"v1"), (_PATH, b"dfu")]
    options = list(plain)
    if t.exponent < 6:
        put(options, _BLOCK2, t.exponent)
    room = memoryview(buffer)
    if code == _POST:
        await send(t, code, options, message, room)
        t._check()
        return await t._body(code, plain, buffer) if t.first(_COMMAND, t.options) == b"dfu" else 0
    deadline = ticks_add(ticks_ms(), wait_s * 1000)
    put(options, _OBSERVE, b"")
    # The same token again, so that the server has one registration of ours and not one more.
    token, t.observing = t.observing, None
    await t._ask(code, options, message, room, token)
    t.observing = t.token
    while True:
        t._check()
        following = t.first(_OBSERVE, t.options) is not None
        if t.first(_COMMAND, t.options) == b"dfu":
            t.kept, held = t.token, (t.piv, t.order, t.since)
            try:
                length = await t._body(code, plain, buffer)
            finally:
                t.token, t.kept = t.kept, None
            t.piv, t.order, t.since = held
            t.room = room
            # Over HTTP the server holds its answer until it is news. Here the first one comes at once, even if it says what the
            # last one said; with that the agent would ask again without end.
            idle = idle_of(buffer, length)
            if idle is None or idle != t.told:
                t.told = idle
                return length
            if idle[0] == _WAIT and ticks_diff(ticks_add(ticks_ms(), idle[1] * 1000), deadline) < 0:
                deadline = ticks_add(ticks_ms(), idle[1] * 1000)
        if not following:
            await asyncio.sleep_ms(max(0, ticks_diff(deadline, ticks_ms())))
            return 0
        if not await listen(t, deadline):
            return 0


async def listen(t, deadline):
    """Wait for another answer to the last request; return whether one came in time."""
    try:
        while True:
            length = await t._receive(deadline)
            if not length:
                return False
            if t._heard(length, False) == _ANSWER:
                return True
    except OSError as error:
        raise TransportError("coap: %s" % error)


def idle_of(buffer, length):
    """Return (type, seconds, bytes) of a command that asks for nothing, or None. What cannot be read is for the agent to refuse."""
    if length > 256:
        return None
    raw = bytes(memoryview(buffer)[:length])
    try:
        command = unpack(raw)
        kind, poll_s = field(command, 0, int, _SYNC), field(command, 1, int, _POLL_MAX_S, 0, 60)
        return (kind, poll_s, raw) if poll_s > _SOON_S else None
    except PackError:
        return None
