"""The answers of tests/security/mutating.py over CoAP, with what can be wrong there, too: options, blocks, tokens, order, kinds."""

from __future__ import annotations

from typing import Any

import aiocoap
import aiocoap.oscore
import trio
from aiocoap import ACK, CON, NON, RST, Code, Message
from aiocoap.error import UnparsableMessage
from aiocoap.optiontypes import OpaqueOption

from tests.devicefw.test_oscore_client import Server, decoded
from tests.security.mutating import Mutator, Sent, flipped

CODES = {200: Code.CONTENT, 202: Code.CHANGED, 403: Code.FORBIDDEN, 404: Code.NOT_FOUND}
PSK = bytes(range(16))
COMMAND, BLOCK_BYTES, EXPONENT = 4210, 1024, 6


class CoapServer:
    """Gives `mutator`'s answers to whoever asks, in the clear. A body that takes several blocks is kept while they are fetched."""

    def __init__(self, mutator: Mutator) -> None:
        self.mutator = mutator
        self.held: dict[str, int] = {}
        self._silent: set[int] = set()
        self._kept: dict[tuple[str, ...], Sent] = {}

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            task_status.started(f"coap://127.0.0.1:{sock.getsockname()[1]}")
            while True:
                data, peer = await sock.recvfrom(4096)
                try:
                    request = self._read(data)
                except UnparsableMessage:
                    continue
                if request is not None and request.code.is_request():
                    for answer in self._answers(request):
                        await sock.sendto(answer, peer)

    def _read(self, data: bytes) -> Message | None:
        return Message.decode(data)

    def _answers(self, request: Message) -> list[bytes]:
        path = tuple(request.opt.uri_path)
        number = request.opt.block2.block_number if request.opt.block2 is not None else 0
        sent = self._kept.get(path) if number else None
        if sent is None:
            sent = self.mutator.chunk(int(path[3])) if len(path) == 4 else self.mutator.command()
            self._kept = {path: sent}
        rng = self.mutator.rng
        if self.mutator.stalls():
            # Silence from here on; or "it will come", and then silence.
            how = rng.choice(("nothing", "acknowledged", "half of it"))
            self.held[how] = self.held.get(how, 0) + 1
            self._silent.add(request.mid)
            half = self._encoded(request, sent, number, more=True, size2=1 << 20)
            return {"nothing": [], "acknowledged": [b"\x60\x00" + request.mid.to_bytes(2, "big")], "half of it": [half]}[how]
        if request.mid in self._silent and not self.mutator.honest:
            return []
        right = self._encoded(request, sent, number)
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
                [self._encoded(request, sent, number, plain=True)],
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
        return self._protected(request, message, "plain" in wrong)

    def _protected(self, request: Message, message: Message, plain: bool) -> bytes:
        return bytes(message.encode())


class OscoreServer(CoapServer):
    """The same by somebody who has stolen the devices' keys, too: what it sends is protected as it should be, or was."""

    def __init__(self, mutator: Mutator) -> None:
        super().__init__(mutator)
        self._contexts: dict[bytes, Server] = {}
        self._asked: dict[int, Any] = {}

    def _read(self, data: bytes) -> Message | None:
        outer = decoded(data)
        if outer.opt.oscore is None:
            return None
        hint = aiocoap.oscore.verify_start(outer)[aiocoap.oscore.COSE_KID_CONTEXT]
        context = self._contexts.setdefault(hint, Server(PSK, hint))
        try:
            inner, identity = context.unprotect(outer)
        except aiocoap.oscore.ReplayError:
            return None  # sent again: it is being answered, or never will be
        inner.mid, inner.token, inner.mtype = outer.mid, outer.token, outer.mtype
        self._asked = {outer.mid: (context, identity)}
        return inner

    def _protected(self, request: Message, message: Message, plain: bool) -> bytes:
        if plain:
            return super()._protected(request, message, plain)
        context, identity = self._asked[request.mid]
        identity.can_reuse_nonce = False
        mtype, mid, token = message.mtype, message.mid, message.token
        outer, _ = context.protect(message, identity)
        outer.mtype, outer.mid, outer.token = mtype, mid, token
        return bytes(outer.encode())
