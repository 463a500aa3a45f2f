"""Firmware both ways: dfud's into hawkBit as module, artifact and set; hawkBit's into dfud, downloaded once."""

from __future__ import annotations

import base64
import binascii
import fnmatch
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from dfud.api import DfudError, Firmware, StoreError
from dfud_hawkbit import records
from dfud_hawkbit.answers import Action, Artifact, Chunk, Named, Order, StoredArtifact
from dfud_hawkbit.client import Client
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.desire import digest_of
from dfud_hawkbit.http import Away, Refused
from dfud_hawkbit.records import FirmwareSet

MANIFEST = "dfud.manifest"  # metadata: base64 of the envelope of docs/protocol.md
VALUE_MAX = 4000  # hawkBit's column
_RENAMED = {"bApp": "application", "jvm": "runtime"}  # what DDI calls these module types


class Unusable(DfudError):
    """What a hawkBit action is about cannot be rolled out; the sentence goes back to hawkBit."""


class Publisher(Protocol):
    """dfud's registry of firmware, as far as it is needed here."""

    async def adopt(self, app: str, body: AsyncIterator[bytes], by: str, **said: Any) -> Firmware: ...


def choose(order: Order, config: HawkbitConfig) -> tuple[Chunk, Artifact]:
    """Return our module and artifact out of all that an action brings. Raises Unusable."""
    found = [
        (chunk, artifact)
        for chunk in order.chunks
        if _RENAMED.get(chunk.part, chunk.part) == config.module_type
        for artifact in chunk.artifacts
        if fnmatch.fnmatchcase(artifact.filename, config.artifact)
    ]
    if len(found) != 1:
        there = ", ".join(f"{c.part}: {a.filename}" for c in order.chunks for a in c.artifacts)[:300] or "nothing"
        what = f"{len(found)} artifacts {config.artifact} in modules of type {config.module_type}"
        raise Unusable(f"the distribution set has {what}, expected one; it has {there}")
    if not found[0][1].hashes.sha256:
        raise Unusable(f"artifact {found[0][1].filename} has no SHA-256")
    return found[0]


def said_of(chunk: Chunk, config: HawkbitConfig) -> dict[str, Any]:
    """Return what a module's metadata says of the image; with a manifest that alone counts. Raises Unusable."""
    said = {entry.key: entry.value for entry in chunk.metadata}
    if MANIFEST in said:
        try:
            return {"envelope": base64.b64decode(said[MANIFEST], validate=True), "version": "", "hardware": ""}
        except (binascii.Error, ValueError):
            raise Unusable(f"the module's metadata {MANIFEST} is not base64") from None
    sequence = said.get("dfud.sequence", "")
    if sequence and not (sequence.isascii() and sequence.isdigit() and len(sequence) <= 10 and int(sequence) < 1 << 32):
        raise Unusable(f"the module's metadata dfud.sequence {sequence[:20]!r}: expected an integer below 2^32")
    return {
        "version": chunk.version,
        "hardware": said.get("dfud.hardware", config.hardware),
        "sequence": int(sequence) if sequence else None,
        "kind": said.get("dfud.kind", "esp-image"),
    }


def _said(f: Firmware) -> list[tuple[str, str]]:
    """Return what a module's metadata says of a firmware. Raises Unusable."""
    said = [("dfud.hardware", f.hardware), ("dfud.sequence", str(f.sequence)), ("dfud.kind", f.kind)]
    if f.signed:
        text = base64.b64encode(f.manifest).decode()
        if len(text) > VALUE_MAX:
            raise Unusable(f"the manifest has {len(text)} characters, hawkBit holds {VALUE_MAX}")
        said.append((MANIFEST, text))
    return said


def _ours(known: FirmwareSet, f: Firmware) -> bool:
    """Say whether dfud made a set, by its name; one that somebody else made is left alone."""
    return (known.name, known.set_version) == (f.app, f.version)


def _digest(f: Firmware) -> str:
    return digest_of(
        {"hardware": f.hardware, "sequence": str(f.sequence), "kind": f.kind, "manifest": f.manifest.hex()}
    )


