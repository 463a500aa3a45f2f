"""The agent's CoAP client against answers that are late, twice, out of order, wrong or forged; and against rubbish."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import aiocoap
import pytest
import trio
from aiocoap import ACK, CHANGED, CON, CONTENT, NON, RST, Code, Message
from aiocoap.optiontypes import OpaqueOption

from devicefw.sim.compile import agent_modules
from tests.devicefw.coapside import HERE, adrive, job
from tests.devicefw.test_oscore_client import Server as Oscore
from tests.devicefw.test_oscore_client import decoded
from tests.real_parts import require

PACKAGE = "00" * 16
DATA = bytes(range(256)) * 9 + b"end"


def raw(
    request: Message | None, payload: bytes = b"", *, code: Code = CONTENT, mtype: Any = ACK, mid: int | None = None, **options: Any
) -> bytes:
    """A message as bytes; with the request's message ID and token, if not said otherwise."""
    command = options.pop("command", False)
    token = options.pop("token", request.token if request is not None else b"")
    message = Message(code=code, payload=payload, **options)
    message.mtype, message.token = mtype, token
    message.mid = mid if mid is not None else request.mid if request is not None else 0
    if command:
        message.opt.add_option(OpaqueOption(aiocoap.OptionNumber(4210), b"dfu"))
    return bytes(message.encode())


class Script:
    """A server that says what `answer` gives for each message. `got` is what came in."""

    def __init__(self, answer: Callable[[Message], list[bytes]]) -> None:
        self.answer = answer
        self.got: list[Message] = []

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            task_status.started(sock.getsockname()[1])
            while True:
                data, peer = await sock.recvfrom(2000)
                message = decoded(data)
                self.got.append(message)
                for one in self.answer(message):
                    await sock.sendto(one, peer)

    def empties(self, kind: Any) -> list[int]:
        return [m.mid for m in self.got if m.code == aiocoap.EMPTY and m.mtype == kind]


async def played(
    tmp_path: Path, answer: Callable[[Message], list[bytes]], *steps: list[Any], **config: Any
) -> tuple[list[Any], Script]:
    require("micropython")
    script = Script(answer)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(script.run)
        # Long enough on a busy machine that nothing is sent twice.
        results, _ = await adrive(tmp_path, job(f"127.0.0.1:{port}", *steps, **{"ack_timeout_ms": 5000, "block": 1024, **config}))
        nursery.cancel_scope.cancel()
    return results, script


def block(request: Message, *, shift: int = 0, etag: bytes = b"\x01", more: bool | None = None, **options: Any) -> bytes:
    """The block of DATA that a request asks for; or, wrong by intention, another."""
    number = request.opt.block2.block_number if request.opt.block2 is not None else 0
    part = DATA[number * 1024 : (number + 1) * 1024]
    follows = len(DATA) > (number + 1) * 1024 if more is None else more
    return raw(request, part, block2=(number + shift, follows, 6), etag=etag, **options)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda m: block(m, shift=1), "block 1 of 1024 bytes at 0"),
        (lambda m: block(m, shift=int(m.opt.block2.block_number == 1)), "block 2 of 1024 bytes at 1024"),
        (lambda m: block(m, etag=bytes([m.opt.block2.block_number])), "it changed between two blocks"),
        (lambda m: raw(m, b"short", block2=(0, True, 6)), "block 0 of 5 bytes at 0"),
        (lambda m: block(m, more=True), "block 2 of 259 bytes at 2048"),
        (lambda m: raw(m, b"x", size2=99999, block2=(0, True, 0)), "block 0 of 1 bytes at 0"),
        (lambda m: raw(m, bytes(16), size2=99999, block2=(0, True, 0)), "the answer is larger than the buffer"),
        (lambda m: raw(m, bytes(1024), block2=(m.opt.block2.block_number, True, 6)), "the answer is larger than the buffer"),
        (lambda m: raw(m, b"x", code=Code.SERVICE_UNAVAILABLE), "status 5.03"),
        (lambda m: raw(None, mtype=RST, code=aiocoap.EMPTY, mid=m.mid), "reset"),
    ],
)
async def test_blocks_that_do_not_fit_are_refused(tmp_path: Path, wrong: Callable[[Message], bytes], text: str) -> None:
    results, _ = await played(tmp_path, lambda m: [wrong(m)], ["chunk", PACKAGE, 0])
    assert results == [["TransportError", text]]


async def test_an_answer_that_comes_late_and_twice_is_acknowledged_twice_and_taken_once(tmp_path: Path) -> None:
    def answer(m: Message) -> list[bytes]:
        if m.code != aiocoap.POST:
            return []
        separate = raw(m, m.payload * 2, mtype=CON, mid=700 + len(m.payload), command=True)
        if m.payload == b"a":
            return [separate, separate]  # the empty acknowledgement was lost
        return [raw(None, mtype=ACK, code=aiocoap.EMPTY, mid=m.mid), raw(m, code=CHANGED, mtype=ACK, mid=m.mid ^ 1), separate]

    results, script = await played(tmp_path, answer, ["status", "61", 0], ["status", "6262", 0], ["status", "636363", 0])
    assert [r[2] for r in results[:2]] == ["6161", "62626262"]
    assert script.empties(ACK)[:3] == [701, 701, 702]


