"""Devices' end of OSCORE for bench.coap: contexts that the server has established, many requests of each, protected beforehand."""

from __future__ import annotations

import base64
import secrets
import socket

from cryptography.hazmat.primitives.ciphers.aead import AESCCM
from dfud_coap.message import (
    CON,
    Code,
    Message,
    Option,
    Options,
    decode_tail_untrusted,
    decode_untrusted,
    encode,
    encode_tail,
)
from dfud_coap.oscore import (
    DEVICE_ID,
    IV_BYTES,
    KEY_BYTES,
    NONCE_BYTES,
    SERVER_ID,
    TAG_BYTES,
    aad_of,
    derive,
    nonce_of,
)

ANSWER_S = 10.0


class Context:
    """One boot of one device: its next request is `sequence`."""

    def __init__(self, identity: str, key: bytes) -> None:
        self.id_context = secrets.token_bytes(NONCE_BYTES) + identity.encode()
        self.sequence = 0
        self._common_iv = derive(key, b"", self.id_context, "IV", IV_BYTES)
        self._sender = AESCCM(derive(key, DEVICE_ID, self.id_context, "Key", KEY_BYTES), TAG_BYTES)
        self._recipient = AESCCM(derive(key, SERVER_ID, self.id_context, "Key", KEY_BYTES), TAG_BYTES)

    def request(self, code: Code, options: Options, payload: bytes = b"") -> tuple[Options, bytes]:
        """Return options and payload of the outer request, a POST."""
        partial_iv = self.sequence.to_bytes(5, "big").lstrip(b"\0") or b"\0"
        self.sequence += 1
        self._last = partial_iv
        value = bytes((0x18 | len(partial_iv),)) + partial_iv + bytes((len(self.id_context),)) + self.id_context + DEVICE_ID
        plain = bytes((code,)) + encode_tail(options, payload)
        nonce = nonce_of(self._common_iv, DEVICE_ID, partial_iv)
        return [(int(Option.OSCORE), value)], self._sender.encrypt(nonce, plain, aad_of(DEVICE_ID, partial_iv))

    def open(self, data: bytes) -> tuple[int, Options]:
        """Return code and options of the answer to the last request."""
        outer = decode_untrusted(data)
        value = outer.first(Option.OSCORE)
        if value is None:
            raise SystemExit(f"answered without OSCORE: {outer.code >> 5}.{outer.code & 31:02} {outer.payload!r}")
        identity, partial_iv = (SERVER_ID, value[1:]) if value else (DEVICE_ID, self._last)
        plain = self._recipient.decrypt(nonce_of(self._common_iv, identity, partial_iv), outer.payload, aad_of(DEVICE_ID, self._last))
        return plain[0], decode_tail_untrusted(plain, 1)[0]


def greet(port: int, contexts: list[Context], code: Code, options: Options, payload: bytes) -> None:
    """Have the server know all of them, by a request of theirs that proves that it is fresh."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(ANSWER_S)
        sock.connect(("127.0.0.1", port))
        for number, context in enumerate(contexts):
            echo: Options = []
            for turn in range(2):
                outer = Message(CON, Code.POST, 2 * number + turn, b"t", *context.request(code, options + echo, payload))
                sock.send(encode(outer))
                answered, found = context.open(sock.recv(2048))
                echo = [(option, value) for option, value in found if option == Option.ECHO]
            if answered >> 5 != 2:
                raise SystemExit(f"the greeting was answered with {answered >> 5}.{answered & 31:02}")


def lines(contexts: list[Context], asked: list[tuple[Code, Options, bytes]]) -> list[str]:
    """Return each request under the context of the socket that will send it."""
    found = []
    for number, one in enumerate(asked):
        options, payload = contexts[number % len(contexts)].request(*one)
        found.append((bytes((Code.POST,)) + encode_tail(options, payload)).hex())
    return found


def psk(key: bytes) -> dict[str, object]:
    """Return the credential of a device with that key."""
    return {"psk": {"key": base64.b64encode(key).decode()}}
