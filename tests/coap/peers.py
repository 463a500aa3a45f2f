"""Devices' ends of CoAP: aiocoap in a thread of its own (it needs asyncio), and a bare socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import aiocoap
import aiocoap.optiontypes
import trio
from aiocoap.numbers.codes import Code as AioCode

from dfud.api import Code, Reply
from dfud.testing.transport import AUTHORIZATION, Publish, TransportPeer

T = TypeVar("T")
CODES = {
    "2.05": Code.COMMAND,
    "2.04": Code.ACCEPTED,
    "4.00": Code.MALFORMED,
    "4.03": Code.DENIED,
    "4.04": Code.NOT_FOUND,
    "4.06": Code.NOT_ACCEPTABLE,
    "4.13": Code.TOO_LARGE,
    "4.29": Code.TOO_MANY,
    "5.00": Code.FAILED,
    "5.03": Code.AWAY,
}
COMMAND, AUTH = 4210, 4209


async def in_asyncio(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work` under asyncio in a thread; cancelling leaves it behind."""
    return await trio.to_thread.run_sync(lambda: asyncio.run(work()), abandon_on_cancel=True)


def option(message: aiocoap.Message, number: int) -> bytes | None:
    return next((o.encode() for o in message.opt.option_list() if int(o.number) == number), None)


def dotted(message: aiocoap.Message) -> str:
    return str(message.code.dotted)


def request(
    code: AioCode, url: str, path: list[str], payload: bytes = b"", *, query: Mapping[str, str] = {}, auth: bytes | None = None
) -> aiocoap.Message:
    message = aiocoap.Message(code=code, uri=url + "/", payload=payload)
    message.opt.uri_path = tuple(path)
    message.opt.uri_query = tuple(f"{name}={value}" for name, value in query.items())
    if auth is not None:
        message.opt.add_option(aiocoap.optiontypes.OpaqueOption(AUTH, auth))
    return message


async def ask(message: aiocoap.Message, credentials: Mapping[str, Any] | None = None) -> aiocoap.Message:
    """Send one request by a new aiocoap client and return the answer, all blocks of it."""

    async def work() -> aiocoap.Message:
        client = await aiocoap.Context.create_client_context()
        if credentials is not None:
            client.client_credentials.load_from_dict(dict(credentials))
        try:
            return await client.request(message).response
        finally:
            await client.shutdown()

    return await in_asyncio(work)


class AiocoapPeer(TransportPeer):
    async def publish(self, url: str, publish: Publish) -> Reply:
        answer = await ask(
            request(
                aiocoap.POST,
                url,
                ["v1", publish.channel],
                publish.body,
                query=publish.query,
                auth=publish.authorization,
            )
        )
        return Reply(CODES[dotted(answer)], (option(answer, COMMAND) or b"").decode(), answer.payload)

    async def fetch(
        self, url: str, package: str, first: int, last: int, *, authorization: bytes = AUTHORIZATION
    ) -> tuple[Code, bytes]:
        which = str(first) if first == last else f"{first}-{last}"
        answer = await ask(request(aiocoap.GET, url, ["v1", "dfu", package, which], auth=authorization))
        return CODES[dotted(answer)], answer.payload
