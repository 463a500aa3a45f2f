"""A server that sends everything that is wrong: types, sizes, depths, truncations, hang-ups, stalls, replays, wrong chunks."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import trio

from bootloader.sim.images import key, key_id
from dfud.wire.manifest import SIGNATURE_CONTEXT
from dfud.wire.subset import encode
from tests.security.hostile import Offer

STALLS = 0.015  # of all answers
GIVES_UP_S = 60.0  # a device waits longer for nothing
INTERESTING = (0, 1, 2, 5, 6, 31, 32, 63, 255, 256, 4095, 4096, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 53, (1 << 64) - 1)


def loose(value: Any) -> bytes:
    """Encode as msgpack, also what the subset has not: negative numbers, floats, extensions; bytes in a tuple go out as they are."""
    if isinstance(value, tuple):
        return b"".join(value)
    if isinstance(value, bool) or value is None or isinstance(value, bytes | str) or (isinstance(value, int) and value >= 0):
        return encode(value)
    if isinstance(value, int):
        return b"\xd3" + value.to_bytes(8, "big", signed=True)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, list):
        return b"\xdc" + struct.pack(">H", len(value)) + b"".join(map(loose, value))
    return b"\xde" + struct.pack(">H", len(value)) + b"".join(loose(k) + loose(v) for k, v in value.items())


def odd(rng: random.Random, depth: int = 0) -> Any:
    """Return a value of any type."""
    kind = rng.randrange(14 if depth < 4 else 11)
    simple: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice(INTERESTING),
        lambda: -rng.choice(INTERESTING[:12]) - 1,
        lambda: rng.random() * 1e300,
        lambda: rng.randbytes(rng.choice((0, 1, 8, 16, 31, 32, 33, 64, 300))),
        lambda: "ä\n" * rng.choice((0, 1, 16, 60, 400)),
        lambda: (b"\xc7\x03\x01abc",),  # an extension
        lambda: (rng.choice((b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff")),),
        lambda: (b"\x91" * rng.choice((5, 6, 500, 4000)),),
        lambda: (b"\x90" * rng.choice((1, 100)),),
    ]
    if kind < 11:
        return simple[kind]()
    if kind == 11:
        return [odd(rng, depth + 1) for _ in range(rng.randrange(5))]
    if kind == 12:
        return {rng.choice((rng.randrange(12), "a", b"k", -1, None, 1.5)): odd(rng, depth + 1) for _ in range(rng.randrange(5))}
    return [rng.randrange(256)] * rng.choice((16, 1000, 1500))


def flipped(rng: random.Random, data: bytes) -> bytes:
    """Return the bytes changed, cut short or lengthened."""
    out = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 8))):
        out[rng.randrange(len(out))] = rng.randrange(256)
    kind = rng.randrange(4)
    if kind == 0:
        del out[rng.randrange(len(out) + 1) :]
    elif kind == 1:
        out += rng.randbytes(rng.choice((1, 40, 4000)))
    return bytes(out)


@dataclass
class Sent:
    """An answer: HTTP's status or its like in CoAP, and whether it is marked as a command."""

    body: bytes
    status: int = 200
    command: bool = True


