"""Guesses at credentials, by address and by device: limited, shared with other processes, and told where they are wrong."""

from __future__ import annotations

from collections.abc import Callable

from dfud.api import Bus, SharedCounts, Store
from dfud.endpoint.config import EndpointConfig
from dfud.endpoint.denials import Denials, Reason
from dfud.endpoint.limits import Attempts

Named = tuple[str, str]  # app, device


class Guesses:
    """addresses, devices: those that are judged now; give their ends to end_address() and end_device()."""

    def __init__(self, store: Store, bus: Bus, config: EndpointConfig, clock: Callable[[], float]) -> None:
        # Behind one address may be a fleet; one device has no reason to log in many times at once.
        self.addresses = Attempts(
            config.failures_per_address,
            clock,
            waiting_max=config.waiting_per_address,
            counted_max=config.counted_max,
        )
        self.devices = Attempts(
            config.failures_per_device,
            clock,
            waiting_max=config.failures_per_device,
            counted_max=config.counted_max,
        )
        self.denials = Denials(bus, clock, config.denials_logged)
        self._shared = SharedCounts(store, bus, "devices", self._failed_elsewhere)

    async def run(self) -> None:
        """Share failures with other processes, until cancelled."""
        await self._shared.run()

    def _failed_elsewhere(self, key: tuple[str, ...], number: int) -> None:
        if len(key) == 1:
            self.addresses.count(key[0], number)
        else:
            self.devices.count(key, number)

    def end_address(self, address: str, *, failed: bool) -> None:
        self.addresses.end(address, failed=failed)
        if failed:
            self._shared.add((address,))

    def end_device(self, named: Named, *, failed: bool) -> None:
        self.devices.end(named, failed=failed)
        if failed:
            self._shared.add(named)

    def free(self, address: str, named: Named) -> bool:
        """Say whether a guess may be judged at once, without waiting for the end of others."""
        return self.addresses.free(address) and self.devices.free(named)

    def wrong(self, address: str, named: Named) -> None:
        """Count and tell a wrong password that was judged at once."""
        self.addresses.failed(address)
        self.devices.failed(named)
        self._shared.add((address,))
        self._shared.add(named)
        self.denials.tell(Reason.PASSWORD, *named, address)
