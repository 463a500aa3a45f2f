"""Devices' ends of CoAP: aiocoap in a thread of its own (it needs asyncio), and a bare socket."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import aiocoap
import aiocoap.optiontypes
import trio
from aiocoap.numbers.codes import Code as AioCode
from aiocoap.oscore import FilesystemSecurityContext

from dfud.api import Code, Reply
from dfud.testing.transport import AUTHORIZATION, Publish, TransportPeer

T = TypeVar("T")
TRIES = 60
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


async def in_asyncio(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `work` under asyncio in a thread; cancelling leaves it behind."""
    return await trio.to_thread.run_sync(lambda: asyncio.run(work()), abandon_on_cancel=True)


def option(message: aiocoap.Message, number: int) -> bytes | None:
    return next((o.encode() for o in message.opt.option_list() if int(o.number) == number), None)


def dotted(message: aiocoap.Message) -> str:
    return str(message.code.dotted)


def request(
    code: AioCode,
    url: str,
    path: list[str],
    payload: bytes = b"",
    *,
    query: Mapping[str, str] = {},
    auth: bytes | None = None,
    observe: int | None = None,
) -> aiocoap.Message:
    message = aiocoap.Message(code=code, uri=url + "/", payload=payload)
    message.opt.uri_path = tuple(path)
    message.opt.observe = observe
    message.opt.uri_query = tuple(f"{name}={value}" for name, value in query.items())
    if auth is not None:
        message.opt.add_option(aiocoap.optiontypes.OpaqueOption(AUTH, auth))
    return message


async def shut(client: aiocoap.Context) -> None:
    """End a client, and have its security contexts written now: the garbage collector's turn comes when their directory is gone."""
    await client.shutdown()
    for kept in client.client_credentials.values():
        if isinstance(kept, FilesystemSecurityContext) and kept.lockfile is not None:
            kept._destroy()


async def ask(message: aiocoap.Message, credentials: Mapping[str, Any] | None = None) -> aiocoap.Message:
    """Send one request by a new aiocoap client and return the answer, all blocks of it."""

    async def work() -> aiocoap.Message:
        client = await aiocoap.Context.create_client_context()
        if credentials is not None:
            client.client_credentials.load_from_dict(dict(credentials))
        try:
            return await client.request(message).response
        finally:
            await shut(client)

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


class AioClient:
    """An aiocoap client that lives longer than one request: its loop has a thread, results come back to trio."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.context: Any = None

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._end(asyncio.all_tasks(self._loop)))
        finally:
            self._loop.close()

    async def _end(self, left: set[asyncio.Task[Any]]) -> None:
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _do(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        return await trio.to_thread.run_sync(future.result, abandon_on_cancel=True)

    async def open(self, credentials: Mapping[str, Any] | None = None) -> None:
        async def make() -> None:
            self.context = await aiocoap.Context.create_client_context()
            if credentials is not None:
                self.context.client_credentials.load_from_dict(dict(credentials))

        await self._do(make())

    async def ask(self, message: aiocoap.Message) -> aiocoap.Message:
        async def work() -> aiocoap.Message:
            for _ in range(TRIES):
                try:
                    return await self.context.request(message.copy()).response
                except aiocoap.oscore.NotAProtectedMessage as error:
                    # On a loaded machine the store is slow to say whose the context is; a device asks again.
                    if dotted(error.plain_message) != "5.03":
                        raise
                    await asyncio.sleep(0.5)
            raise TimeoutError("5.03 again and again")

        return await self._do(work())

    async def observe(self, message: aiocoap.Message, kept: list[aiocoap.Message]) -> None:
        """Register; everything that is told is put into `kept`, an exception at the end, too. Returns with the first answer."""

        async def work() -> None:
            asked = self.context.request(message)
            kept.append(await asked.response)

            async def listen() -> None:
                try:
                    async for told in asked.observation:
                        kept.append(told)
                except Exception as error:
                    kept.append(error)

            self._listening = asyncio.ensure_future(listen())

        await self._do(work())

    async def close(self) -> None:
        if self.context is not None:
            await self._do(shut(self.context))
        self._loop.call_soon_threadsafe(self._loop.stop)
        await trio.to_thread.run_sync(self._thread.join, abandon_on_cancel=True)


def oscore_credentials(directory: Path, url: str, key: bytes, identity: str, boot: bytes) -> dict[str, Any]:
    """Return what aiocoap needs to speak OSCORE as docs/coap.md says, for one boot of a device."""
    directory.mkdir(parents=True)
    settings = {
        "algorithm": "AES-CCM-16-64-128",
        "kdf-hashfun": "sha256",
        "sender-id_hex": "01",
        "recipient-id_hex": "00",
        "secret_hex": key.hex(),
        "id-context_hex": (boot + identity.encode()).hex(),
    }
    (directory / "settings.json").write_text(json.dumps(settings))
    return {f"{url}/*": {"oscore": {"basedir": str(directory)}}}