@dataclass
class Mutator:
    """Says what to answer. `foreign` are signed envelopes that this device may not install; `genuine` is the update that it may, once
    the publisher's signature is in the server's hands: then the last of its chunks is never sent right."""

    rng: random.Random
    foreign: list[bytes]
    genuine: Offer
    signed: bool = False
    honest: bool = False
    enrols: bool = False
    asked: dict[str, int] = field(default_factory=dict)
    _last: bytes = b""

    def count(self, what: str) -> None:
        self.asked[what] = self.asked.get(what, 0) + 1

    def stalls(self) -> bool:
        """Say whether to answer in part, or not at all, and to go on with nothing for as long as the device waits."""
        if self.honest or self.rng.random() > STALLS:
            return False
        self.count("stall")
        return True

    def enrol(self) -> Sent:
        """Answer a claim code: not with a yes, before `enrols`."""
        if self.enrols:
            return Sent(b"", command=False)
        self.count("enrol")
        rng = self.rng
        body = rng.choice((b"", loose(odd(rng)), rng.randbytes(rng.choice((1, 100, 6000, 7000)))))
        return Sent(body, rng.choice((202, 204, 301, 400, 401, 403, 404, 409, 429, 500, 503, 999)), rng.random() < 0.5)

    def command(self) -> Sent:
        """Answer a status."""
        if self.honest:
            return Sent(self.genuine.command())
        self.count("command")
        rng = self.rng
        kind = rng.randrange(10)
        if kind == 0:
            body = loose(odd(rng))
        elif kind == 1:
            body = flipped(rng, self._last or self.genuine_fields()[1])
        elif kind == 2:
            poll = odd(rng) if rng.random() < 0.5 else rng.choice((0, 1, 6, 60))
            body = loose({0: rng.choice((0, 1, 3, 7, odd(rng))), 1: poll if rng.random() < 0.3 else rng.choice((6, 60, odd(rng)))})
        elif kind == 3 and self.signed:
            body = self.genuine.command()
        else:
            body = self.genuine_fields()[1]
        self._last = body
        status = 200 if rng.random() < 0.85 else rng.choice((202, 400, 403, 404, 429, 500, 999))
        return Sent(body, status, rng.random() < 0.9)

    def genuine_fields(self) -> tuple[dict[Any, Any], bytes]:
        """Return an update command in which something is wrong, as a map and as bytes."""
        rng, offer = self.rng, self.genuine
        command: dict[Any, Any] = {0: 2, 1: 0, 2: "9.9", 3: self.envelope(), 4: offer.id, 5: rng.choice((1, 2, 3))}
        command |= {6: len(offer.image), 7: len(offer.sent), 8: sum(map(len, offer.sent)), 9: rng.randbytes(32)}
        for _ in range(rng.choice((0, 1, 1, 2))):
            command[rng.choice([*command, 12, "x"])] = odd(rng)
        for _ in range(rng.choice((0, 0, 1))):
            command.pop(rng.choice(list(command)))
        return command, loose(command)

    def envelope(self) -> Any:
        """Return an envelope that this device may not take; a genuine one only when the server has it, with a wrong package."""
        rng = self.rng
        kind = rng.randrange(8)
        if kind == 0:
            return odd(rng)
        if kind == 1:
            return loose(odd(rng))
        if kind == 2:
            return loose([odd(rng) for _ in range(rng.choice((1, 2, 3, 3, 3, 4)))])
        if kind == 3:
            return rng.choice(self.foreign)
        if kind == 4:
            return flipped(rng, rng.choice(self.foreign))
        if kind == 5 and self.signed:
            return self.genuine.envelope
        manifest: Any = {0: 1, 1: "lamps", 2: "9.9", 3: "esp32c3", 4: 9, 5: len(self.genuine.image), 6: rng.randbytes(32), 7: 0, 8: 0}
        for _ in range(rng.choice((0, 1, 2))):
            manifest[rng.choice(list(manifest))] = odd(rng)
        manifest = manifest if rng.random() < 0.8 else list(manifest.values())
        raw = loose(manifest)
        # By a key of the thief's own, whatever name he gives it; or by nobody.
        name = key_id(key(rng.choice((1, 2))))
        return loose([raw, *rng.choice(((name, key(2).sign(SIGNATURE_CONTEXT + raw)), (b"", b""), (name, rng.randbytes(64))))])

    def chunk(self, number: int) -> Sent:
        offer = self.genuine
        if self.honest:
            return Sent(offer.sent[number], 200 if number < len(offer.sent) else 404)
        self.count("chunk")
        rng = self.rng
        right = offer.sent[number] if number < len(offer.sent) else b"\x95"
        last = number >= len(offer.sent) - 1
        kind = rng.randrange(12)
        if kind < 5 and not last:
            return Sent(right)
        if kind == 5:
            return Sent(rng.choice(offer.sent[:-1]))
        if kind == 6:
            return Sent(loose([odd(rng), *(rng.choice(INTERESTING) for _ in range(3)), right[-200:]]))
        if kind == 7:
            return Sent(b"", rng.choice((404, 403, 500, 202)))
        if kind == 8:
            return Sent(loose(odd(rng)))
        if kind == 9:
            return Sent(rng.randbytes(rng.choice((0, 1, 100, 6000, 7000))))
        wrong = flipped(rng, right)
        return Sent(wrong if wrong != right else right[:-1])