class FirmwareSync:
    """One at a time per app, so that a thousand devices of a rollout have an artifact downloaded once."""

    def __init__(self, store: Any, client: Client, config: HawkbitConfig) -> None:
        self._store = store
        self._client = client
        self._config = config
        self._locks: dict[str, trio.Lock] = {}
        self._types: dict[str, int] = {}
        self.adopting: dict[tuple[str, str], FirmwareSet] = {}
        self.downloads = 0
        self.publisher: Publisher | None = None

    # Into hawkBit

    async def push(self, app: str, version: str) -> FirmwareSet:
        """Bring a firmware into hawkBit, going on where an earlier attempt stopped. Raises Away, Refused, Unusable."""
        async with self._locks.setdefault(app, trio.Lock()):
            known = await records.get(self._store, records.SETS, records.firmware_key(app, version), FirmwareSet)
            firmware = await self._store.firmware(app, version)
            if firmware is None:
                raise Unusable(f"firmware {version} of app {app} is no longer published")
            if known is not None and known.set_id and (known.said == _digest(firmware) or not _ours(known, firmware)):
                return known
            try:
                made = (
                    await self._push(firmware)
                    if known is None or not known.set_id
                    else await self._again(known, firmware)
                )
            except (Refused, Unusable) as error:
                left = msgspec.structs.replace(known or FirmwareSet(), problem=str(error))
                put = records.put(records.SETS, records.firmware_key(app, version), left)
                await self._store.commit([put])
                raise
            await self._store.commit([records.put(records.SETS, records.firmware_key(app, version), made)])
            return made

    async def _push(self, f: Firmware) -> FirmwareSet:
        config = self._config
        said = _said(f)
        module = await self._made("/softwaremodules", f, config.module_type, {"vendor": "dfud"})
        if not await self._has_artifact(module, f):
            await self._upload(module, f)
        await self._say(module, said)
        made = await self._made("/distributionsets", f, config.set_type, {"modules": [{"id": module}]})
        return FirmwareSet(made, f.app, f.version, module, f.sha256, said=_digest(f))

    async def _again(self, known: FirmwareSet, f: Firmware) -> FirmwareSet:
        """Say anew what a firmware is whose manifest was replaced; the image is the same."""
        await self._say(known.module, _said(f))
        return msgspec.structs.replace(known, said=_digest(f), problem="")

    async def _say(self, module: int, said: list[tuple[str, str]]) -> None:
        body = [{"key": key, "value": value, "targetVisible": True} for key, value in said]
        await self._client.mgmt("publish", "POST", f"/softwaremodules/{module}/metadata", body)

    async def _made(self, path: str, f: Firmware, key: str, more: dict[str, Any]) -> int:
        """Make a module or set of this firmware's name, or find the one that an earlier attempt made."""
        body = [{"name": f.app, "version": f.version, "type": key, **more}]
        try:
            answer = await self._client.mgmt("publish", "POST", path, body)
        except Refused as refused:
            if refused.status != 409:
                raise
            found = await self._client.first("publish", path, f.app, f.version, key)
            if found is None:
                raise Refused(f"hawkBit keeps the name {f.app}:{f.version} of something deleted", 409, "") from None
            return found.id
        made = answer.read(list[Named], "new module or set")
        if len(made) != 1:
            raise Away("hawkBit made no module or set and did not say why")
        return made[0].id

    async def _artifacts(self, module: int) -> list[StoredArtifact]:
        answer = await self._client.mgmt("artifacts", "GET", f"/softwaremodules/{module}/artifacts")
        return answer.read(list[StoredArtifact], "list of artifacts")

    async def _has_artifact(self, module: int, f: Firmware) -> bool:
        there = await self._artifacts(module)
        if any(a.hashes.sha256 == f.sha256 for a in there):
            return True
        if any(fnmatch.fnmatchcase(a.provided_filename, self._config.artifact) for a in there):
            raise Unusable(f"hawkBit holds another image as {f.app}:{f.version}")
        return False

    async def _upload(self, module: int, f: Firmware) -> None:
        async with self._store.blob(f.sha256) as path:
            if path is None:
                raise Unusable(f"the image of firmware {f.version} is missing from the records")
            async with aclosing(_blocks(path)) as content:
                await self._client.upload(module, f"{f.app}-{f.sequence}.bin", content, f.size_bytes, f.sha256)

    async def withdraw(self, app: str, version: str, known: FirmwareSet) -> None:
        """Delete a set that dfud made; a set that somebody else made is left alone."""
        if known.name != app or known.set_version != version:
            return
        for path in (f"/distributionsets/{known.set_id}", f"/softwaremodules/{known.module}"):
            try:
                await self._client.mgmt("delete", "DELETE", path)
            except Refused as refused:
                if refused.status not in (404, 409, 423):
                    raise

    # Out of hawkBit

    async def adopt(self, app: str, target: str, action: int, order: Order) -> Firmware:
        """Return the firmware that an action is about, downloading it if dfud has it not. Raises Unusable, Away, Refused."""
        chunk, artifact = choose(order, self._config)
        sha256 = artifact.hashes.sha256.lower()
        async with self._locks.setdefault(app, trio.Lock()):
            same: Firmware | None = await self._store.firmware(app, chunk.version)
            if same is None or same.sha256 != sha256:
                same = await self._store.firmware_by_digest(app, sha256)
            if same is not None:
                return same
            if self.publisher is None:
                raise Away("dfud is starting")
            made = await self._set_of(target, action)
            self.adopting[(app, sha256)] = FirmwareSet(made.id, made.name, made.version, artifact.module, sha256)
            try:
                notes = f"from hawkBit: {made.name}:{made.version}"
                said = said_of(chunk, self._config)
                async with aclosing(self._image(artifact, sha256)) as body:
                    return await self.publisher.adopt(app, body, "hawkbit", sha256=sha256, notes=notes, **said)
            except StoreError:
                raise
            except DfudError as error:
                raise Unusable(str(error)) from None
            finally:
                del self.adopting[(app, sha256)]

    async def _set_of(self, target: str, action: int) -> Named:
        answer = await self._client.mgmt("look up", "GET", f"/targets/{target}/actions/{action}")
        link = answer.read(Action, "action").links.get("distributionset")
        href = link.href if link is not None and not isinstance(link, list) else ""
        number = href.rpartition("/")[2]
        if not (number.isascii() and number.isdigit()):
            raise Away(f"hawkBit does not say which distribution set action {action} is about")
        return (await self._client.mgmt("look up", "GET", f"/distributionsets/{number}")).read(
            Named, "distribution set"
        )

    async def _image(self, artifact: Artifact, sha256: str) -> AsyncGenerator[bytes, None]:
        async with self._store.blob(sha256) as cached:
            if cached is not None:
                async with aclosing(_blocks(cached)) as blocks:
                    async for data in blocks:
                        yield data
                return
        stored = [a for a in await self._artifacts(artifact.module) if a.hashes.sha256.lower() == sha256]
        if not stored:
            raise Unusable(f"artifact {artifact.filename} is not in module {artifact.module} any more")
        self.downloads += 1
        async with aclosing(self._client.download(artifact.module, stored[0].id)) as blocks:
            async for data in blocks:
                yield data


async def _blocks(path: Path) -> AsyncGenerator[bytes, None]:
    async with await trio.open_file(path, "rb") as file:
        while block := await file.read(1 << 16):
            yield block
