"""A device that speaks dfu/1 and has no flash: for tests of daemons, stores and transports. The real agent is in devicefw."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec

from dfud.package.apply import Mapped, decode_chunk
from dfud.package.file import PackageFile
from dfud.wire.chunk import decode_chunk_untrusted
from dfud.wire.manifest import FLAG_APP, decode_envelope_untrusted
from dfud.wire.messages import (
    NO_DIGEST,
    Banks,
    Command,
    Kind,
    Outcome,
    Phase,
    Progress,
    Result,
    Status,
    Type,
    decode_command_untrusted,
    encode_status,
)

Exchange = Callable[[bytes], Awaitable[bytes | None]]
Fetch = Callable[[str, int], Awaitable[bytes]]


class SimulatedDevice:
    """exchange: sends a status, returns the command or None; fetch: returns one chunk of a package. Keeps `commands`.

    app: image and version of the app firmware that it runs, (b"", "") where none does; None: it has no banks for any.
    """

    def __init__(
        self,
        exchange: Exchange,
        fetch: Fetch,
        image: bytes,
        version: str,
        *,
        payload: int = 16384,
        app: tuple[bytes, str] | None = None,
    ) -> None:
        self._exchange = exchange
        self._fetch = fetch
        self.image = image
        self.version = version
        self.app = app
        self.manifests: dict[str, int] = {}
        """The sequences in the manifests of what runs: by "system" and "app"; of what was installed here."""
        self.commands: list[Command] = []
        self.fetched: list[int] = []
        kinds = 1 << Kind.FULL | 1 << Kind.DELTA | 1 << Kind.MAPPED
        self.status = Status(version, b"", "esp32c3", kinds, payload, 1 << 22)

    async def poll(self, **said: object) -> Command | None:
        """Send a status with `said` changed in it."""
        digest = hashlib.sha256(self.image).digest()
        own: dict[str, Any] = {"version": self.version, "digest": digest, "app": self.banks()}
        own["manifest"] = self.manifests.get("system")
        status = msgspec.structs.replace(self.status, **(own | said))
        answer = await self._exchange(encode_status(status))
        if answer is None:
            return None
        command = decode_command_untrusted(answer)
        self.commands.append(command)
        return command

    def banks(self, *, trial: bool = False) -> Banks | None:
        """Return what a status says of the app firmware."""
        if self.app is None:
            return None
        image, version = self.app
        digest = hashlib.sha256(image).digest() if version else NO_DIGEST
        return Banks(version, digest, 1 << 18, trial, 0, self.manifests.get("app"))

    async def download(self, command: Command, *, first: int = 0, chunks: list[bytes] | None = None) -> bytes:
        """Fetch a package's chunks from number `first` on (those before are in `chunks`), verify all, return the image."""
        held = chunks if chunks is not None else []
        _, manifest = decode_envelope_untrusted(command.manifest)
        base = self.app[0] if manifest.flags & FLAG_APP and self.app is not None else self.image
        name = command.package.hex()
        image = bytearray()
        mapped: Mapped | None = None
        for number in range(command.chunks):
            if number >= first:
                held.append(await self._fetch(name, number))
                self.fetched.append(number)
            package = PackageFile(
                command.package, command.kind, command.size, manifest.sha256, command.base or None, [b""]
            )
            chunk = decode_chunk_untrusted(held[number])
            if command.kind == Kind.MAPPED and number == 0:
                mapped = Mapped(chunk, command.size, base)
            else:
                image += decode_chunk(chunk, package, base, bytes(image), mapped)
        assert hashlib.sha256(image).digest() == manifest.sha256
        return bytes(image)

    async def update(self, *, good: bool = True, text: str = "") -> Command | None:
        """Go the whole way once: poll, download, say that it is written, boot, and confirm or (not `good`) roll back."""
        command = await self.poll()
        if command is None or command.type is not Type.UPDATE:
            return command
        image = await self.download(command)
        await self.poll(progress=Progress(command.package, command.chunks, Phase.WRITTEN))
        manifest = decode_envelope_untrusted(command.manifest)[1]
        kind = "app" if manifest.flags & FLAG_APP else "system"
        old = self.image, self.version, self.app, dict(self.manifests)
        self.manifests[kind] = manifest.sequence
        if kind == "app":
            self.app = image, command.version
            await self.poll(app=self.banks(trial=True))
        else:
            self.image, self.version = image, command.version
            await self.poll(trial=True)
        if good:
            return await self.poll()
        self.image, self.version, self.app, self.manifests = old
        return await self.poll(result=Result(Outcome.ROLLED_BACK, hashlib.sha256(image).digest(), 1, text, 3, 12))


class HttpDevice(SimulatedDevice):
    """The same over HTTP. `client` must carry the device's credentials and the base URL."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        image: bytes,
        version: str,
        *,
        wait_s: int = 0,
        payload: int = 16384,
        app: tuple[bytes, str] | None = None,
    ) -> None:
        async def exchange(status: bytes) -> bytes | None:
            answer = await client.post("/v1/dfu", params={"ct": wait_s}, content=status)
            answer.raise_for_status()
            return answer.content if answer.status_code == 200 else None

        async def fetch(package: str, number: int) -> bytes:
            answer = await client.get(f"/v1/dfu/{package}/{number}")
            answer.raise_for_status()
            return answer.content

        super().__init__(exchange, fetch, image, version, payload=payload, app=app)
