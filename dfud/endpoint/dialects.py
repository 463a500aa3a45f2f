"""What a dialect plugin may ask and tell about one device: its words become a Status for the controller."""

from __future__ import annotations

from collections.abc import Callable

import trio

from dfud.api import Actual, Desired, DialectSession, Firmware, NotFoundError, Store, StoreError
from dfud.controller.controller import Controller


class Conversation(DialectSession):
    def __init__(
        self,
        controller: Controller,
        store: Store,
        app: str,
        device: str,
        transport: str,
        now: Callable[[], float],
    ) -> None:
        self._controller = controller
        self._store = store
        self.app = app
        self.device = device
        self._transport = transport
        self._now = now

    async def report(
        self, actual: Actual, *, sha256: str = "", offset: int | None = None, version: str = "", swap: bool = False
    ) -> bool:
        return await self._controller.foreign_report(actual, sha256=sha256, offset=offset, version=version, swap=swap)

    async def target(self, *, pinned_version: str = "") -> tuple[Desired, Firmware | None]:
        desired, firmware = await self._controller.desired(self.app, self.device)
        if pinned_version and (firmware is None or firmware.version != pinned_version):
            pinned = await self._store.firmware(self.app, pinned_version)
            if pinned is not None:
                return desired, pinned
        return desired, firmware

    async def image(self, firmware: Firmware, offset: int, size: int) -> bytes:
        path = await self._store.blob(firmware.sha256)
        if path is None:
            raise NotFoundError(f"the image of {firmware.version} is missing from the store")

        def read() -> bytes:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)

        try:
            return await trio.to_thread.run_sync(read)
        except OSError as error:
            raise StoreError(f"the image cannot be read: {error.strerror}", retryable=True) from error

    def poll_s(self) -> int:
        return self._controller.poll_s
