"""A device's OSCORE context, made of aiocoap's cryptography alone."""

from __future__ import annotations

from typing import Any

from aiocoap import oscore as aio
from aiocoap.message import Direction
from aiocoap.message import Message as AioMessage
from aiocoap.numbers.codes import Code as AioCode
from aiocoap.numbers.optionnumbers import OptionNumber
from aiocoap.optiontypes import OpaqueOption
from dfud_coap.message import CON, Code, Message, Option, decode_untrusted, encode

from tests.plugins.coap.world import IDENTITY, KEY


class Device(aio.CanProtect, aio.CanUnprotect, aio.SecurityContextUtils):
    """One boot of one device. `ivs` are the nonces that the server chose."""

    echo_recovery = None

    def __init__(self, boot: int = 1, key: bytes = KEY, identity: str = IDENTITY) -> None:
        self.alg_aead = aio.AES_CCM_16_64_128()
        self.hashfun = aio.hashfunctions["sha256"]
        self.sender_id, self.recipient_id = b"\1", b"\0"
        self.id_context = bytes([boot]) * 8 + identity.encode()
        self.sender_sequence_number = 0
        self.derive_keys(b"", key)
        self.recipient_replay_window = aio.ReplayWindow(32, lambda: None)
        self.recipient_replay_window.initialize_empty()
        self.ivs: list[bytes] = []

    def post_seqnoincrease(self) -> None:
        pass

    def request(self, message_id: int, *options: tuple[int, bytes], body: bytes = b"s", code: int = Code.POST) -> bytes:
        path = [(int(Option.URI_PATH), part) for part in (b"v1", b"dfu")]
        return encode(self.protect_request(Message(CON, code, message_id, b"t", [*path, *options], body)))

    def protect_request(self, message: Message) -> Message:
        inner = AioMessage(code=AioCode(message.code), payload=message.payload)
        inner.direction = Direction.OUTGOING
        for number, value in message.options:
            inner.opt.add_option(OpaqueOption(OptionNumber(number), value))
        outer, self.last = self.protect(inner)
        shown = [(int(Option.OSCORE), bytes(outer.opt.oscore))]
        if outer.opt.observe is not None:
            shown.append((int(Option.OBSERVE), b""))
        return Message(message.type, int(outer.code), message.message_id, message.token, shown, outer.payload)

    def open(self, data: bytes) -> Message:
        outer = decode_untrusted(data)
        message = AioMessage(code=AioCode(outer.code), payload=outer.payload)
        message.opt.oscore = outer.first(Option.OSCORE)
        message.direction = Direction.INCOMING
        if message.opt.oscore:
            self.ivs.append(message.opt.oscore)
        inner, _ = self.unprotect(message, self.last)
        options = [(int(o.number), o.encode()) for o in inner.opt.option_list()]
        return Message(outer.type, int(inner.code), outer.message_id, outer.token, options, inner.payload)

    def greet(self, w: Any, message_id: int = 100) -> None:
        """Prove to a server (of virtual.py) that this is fresh."""
        (challenge,) = w.take(self.request(message_id))
        (answer,) = w.take(self.request(message_id + 1, echo_of_inner(self.open(challenge))))
        assert self.open(answer).code == Code.CONTENT


def echo_of_inner(message: Message) -> tuple[int, bytes]:
    assert message.code == Code.UNAUTHORIZED
    return next(o for o in message.options if o[0] == Option.ECHO)
