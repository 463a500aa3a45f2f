"""Ajour's update protocol on the channel dfu: which command answers a status."""

from __future__ import annotations

from dfud.api import Actual, Code, Dialect, DialectSession, Firmware, Reply, Request
from dfud_drogue import messages
from dfud_drogue.config import DrogueConfig
from dfud_drogue.messages import Status, decode_status_untrusted

COMMAND = "dfu"
MTU_DEFAULT = 512  # what drogue-ajour takes for a status without one
ALIGNMENT_BYTES = 4  # flash of drogue-device's boards is written in words


class AjourDialect(Dialect):
    """The device drives: each status is answered with the one thing to do next, and nothing is remembered here."""

    name = "drogue"

    def __init__(self, config: DrogueConfig) -> None:
        self._config = config

    def recognises(self, content_type: str, body: bytes) -> bool:
        # A CBOR map of either length form. dfu/1 is a msgpack map, 80-8f or de, and never begins like this.
        return bool(body) and (0xA0 <= body[0] <= 0xBB or body[0] == 0xBF)

    async def answer(self, request: Request, session: DialectSession) -> Reply:
        status = decode_status_untrusted(request.body)
        return Reply(Code.COMMAND, COMMAND, await self._command(status, request, session))

    async def _command(self, status: Status, request: Request, session: DialectSession) -> bytes:
        running = _text(status.version)
        update = status.update
        pinned = _text(update.version) if update is not None else ""
        _, firmware = await session.target()
        if update is not None and firmware is not None and firmware.version not in (pinned, running):
            # Another version now: finish this one first. Nothing, or what runs already: stop at once.
            _, firmware = await session.target(pinned_version=pinned)
        offset: int | None = None
        if update is not None and firmware is not None and pinned == firmware.version:
            offset = update.offset
        complete = offset is not None and firmware is not None and offset >= firmware.size_bytes
        actual = Actual(
            session.app, session.device, running, "", "", transport=request.transport, dialect="drogue-ajour"
        )
        held = update.offset if update is not None else None
        send = await session.report(actual, offset=held, version=pinned, swap=complete)
        identity, poll_s = status.correlation_id, session.poll_s()
        if firmware is None:
            return messages.wait(identity, poll_s)
        if firmware.version == running:
            return messages.sync(status.version, identity, poll_s)
        # A client that is writing one version and is given another goes on at its old offset and leaves a hole; told to
        # wait, it starts anew.
        if not send or (update is not None and offset is None):
            return messages.wait(identity, poll_s)
        version = firmware.version.encode()
        if complete:
            return messages.swap(version, identity, bytes.fromhex(firmware.sha256))
        return messages.write(version, identity, offset or 0, await self._block(status, session, firmware, offset or 0))

    async def _block(self, status: Status, session: DialectSession, firmware: Firmware, offset: int) -> bytes:
        size = min(status.mtu or MTU_DEFAULT, self._config.block_max)
        size = max(1, size - size % ALIGNMENT_BYTES if size > ALIGNMENT_BYTES else size)
        return await session.image(firmware, offset, size)


def _text(version: bytes) -> str:
    return version.decode("utf-8", "backslashreplace")
