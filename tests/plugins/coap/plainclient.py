"""A device's end of CoAP on trio: requests one after the other, repeated until answered, blocks both ways, Echo, OSCORE."""

from __future__ import annotations

import secrets
from typing import Protocol, Self

import trio
from dfud_coap.block import Block, read_block_untrusted
from dfud_coap.message import ACK, CON, RST, Code, Message, MessageError, Option, decode_untrusted, encode, head

from dfud.testing.device import SimulatedDevice

BLOCK_BYTES = 1024
REPEAT_S = 2.0
ATTEMPTS = 8


class Failed(Exception):
    """What the server said was no success, or it said nothing. code: 0 for nothing."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code >> 5}.{code & 31:02} {text}")
        self.code = code


class Security(Protocol):
    """Protects requests, and takes protection off answers."""

    def protect_request(self, message: Message) -> Message: ...

    def open(self, data: bytes) -> Message: ...


class PlainClient:
    """From one port. authorization: of each request. security: OSCORE. `asked` counts messages sent."""

    def __init__(
        self,
        url: str,
        authorization: bytes = b"",
        security: Security | None = None,
        *,
        local: str = "127.0.0.1",
        repeat_s: float = REPEAT_S,
    ) -> None:
        self._address = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._authorization = authorization
        self._security = security
        self._local = local
        self._repeat_s = repeat_s
        self._message_id = secrets.randbelow(1 << 16)
        self._echo = b""
        self.asked = 0

    async def __aenter__(self) -> Self:
        self._socket = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        try:
            await self._socket.bind((self._local, 0))
            await self._socket.connect(self._address)
        except BaseException:
            self._socket.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()

    async def send(self, data: bytes) -> None:
        """Send a datagram of the caller's own."""
        await self._socket.send(data)

    async def receive(self) -> bytes:
        return await self._socket.recv(2048)

    def message(self, code: int, path: str, payload: bytes = b"", *options: tuple[int, bytes], query: str = "") -> Message:
        """Return a confirmable request with a token of its own."""
        self._message_id = (self._message_id + 1) & 0xFFFF
        given = [(int(Option.URI_PATH), part.encode()) for part in path.strip("/").split("/")]
        given += [(int(Option.URI_QUERY), part.encode()) for part in query.split("&") if part]
        if self._authorization and self._security is None:
            given.append((int(Option.AUTHORIZATION), self._authorization))
        given += options
        return Message(CON, code, self._message_id, secrets.token_bytes(4), given, payload)

    async def ask(self, code: int, path: str, payload: bytes = b"", *, query: str = "") -> bytes:
        """Return the whole payload of a success. Raises Failed."""
        blocks = max(1, -(-len(payload) // BLOCK_BYTES))
        for number in range(blocks):
            part = payload[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
            options = [] if blocks == 1 else [(int(Option.BLOCK1), Block(number, number < blocks - 1, 6).value())]
            answer = await self._one(code, path, part, *options, query=query)
        found = answer.payload
        while (value := answer.first(Option.BLOCK2)) is not None and read_block_untrusted(value).more:
            block = read_block_untrusted(value)
            following = (int(Option.BLOCK2), Block(block.number + 1, False, block.szx).value())
            answer = await self._one(code, path, b"" if code != Code.POST else payload[:BLOCK_BYTES], following, query=query)
            found += answer.payload
        return found

    async def _one(self, code: int, path: str, payload: bytes, *options: tuple[int, bytes], query: str) -> Message:
        for _ in range(4):
            echo = [(int(Option.ECHO), self._echo)] if self._echo else []
            answer = await self.exchange(self.message(code, path, payload, *options, *echo, query=query))
            if answer.code == Code.UNAUTHORIZED and (value := answer.first(Option.ECHO)) is not None:
                self._echo = value
                continue
            if answer.code >= Code.BAD_REQUEST:
                raise Failed(answer.code, answer.payload.decode("utf-8", "replace"))
            self._echo = b""
            return answer
        raise Failed(Code.UNAUTHORIZED, "asked for Echo again and again")

    async def exchange(self, message: Message) -> Message:
        """Send a request until it is acknowledged, and return its answer. Raises Failed(0) after ATTEMPTS silences."""
        data = encode(message if self._security is None else self._security.protect_request(message))
        for _ in range(ATTEMPTS):
            await self.send(data)
            self.asked += 1
            with trio.move_on_after(self._repeat_s) as scope:
                while True:
                    got = await self.receive()
                    try:
                        heard = decode_untrusted(got)
                    except MessageError:
                        continue
                    if heard.type == ACK and heard.code == 0 and heard.message_id == message.message_id:
                        scope.deadline = trio.current_time() + 30 * self._repeat_s
                    elif heard.type == RST and heard.message_id == message.message_id:
                        raise Failed(0, "reset")
                    elif heard.code and heard.type == CON:
                        await self.send(head(ACK, 0, heard.message_id))
                    if heard.code and heard.token == message.token:
                        return heard if self._security is None else self._opened(got, heard)
        raise Failed(0, "no answer")

    def _opened(self, data: bytes, heard: Message) -> Message:
        if heard.first(Option.OSCORE) is None:
            return heard  # an error outside
        assert self._security is not None
        return self._security.open(data)


class CoapDevice(SimulatedDevice):
    """Speaks dfu/1 over `client`."""

    def __init__(self, client: PlainClient, image: bytes, version: str, *, payload: int = 16384, wait_s: int = 0) -> None:
        async def exchange(status: bytes) -> bytes | None:
            return await client.ask(Code.POST, "v1/dfu", status, query=f"ct={wait_s}") or None

        async def fetch(package: str, number: int) -> bytes:
            return await client.ask(Code.GET, f"v1/dfu/{package}/{number}")

        super().__init__(exchange, fetch, image, version, payload=payload)


