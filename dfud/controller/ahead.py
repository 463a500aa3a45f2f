"""Packages that are made before a device asks for them, one after the other, so that devices that ask have the workers."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable

import trio

from dfud.api import StoreError, contained
from dfud.controller.packages import Busy, Packages
from dfud.controller.sending import Order

log = logging.getLogger("dfud")
WAITING_MAX = 1000
BUSY_S = 2.0
PROBLEMS_MAX = 1000


class Ahead:
    """What is not made when dfud ends is made when a device asks for it."""

    def __init__(self, packages: Packages) -> None:
        self._packages = packages
        self._waiting: OrderedDict[str, Order] = OrderedDict()
        self._problems: OrderedDict[str, str] = OrderedDict()
        self._news = trio.Event()
        self._working = ""

    def add(self, orders: Iterable[Order]) -> None:
        """Have these made, in this order. Those that are beyond the limit are made when a device asks. Never blocks."""
        for order in orders:
            key = self._packages.key(order)
            if key not in self._waiting and len(self._waiting) < WAITING_MAX:
                self._problems.pop(key, None)
                self._waiting[key] = order
        self._news.set()

    def is_waiting(self, order: Order) -> bool:
        return self._packages.key(order) in self._waiting

    def problem(self, order: Order) -> str:
        """Return why a package could not be made when it was tried last, or ""."""
        return self._problems.get(self._packages.key(order), "")

    async def run(self) -> None:
        """Make what is wanted until cancelled."""
        while True:
            while self._waiting:
                key, order = next(iter(self._waiting.items()))
                with contained("packages.ahead", app=order.target.app, firmware=order.target.version):
                    await self._make(key, order)
                self._waiting.pop(key, None)
            self._news = trio.Event()
            if not self._waiting:
                await self._news.wait()

    async def _make(self, key: str, order: Order) -> None:
        while True:
            try:
                await self._packages.quiet()  # devices that wait for one of their own go first
                # Nobody's device: a name that none can have.
                await self._packages.get(order, (order.target.app, f"\0ahead {key}"))
            except Busy:
                await trio.sleep(BUSY_S)
            except StoreError as error:
                self._problems[key] = str(error)
                if len(self._problems) > PROBLEMS_MAX:
                    self._problems.popitem(last=False)
                return
            else:
                return
