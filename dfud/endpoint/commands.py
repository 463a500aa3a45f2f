"""Users' commands on their way to devices: handed to a device that waits, or kept for a while, or refused."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from dfud.api import Code, Reply, Waiting, contained

Wake = Callable[[Reply], None]


class _Kept(msgspec.Struct):
    reply: Reply
    expires_s: float


class Commands:
    """Delivers each command once. now: a clock that only moves forward, so not the wall's.

    queue_length: commands kept for one device; devices_max: devices that any are kept for.
    """

    def __init__(
        self, queue_length: int, expire_s: float, now: Callable[[], float], *, devices_max: int = 100_000
    ) -> None:
        self._length = queue_length
        self._expire_s = expire_s
        self._now = now
        self._devices_max = devices_max
        self._waiting: dict[tuple[str, str], deque[_Waiter]] = {}
        self._kept: dict[tuple[str, str], deque[_Kept]] = {}

    def send(self, app: str, device: str, name: str, payload: bytes, *, expires_s: float | None = None) -> bool:
        """Hand the command to a waiting device, or keep it for `expires_s` (None: the default; 0: do not keep).

        Return whether it was taken.
        """
        key = (app, device)
        reply = Reply(Code.COMMAND, name, payload)
        for waiter in tuple(self._waiting.get(key, ())):
            if waiter.offer(reply):
                return True
        keep_s = self._expire_s if expires_s is None else expires_s
        if not self._length or keep_s <= 0:
            return False
        queue = self._kept.get(key)
        if queue is None:
            if len(self._kept) >= self._devices_max:
                self._forget_expired()
            if len(self._kept) >= self._devices_max:
                return False
            queue = self._kept[key] = deque()
        while queue and queue[0].expires_s <= self._now():
            queue.popleft()
        if len(queue) >= self._length:
            return False
        queue.append(_Kept(reply, self._now() + keep_s))
        return True

    def take(self, app: str, device: str) -> Reply | None:
        """Return the oldest command that is kept for the device, which then is no longer kept."""
        queue = self._kept.get((app, device))
        while queue:
            kept = queue.popleft()
            if not queue:
                self._kept.pop((app, device), None)
            if kept.expires_s > self._now():
                return kept.reply
        return None

    def wait(self, app: str, device: str, timeout_s: float) -> Waiting:
        """Begin to wait for a command; one that comes before `listen()` is not lost."""
        return _Waiter(self, (app, device), timeout_s)

    def drain(self) -> None:
        """Answer everybody who waits: no command."""
        for waiters in list(self._waiting.values()):
            for waiter in tuple(waiters):
                waiter.offer(Reply(Code.ACCEPTED))

    def _forget_expired(self) -> None:
        now_s = self._now()
        for key in [k for k, q in self._kept.items() if all(kept.expires_s <= now_s for kept in q)]:
            del self._kept[key]

    def _add(self, waiter: _Waiter) -> None:
        self._waiting.setdefault(waiter.key, deque()).append(waiter)

    def _remove(self, waiter: _Waiter) -> None:
        waiters = self._waiting.get(waiter.key)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiting[waiter.key]


class _Waiter(Waiting):
    def __init__(self, commands: Commands, key: tuple[str, str], timeout_s: float) -> None:
        self.key = key
        self.timeout_s = timeout_s
        self._commands = commands
        self._wake: Wake | None = None
        self._reply: Reply | None = None
        commands._add(self)

    def offer(self, reply: Reply) -> bool:
        """Take `reply` if none was taken yet; return whether it is on its way."""
        if self._reply is not None:
            return False
        self._reply = reply
        self._commands._remove(self)
        if self._wake is None:
            return True
        with contained("endpoint.command", app=self.key[0], device=self.key[1]) as guard:
            self._wake(reply)
        return guard.error is None

    def listen(self, wake: Wake) -> None:
        self._wake = wake
        if self._reply is not None:
            wake(self._reply)

    def expire(self) -> Reply:
        self._commands._remove(self)
        reply, self._reply = self._reply, self._reply or Reply(Code.ACCEPTED)
        return reply or Reply(Code.ACCEPTED)

    def cancel(self) -> None:
        self._commands._remove(self)
        reply, self._reply = self._reply, Reply(Code.ACCEPTED)
        if reply is not None and reply.code is Code.COMMAND:
            self._commands.send(*self.key, reply.command, reply.body)