async def test_what_nobody_asked_for_is_reset(tmp_path: Path) -> None:
    def answer(m: Message) -> list[bytes]:
        if m.code != aiocoap.POST:
            return []
        return [
            raw(m, b"?", mtype=CON, mid=1, token=b"else"),
            raw(None, mtype=CON, code=aiocoap.EMPTY, mid=2),
            raw(m, mtype=CON, code=aiocoap.GET, mid=3),
            b"\x44\x45\x00\x04" + m.token + b"\xf0",
            raw(m, b"?", mtype=NON, mid=5, token=b"else", observe=3),
            b"\x80\x45\x00\x06",
            b"\x4f\x45\x00\x07",
            raw(m, code=CHANGED),
        ]

    # The second one is there to be read behind what the client says to the first.
    results, script = await played(tmp_path, answer, ["status", "61", 0], ["status", "62", 0])
    assert [r[0] for r in results] == [0, 0]
    assert script.empties(RST)[:6] == [1, 2, 3, 4, 5, 7], "another version of CoAP is not even that"


async def test_a_flood_of_rubbish_changes_nothing(tmp_path: Path) -> None:
    seed = 4
    random = Random(seed)

    def answer(m: Message) -> list[bytes]:
        if m.code != aiocoap.GET:
            return []
        right = block(m)
        wrong = []
        for _ in range(20):
            other = bytearray(random.choice((right, random.randbytes(40))))
            # Another message ID or token: what a stranger can send who does not hear us.
            other[2:8] = random.randbytes(6)
            other[random.randrange(8, len(other))] ^= 1 << random.randrange(8)
            wrong.append(bytes(other))
        return [*wrong, right, *wrong]

    results, _ = await played(tmp_path, answer, ["chunk", PACKAGE, 0], ["chunk", PACKAGE, 1])
    assert [r[0] for r in results] == [len(DATA), len(DATA)], f"seed {seed}"
    assert results[0] == results[1]


async def test_of_notifications_out_of_order_the_newest_counts(tmp_path: Path) -> None:
    def answer(m: Message) -> list[bytes]:
        if m.code != aiocoap.FETCH:
            return [raw(m, code=CHANGED)] if m.code == aiocoap.POST else []
        old = raw(m, b"\x81\x00", mtype=CON, mid=9, observe=9, command=True)
        new = raw(m, b"\x81\x03", mtype=CON, mid=11, observe=0x800, command=True)
        return [raw(m, observe=10), old, new]

    results, script = await played(tmp_path, answer, ["status", "61", 600], ["status", "62", 0])
    assert results[0][2] == "8103"
    assert script.empties(ACK)[:2] == [9, 11]


async def test_an_answer_that_says_what_the_last_one_said_is_waited_behind(tmp_path: Path) -> None:
    """Sync, over and over: the device must not ask in a circle."""
    sync = b"\x82\x00\x01\x01\x3c"

    def answer(m: Message) -> list[bytes]:
        return [raw(m, sync, observe=1, command=True)] if m.code == aiocoap.FETCH else []

    results, script = await played(tmp_path, answer, ["status", "61", 600], ["status", "61", 1])
    assert [r[0] for r in results] == [len(sync), 0]
    assert len({m.token for m in script.got}) == 1, "one registration, renewed"


class Protected:
    """dfud's end of OSCORE: every context must prove that it is fresh."""

    def __init__(self, forge: Callable[[Message], list[bytes]] = lambda m: []) -> None:
        self.contexts: dict[bytes, Oscore] = {}
        self.echoed: set[bytes] = set()
        self.asked: list[bytes] = []
        self.forge = forge

    def __call__(self, m: Message) -> list[bytes]:
        if m.opt.oscore is None:
            return []
        piv = m.opt.oscore[0] & 7
        name = m.opt.oscore[2 + piv : -1]
        context = self.contexts.setdefault(name, Oscore(bytes(16), name))
        inner, request = context.unprotect(m)
        request.can_reuse_nonce = False
        if name not in self.echoed:
            if inner.opt.echo != b"prove it":
                answer = Message(code=Code.UNAUTHORIZED, echo=b"prove it")
            else:
                self.echoed.add(name)
        if name in self.echoed:
            self.asked.append(inner.payload)
            answer = Message(code=CONTENT, payload=inner.payload[::-1])
            answer.opt.add_option(OpaqueOption(aiocoap.OptionNumber(4210), b"dfu"))
        protected, _ = context.protect(answer, request)
        protected.mtype, protected.mid, protected.token = ACK, m.mid, m.token
        return [*self.forge(m), protected.encode()]


async def test_oscore_proves_itself_once_and_believes_nothing_that_is_not_protected(tmp_path: Path) -> None:
    lies = [{"payload": b"gotcha", "command": True}, {"code": CHANGED}, {"payload": bytes(20), "oscore": b"", "code": CHANGED}]
    forged = Protected(lambda m: [raw(m, **lie) for lie in lies])
    steps: list[list[Any]] = [["status", "6162", 0], ["status", "6364", 0], ["close"], ["status", "6566", 0]]
    results, script = await played(tmp_path, forged, *steps, psk="00" * 16)
    assert [r[2] for r in results if r] == ["6261", "6463", "6665"]
    assert forged.asked == [b"ab", b"cd", b"ef"]
    assert len(forged.contexts) == 1 and next(iter(forged.contexts))[8:] == b"lamp1@lamps"
    assert not [m for m in script.got if m.opt.uri_path], "what is asked for is nobody's business"


async def test_without_the_right_key_the_device_is_denied(tmp_path: Path) -> None:
    results, _ = await played(tmp_path, lambda m: [raw(m, code=Code.UNAUTHORIZED, max_age=0)], ["status", "61", 0], psk="11" * 16)
    assert results == [["Denied", "status 4.01"]]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_client_stands_anything(seed: int) -> None:
    command = [require("micropython"), str(HERE / "coapfuzz.py"), str(agent_modules()), str(seed), "3000"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (run.stdout, run.stderr) == ("plain True True True\noscore True True True\ndone\n", ""), f"seed {seed}"
