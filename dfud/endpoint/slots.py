"""Devices that were right, and the answers of calm polls, for a million of them: a slot each in a few arrays.

Nothing here is an object that a collection of garbage would have to look at, so its pauses do not grow with the fleet. A slot is
found by a keyed digest of what the device showed; no secret is kept. Slots are given up by use: a hand goes round and takes the
first one that was not used since it came by last. Pure: no I/O, no clock.
"""

from __future__ import annotations

import hashlib
import secrets
from array import array

from dfud.api import Credentials, Reply

DIGEST_BYTES = 16
SHARDS = 256  # a dictionary that grows copies itself: so many are copied one at a time
REPLIES_MAX = 4096  # equal answers that are kept once


def _proof(*parts: bytes | str) -> bytes:
    """Return parts as one text that no other parts make."""
    texts = [part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part for part in parts]
    return b"".join(b"%d:%s" % (len(text), text) for text in texts)


class Slots:
    """Up to `limit` of them.

    An app's devices are forgotten at once by raising its epochs: `session` for who they are, `calm` for what they were answered.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._key = secrets.token_bytes(32)
        self._slots: tuple[dict[bytes, int], ...] = tuple({} for _ in range(SHARDS))
        self._of_name: tuple[dict[str, int | tuple[int, ...]], ...] = tuple({} for _ in range(SHARDS))
        self._free: array[int] = array("L")
        self._hand = 0
        # One entry a slot; a slot that is free has no digest.
        self._digest: list[bytes] = []
        self._name: list[str] = []
        self._used = bytearray()
        self._app: array[int] = array("L")
        self._session_epoch: array[int] = array("L")
        self._calm_epoch: array[int] = array("L")
        self.ends_s: array[float] = array("d")  # until when a certificate is valid, on the wall clock; 0: there is none
        self._said: array[int] = array("q")
        self._until_s: array[float] = array("d")
        self._poll_s: array[int] = array("L")
        self._reply: list[Reply | None] = []
        # One entry an app.
        self._apps: dict[str, int] = {}
        self._session_epochs: array[int] = array("L")
        self._calm_epochs: array[int] = array("L")
        self._replies: dict[Reply, Reply] = {}

    def __len__(self) -> int:
        return len(self._digest) - len(self._free)

    def digest(self, c: Credentials, as_device: str = "") -> bytes:
        """Return what stands for what a device has shown."""
        if c.certificate or c.application or c.device or c.identity or as_device:
            parts = _proof(c.authorization, c.certificate, c.application, c.device, c.identity, as_device)
            return hashlib.blake2b(parts, digest_size=DIGEST_BYTES, key=self._key, person=b"parts").digest()
        return hashlib.blake2b(c.authorization, digest_size=DIGEST_BYTES, key=self._key).digest()

    def find(self, digest: bytes) -> int:
        """Return the slot of a device whose session is true, or -1."""
        slot = self._slots[digest[0]].get(digest, -1)
        if slot >= 0:
            if self._session_epoch[slot] != self._session_epochs[self._app[slot]]:
                self._give_up(slot)
                return -1
            self._used[slot] = 1
        return slot

    def session(self, slot: int) -> tuple[str, str, float]:
        """Return app, device, and until when its certificate is valid, on the wall clock; 0: it has none."""
        app, _, device = self._name[slot].partition("\0")
        return app, device, self.ends_s[slot]

    def name(self, slot: int) -> str:
        """Return what tells one device from all others."""
        return self._name[slot]

    def keep(self, digest: bytes, app: str, device: str, ends_s: float) -> int:
        """Remember a session that is known to be true now."""
        slot = self._slots[digest[0]].get(digest, -1)
        if slot >= 0:
            self._give_up(slot)
        slot = self._take()
        number = self._app_number(app)
        name = f"{app}\0{device}"
        self._slots[digest[0]][digest] = slot
        names = self._of_name[hash(name) % SHARDS]
        others = names.get(name)
        if others is None:
            names[name] = slot
        else:
            names[name] = (*others, slot) if isinstance(others, tuple) else (others, slot)
        self._digest[slot] = digest
        self._name[slot] = name
        self._used[slot] = 1
        self._app[slot] = number
        self._session_epoch[slot] = self._session_epochs[number]
        self.ends_s[slot] = ends_s
        self._reply[slot] = None
        return slot

    def calm(self, slot: int, body: bytes, now_s: float) -> Reply | None:
        """Return the answer to this very status, if it is still true. now_s: on the monotonic clock."""
        reply = self._reply[slot]
        if reply is None or self._said[slot] != hash(body) or now_s >= self._until_s[slot]:
            return None
        return reply if self._calm_epoch[slot] == self._calm_epochs[self._app[slot]] else None

    def poll_s(self, slot: int) -> int:
        return self._poll_s[slot]

    def keep_calm(self, slot: int, body: bytes, reply: Reply, until_s: float, poll_s: int) -> None:
        """Remember an answer that is known to be true now, until something changes or `until_s` on the monotonic clock.

        Of the body a hash is kept: it is compared with what the same device says later, and with nothing else.
        """
        self._said[slot] = hash(body)
        if self._reply[slot] is not reply:
            self._reply[slot] = self._once(reply)
        self._until_s[slot] = until_s
        self._poll_s[slot] = poll_s
        self._calm_epoch[slot] = self._calm_epochs[self._app[slot]]

    def forget_calm(self, app: str, device: str) -> None:
        """What a device was answered is no longer true."""
        for slot in self._all_of(app, device):
            self._reply[slot] = None

    def forget(self, app: str, device: str) -> None:
        """Who it is may no longer be true, nor what it was answered."""
        for slot in self._all_of(app, device):
            self._give_up(slot)

    def forget_all(self) -> None:
        """Nothing may be true any longer."""
        for number in range(len(self._session_epochs)):
            self._session_epochs[number] += 1

    def forget_all_calm(self) -> None:
        for number in range(len(self._calm_epochs)):
            self._calm_epochs[number] += 1

    def forget_app(self, app: str) -> None:
        number = self._apps.get(app)
        if number is not None:
            self._session_epochs[number] += 1

    def forget_app_calm(self, app: str) -> None:
        number = self._apps.get(app)
        if number is not None:
            self._calm_epochs[number] += 1

    def _all_of(self, app: str, device: str) -> tuple[int, ...]:
        name = f"{app}\0{device}"
        found = self._of_name[hash(name) % SHARDS].get(name, ())
        return found if isinstance(found, tuple) else (found,)

    def _app_number(self, app: str) -> int:
        number = self._apps.get(app)
        if number is None:
            number = self._apps[app] = len(self._apps)
            self._session_epochs.append(0)
            self._calm_epochs.append(0)
        return number

    def _once(self, reply: Reply) -> Reply:
        found = self._replies.get(reply)
        if found is not None:
            return found
        if len(self._replies) < REPLIES_MAX:
            self._replies[reply] = reply
        return reply

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        if len(self._digest) < self._limit:
            self._digest.append(b"")
            self._name.append("")
            self._used.append(0)
            for numbers in (self._app, self._session_epoch, self._calm_epoch, self._said, self._poll_s):
                numbers.append(0)
            self.ends_s.append(0.0)
            self._until_s.append(0.0)
            self._reply.append(None)
            return len(self._digest) - 1
        slot = self._used.find(0, self._hand)
        if slot < 0:
            self._used[self._hand :] = bytes(self._limit - self._hand)
            self._hand = 0
            slot = max(0, self._used.find(0))
        self._used[self._hand : slot] = bytes(slot - self._hand)
        self._hand = (slot + 1) % self._limit
        self._give_up(slot)
        return self._free.pop()

    def _give_up(self, slot: int) -> None:
        digest, name = self._digest[slot], self._name[slot]
        if not digest:
            return
        del self._slots[digest[0]][digest]
        names = self._of_name[hash(name) % SHARDS]
        left = tuple(other for other in self._all_of(*name.split("\0", 1)) if other != slot)
        if not left:
            del names[name]
        else:
            names[name] = left[0] if len(left) == 1 else left
        self._digest[slot] = b""
        self._name[slot] = ""
        self._reply[slot] = None
        self._used[slot] = 0
        self._free.append(slot)