class HttpServer:
    """Gives `mutator`'s answers over HTTP, and is wrong there, too. `held`: how it let devices wait until they hung up."""

    def __init__(self, mutator: Mutator, stall_s: float = 0.05) -> None:
        self.mutator, self.stall_s = mutator, stall_s
        self.held: dict[str, int] = {}

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, stream: trio.SocketStream) -> None:
        data = b""
        try:
            while True:
                while b"\r\n\r\n" not in data:
                    more = await stream.receive_some(65536)
                    if not more:
                        return
                    data += more
                head, data = data.split(b"\r\n\r\n", 1)
                length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
                while len(data) < length:
                    more = await stream.receive_some(65536)
                    if not more:
                        return
                    data += more
                data = data[length:]
                path = head.split(b" ", 2)[1].decode()
                if not await self._answer(stream, path):
                    await stream.aclose()
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _answer(self, stream: trio.SocketStream, path: str) -> bool:
        """Answer one request; return whether the connection goes on."""
        mutator = self.mutator
        parts = path.split("?")[0].strip("/").split("/")
        answers = {"enrol": mutator.enrol, "dfu": mutator.command}
        sent = mutator.chunk(int(parts[3])) if len(parts) == 4 else answers[parts[1]]()
        mark = b"command: dfu\r\n" if sent.command else b""
        right = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%s\r\n" % (sent.status, len(sent.body), mark) + sent.body
        rng, stated = mutator.rng, b"%d\r\n" % len(sent.body)
        if mutator.stalls():
            await self._hold(stream, right)
            return False
        if mutator.honest or rng.random() < 0.7:
            await stream.send_all(right)
            return True
        wrong = [
            b"",
            right[: rng.randrange(len(right))],
            flipped(rng, right[:60]) + right[60:],
            right.replace(stated, rng.choice((b"-1", b"-5", b"1e9", b"\xff", b"", b"99999999999999999999")) + b"\r\n", 1),
            right.replace(stated, b"%d\r\n" % rng.randrange(8000), 1),
            b"HTTP/1.1 %d X\r\n" % sent.status + b"a: b\r\n" * rng.choice((63, 64, 1000)) + right[16:],
            b"HTTP/1.1 %d X\r\na: " % sent.status + b"x" * rng.choice((2000, 100_000)) + b"\r\n\r\n",
            b"x" * rng.choice((100, 100_000)),
            b"HTTP/1.1 100 Continue\r\n\r\n" + right,
            right + right,
            right.replace(b"\r\n", b"\n"),
            b"HTTP/1.1 " + rng.choice((b"", b"2 00", b"two", b"-200", b"200" * 30)) + b"\r\n\r\n",
            b"\x16\x03\x01\x00\xff" + rng.randbytes(50),
        ]
        for piece in rng.choice(([rng.choice(wrong)], [right[:30], right[30:]])):
            await stream.send_all(piece)
            if rng.random() < 0.2:
                await trio.sleep(self.stall_s)
        return rng.random() < 0.3

    async def _hold(self, stream: trio.SocketStream, answer: bytes) -> None:
        """Send a part of the answer, or byte by byte without an end, until the device has enough of it."""
        rng, head = self.mutator.rng, answer.index(b"\r\n\r\n") + 4
        how = rng.choice(("nothing", "half a head", "half a body", "drops"))
        parts = {"nothing": 0, "half a head": rng.randrange(head), "half a body": rng.randrange(head, len(answer) + 1), "drops": 15}
        if how == "half a body" and parts[how] == len(answer):
            answer = answer.replace(b"Content-Length: ", b"Content-Length: 1", 1)
        with trio.move_on_after(GIVES_UP_S) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._part, stream, answer[: parts[how]], how == "drops")
                with suppress(trio.BrokenResourceError):
                    while await stream.receive_some(65536):
                        pass
                nursery.cancel_scope.cancel()
        if patience.cancelled_caught:
            raise AssertionError(f"the device still waits after {GIVES_UP_S} s: {how}")
        self.held[how] = self.held.get(how, 0) + 1

    async def _part(self, stream: trio.SocketStream, data: bytes, endless: bool) -> None:
        """Send this; then, if it has no end, headers, a byte at a time."""
        with suppress(trio.BrokenResourceError):
            await stream.send_all(data)
            for byte in itertools.cycle(b"\r\nx: y") if endless else ():
                await stream.send_all(bytes([byte]))
                await trio.sleep(self.stall_s)
