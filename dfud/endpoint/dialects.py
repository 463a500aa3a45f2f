"""What a dialect plugin may ask and tell about one device: its words become a Status for the controller.

Devices of other dialects name versions, not digests, and say neither what they decode nor why they left an image. What that
means is decided here; the controller hears statuses alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from dfud.api import Actual, Deployment, Desired, DialectSession, Firmware, State, Store
from dfud.controller.controller import Controller
from dfud.wire.messages import PAYLOAD_MIN_BYTES, Code, Kind, Outcome, Phase, Progress, Result, Status


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
        running = await self._controller.published(self.app, actual.version)
        # A version that is published stands for its image.
        digest = (
            running.sha256 if running is not None else sha256 or hashlib.sha256(actual.version.encode()).hexdigest()
        )

        def translate(deployment: Deployment | None, target: Firmware | None) -> Status:
            # What it is it does not say: the one image of a version is taken to be for it, of several none is.
            sole = target is not None and not target.more and not target.attributes
            hardware = target.hardware if sole and target is not None else actual.hardware or "unknown"
            return status_of(actual.version, digest, hardware, deployment, offset=offset, version=version, swap=swap)

        return await self._controller.report(actual, translate, pinned=version if offset is not None else "")

    async def target(self, *, pinned_version: str = "") -> tuple[Desired, Firmware | None]:
        desired, firmware = await self._controller.desired(self.app, self.device)
        if pinned_version and (firmware is None or firmware.version != pinned_version):
            pinned = await self._store.firmware(self.app, pinned_version)
            if pinned is not None:
                return desired, pinned
        return desired, firmware

    async def image(self, firmware: Firmware, offset: int, size: int) -> bytes:
        return await self._controller.image(firmware, offset, size)

    def poll_s(self) -> int:
        return self._controller.poll_s


def status_of(
    running: str,
    digest: str,
    hardware: str,
    deployment: Deployment | None,
    *,
    offset: int | None,
    version: str,
    swap: bool,
) -> Status:
    """Return what such a device would say in dfu/1. Pure.

    digest: of what it runs; offset: how much of `version` it holds, None: it holds nothing; swap: it is told to boot it. One
    that was told to boot an image and reports its old version has rolled back; one that was not has dropped what it had written.
    """
    progress = result = None
    if offset is not None and deployment is not None and version == deployment.version:
        package = bytes.fromhex(deployment.package or "00" * 16)
        progress = Progress(package, offset, Phase.WRITTEN if swap else Phase.FETCHING)
    elif offset is None and deployment is not None and _was_told_to_boot(deployment) and digest != deployment.sha256:
        text = "it was told to boot the image and runs its old one"
        result = Result(Outcome.ROLLED_BACK, bytes.fromhex(deployment.sha256), int(Code.UNCONFIRMED), text)
    return Status(
        version=running,
        digest=bytes.fromhex(digest),
        hardware=hardware,
        kinds=1 << Kind.FULL,
        payload=PAYLOAD_MIN_BYTES,
        capacity=(1 << 32) - 1,
        progress=progress,
        result=result,
    )


def _was_told_to_boot(deployment: Deployment) -> bool:
    return deployment.state is State.WRITTEN and deployment.repeats > 0
