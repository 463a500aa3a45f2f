"""An aiocoap server that answers as dfud does over plain CoAP. Arguments: address, port. Says that it listens, ends with stdin."""

from __future__ import annotations

import asyncio
import hashlib
import sys

import aiocoap
import aiocoap.resource
from aiocoap import CHANGED, CONTENT, Code, Message
from aiocoap.numbers import OptionNumber
from aiocoap.optiontypes import OpaqueOption

AUTH, COMMAND = OptionNumber(4209), OptionNumber(4210)
PACKAGE = bytes(range(16)).hex()


def pattern(n: int) -> bytes:
    """As coapdrive.py makes it for a number."""
    return bytes((i * 7 + n) & 0xFF for i in range(n))


CHUNKS = [pattern(n) for n in (1, 1024, 1025, 5000, 6144)]
NEWS = b"\x84\x00\x02"  # what a notification carries


def command(payload: bytes) -> Message:
    answer = Message(code=CONTENT, payload=payload)
    answer.opt.add_option(OpaqueOption(COMMAND, b"dfu"))
    return answer


class Dfu(aiocoap.resource.ObservableResource):
    """POST: a command of as many bytes as the status says, or what was sent. FETCH, Observe: nothing, then NEWS."""

    def __init__(self) -> None:
        super().__init__()
        self.news = False

    async def render_post(self, request: Message) -> Message:
        found = request.opt.get_option(AUTH)
        if not found or found[0].value != b"Basic bGFtcDFAbGFtcHM6Z2VoZWlt":
            return Message(code=Code.FORBIDDEN)
        if request.payload.startswith(b"slow"):
            await asyncio.sleep(0.5)  # more than EMPTY_ACK_DELAY: a separate response
            return command(b"at last")
        if request.payload.startswith(b"none"):
            return Message(code=CHANGED)
        if request.payload.startswith(b"long "):
            return command(bytes(int(request.payload[5:])))
        return command(hashlib.sha256(request.payload).digest())

    async def render_fetch(self, request: Message) -> Message:
        return command(NEWS + request.payload) if self.news else Message(code=CONTENT)

    def update_observation_count(self, newcount: int) -> None:
        if newcount:
            asyncio.get_running_loop().call_later(0.3, self.tell)

    def tell(self) -> None:
        self.news = True
        self.updated_state()


class Chunk(aiocoap.resource.Resource):
    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data

    async def render_get(self, request: Message) -> Message:
        return Message(payload=self.data, etag=hashlib.sha256(self.data).digest()[:8])


async def main(host: str, port: int) -> None:
    site = aiocoap.resource.Site()
    site.add_resource(["v1", "dfu"], Dfu())
    for number, data in enumerate(CHUNKS):
        site.add_resource(["v1", "dfu", PACKAGE, str(number)], Chunk(data))
    await aiocoap.Context.create_server_context(site, bind=(host, port), transports=["simplesocketserver"])
    print("listening", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
