"""The answers of tests/security/mutating.py over CoAP, with what can be wrong there, too: options, blocks, tokens, order, kinds."""

from __future__ import annotations

from typing import Any

import aiocoap
import trio
from aiocoap import ACK, CON, NON, RST, Code, Message
from aiocoap.error import UnparsableMessage
from aiocoap.optiontypes import OpaqueOption

from tests.security.mutating import Mutator, Sent, flipped

CODES = {200: Code.CONTENT, 202: Code.CHANGED, 403: Code.FORBIDDEN, 404: Code.NOT_FOUND}
COMMAND, BLOCK_BYTES, EXPONENT = 4210, 1024, 6


class CoapServer:
    """Gives `mutator`'s answers to whoever asks, in the clear. A body that takes several blocks is kept while they are fetched."""

    def __init__(self, mutator: Mutator) -> None:
        self.mutator = mutator
        self._kept: dict[tuple[str, ...], Sent] = {}

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            task_status.started(f"coap://127.0.0.1:{sock.getsockname()[1]}")
            while True:
                data, peer = await sock.recvfrom(4096)
                try:
                    request = Message.decode(data)
                except UnparsableMessage:
                    continue
                if request.code.is_request():
                    for answer in self._answers(request):
                        await sock.sendto(answer, peer)

    def _answers(self, request: Message) -> list[bytes]:
        path = tuple(request.opt.uri_path)
        number = request.opt.block2.block_number if request.opt.block2 is not None else 0
        sent = self._kept.get(path) if number else None
        if sent is None:
            sent = self.mutator.chunk(int(path[3])) if len(path) == 4 else self.mutator.command()
            self._kept = {path: sent}
        right = self._encoded(request, sent, number)
        rng = self.mutator.rng
        if self.mutator.honest or rng.random() < 0.7:
            return [right]
        return rng.choice(
            [
                [],
                [right, right],
                [flipped(rng, right)],
                [flipped(rng, right), right],
                [self._encoded(request, sent, number, kind=rng.choice((ACK, CON, NON, RST)))],
                [self._encoded(request, sent, number, mid=rng.getrandbits(16))],
                [self._encoded(request, sent, rng.choice((0, number + 1, 4000)), more=rng.random() < 0.5)],
                [self._encoded(request, sent, number, etag=rng.randbytes(rng.randrange(1, 9)))],
                [self._encoded(request, sent, number, observe=rng.getrandbits(24))] * 3,
                [self._encoded(request, sent, number, size2=rng.getrandbits(32))],
                [self._encoded(request, sent, number, strange=rng.choice((1, 9, 14, 252, 65001)))],
                [self._encoded(request, sent, number, echo=b"again")],
                [rng.randbytes(rng.randrange(60))],
                [b"\x60\x00" + request.mid.to_bytes(2, "big"), self._encoded(request, sent, number, kind=CON, mid=7)],
            ]
        )

    def _encoded(self, request: Message, sent: Sent, number: int, **wrong: Any) -> bytes:
        code = CODES.get(sent.status, Code.INTERNAL_SERVER_ERROR)
        if "echo" in wrong:
            code = Code.UNAUTHORIZED
        part = sent.body[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
        message = Message(code=code, payload=part)
        message.mtype, message.mid, message.token = wrong.get("kind", ACK), wrong.get("mid", request.mid), request.token
        if len(sent.body) > BLOCK_BYTES or "more" in wrong:
            follows = wrong.get("more", len(sent.body) > (number + 1) * BLOCK_BYTES)
            message.opt.block2 = (number, follows, EXPONENT)
        message.opt.etag = wrong.get("etag", b"\x01")
        for option in ("observe", "size2", "echo"):
            if option in wrong:
                setattr(message.opt, option, wrong[option])
        if sent.command and code == Code.CONTENT and len(request.opt.uri_path) == 2:
            message.opt.add_option(OpaqueOption(aiocoap.OptionNumber(COMMAND), b"dfu"))
        if "strange" in wrong:
            message.opt.add_option(OpaqueOption(aiocoap.OptionNumber(wrong["strange"]), b"\xff\xff"))
        return bytes(message.encode())
