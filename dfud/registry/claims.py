"""Claim codes: with one, a device that nobody has registered makes itself known, once. Kept hashed, in the store's documents.

Each use that is left is a document of its own, and using it up is deleting it in the commit that makes the device: so no
use is spent twice, whoever races, and none is spent without a device.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from dfud.api import (
    Change,
    ConflictError,
    DeleteDocument,
    Device,
    Metadata,
    NotFoundError,
    PeerError,
    PutDocument,
    RefusedError,
    Store,
    UnreadableError,
    read_record,
)
from dfud.model.names import check_device_name
from dfud.model.resources import is_disabled
from dfud.registry import audit, guards
from dfud.registry.device_secrets import is_secret_of
from dfud.registry.registry import Registry
from dfud.registry.rules import RecordLimits, check_metadata_untrusted

CLAIMS, USES = "claim", "claim-use"
USES_MAX = 1000
HOURS_MAX = 24 * 365
TRIES = 8
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH = 10  # "dfc_" and six letters


class Claim(msgspec.Struct, frozen=True):
    """What is stored of a claim code. device: the only name that it is good for, or "". Times are seconds since the epoch."""

    id: str
    app: str
    app_uid: str
    sha3: str
    by: str
    created_s: float
    expires_s: float
    uses: int
    device: str = ""
    labels: dict[str, str] = {}


def _hash(code: str) -> str:
    return hashlib.sha3_512(code.encode("utf-8", "surrogatepass")).hexdigest()


def new_code() -> tuple[str, str]:
    """Return (id, whole code); the part behind the id has 131 random bits."""
    name = "dfc_" + "".join(secrets.choice(_LETTERS) for _ in range(_ID_LENGTH - 4))
    return name, name + "_" + "".join(secrets.choice(_LETTERS) for _ in range(22))


class Claims:
    """Owns the claim codes of a store. credential_key: under which device secrets are hashed."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        credential_key: bytes,
        now: Callable[[], float],
        limits: RecordLimits | None = None,
    ) -> None:
        self._registry = registry
        self._store = store
        self._key = credential_key
        self._now = now
        self._limits = limits or RecordLimits()
        self._guarded = guards.Guarded(store)

    async def create(
        self,
        app: str,
        by: str,
        *,
        uses: int = 1,
        hours: int = 24,
        device: str = "",
        labels: dict[str, str] | None = None,
        most: int | None = None,
    ) -> tuple[Claim, str]:
        """Make a code; return what is stored and the code itself, which nobody can show again.

        most: codes that the app may have, used up and expired ones included. Raises PeerError, RefusedError.
        """
        if not 1 <= uses <= USES_MAX:
            raise PeerError(f"uses {uses}: expected 1 to {USES_MAX}")
        if not 1 <= hours <= HOURS_MAX:
            raise PeerError(f"hours {hours}: expected 1 to {HOURS_MAX}")
        if device:
            check_device_name(device)
            if uses != 1:
                raise PeerError("a claim for one device has one use")
        check_metadata_untrusted(Metadata("", labels=labels or {}), self._limits)
        parent = await self._registry.app(app)
        now_s = self._now()
        name, code = new_code()
        claim = Claim(
            id=name,
            app=app,
            app_uid=parent.metadata.uid,
            sha3=_hash(code),
            by=by,
            created_s=now_s,
            expires_s=now_s + hours * 3600.0,
            uses=uses,
            device=device,
            labels=labels or {},
        )
        changes: list[Change] = [PutDocument(CLAIMS, f"{app}/{name}", msgspec.json.encode(claim), create=True)]
        changes += [PutDocument(USES, f"{app}/{name}/{n:04}", b"", create=True) for n in range(uses)]
        told = f"{uses} uses, {hours} hours" + (f", for {device}" if device else "")

        async def judged() -> Sequence[Change]:
            if most is not None and await self._count(app) >= most:
                raise RefusedError(
                    f"app {app} has {most} claim codes already, the most that it may have; delete one first"
                )
            return [*changes, audit.entry(now_s, by, "create-claim", f"{app}/{name}", told)]

        await self._guarded.commit(f"claims of {app}", judged)
        return claim, code

    async def all_of(self, app: str) -> list[tuple[Claim, int]]:
        """Return the claims of an app with the uses that are left of each."""
        parent = await self._registry.app(app)
        found: list[tuple[Claim, int]] = []
        after = ""
        while documents := await self._store.documents(CLAIMS, prefix=f"{app}/", after=after or f"{app}/"):
            after = documents[-1][0]
            for key, value in documents:
                claim = _read(key, value)
                if claim is not None and claim.app_uid == parent.metadata.uid:
                    found.append((claim, len(await self._uses(claim.app, claim.id))))
        return found

    async def delete(self, app: str, name: str, by: str) -> None:
        """End a claim; a device that uses it at this very moment has either done so or is refused."""
        for _ in range(TRIES):
            stored = await self._store.document(CLAIMS, f"{app}/{name}")
            if stored is None:
                break
            changes: list[Change] = [DeleteDocument(CLAIMS, f"{app}/{name}")]
            changes += [DeleteDocument(USES, key) for key in await self._uses(app, name)]
            try:
                await self._store.commit([*changes, audit.entry(self._now(), by, "delete-claim", f"{app}/{name}")])
            except NotFoundError:
                continue  # a use was spent meanwhile
            return
        raise NotFoundError(f"no claim {name} in app {app}")

    async def forget(self, before_s: float) -> int:
        """Forget the codes of all apps that expired before a time, or whose app is gone; return how many."""
        forgotten = 0
        after = ""
        while documents := await self._store.documents(CLAIMS, after=after):
            after = documents[-1][0]
            for key, value in documents:
                claim = _read(key, value)
                if claim is None or (claim.expires_s >= before_s and await self._has_app(claim)):
                    continue
                uses = await self._uses(claim.app, claim.id)
                # A use that is spent meanwhile fails this, and the next time is as good.
                with suppress(NotFoundError):
                    await self._store.commit(
                        [DeleteDocument(CLAIMS, key), *(DeleteDocument(USES, use) for use in uses)]
                    )
                    forgotten += 1
        return forgotten

    async def _has_app(self, claim: Claim) -> bool:
        try:
            app = await self._store.app(claim.app)
        except UnreadableError:
            return True
        return app is not None and app.metadata.uid == claim.app_uid

    async def enrol(self, app: str, device: str, code: str, secret: str) -> bool:
        """Make `device` with `secret`, or find it made so before (the answer was lost); else return False, for any reason.

        One use of the claim is spent together with the making, or not at all. Raises PeerError for a name that no new device may
        have, StoreError.
        """
        check_device_name(device)
        parent = await self._store.app(app)
        key = f"{app}/{code[:_ID_LENGTH]}"
        stored = await self._store.document(CLAIMS, key)
        claim = _read(key, stored) if stored is not None else None
        right = hmac.compare_digest(_hash(code), claim.sha3 if claim is not None else "0" * 128)
        if parent is None or parent.metadata.deletion_timestamp or is_disabled(parent.spec):
            return False
        if await self._store.find_alias(app, device) is not None:
            return await self._made_before(app, device, secret)
        if claim is None or not right or self._now() >= claim.expires_s or claim.app_uid != parent.metadata.uid:
            return False
        if claim.device not in ("", device):
            return False
        given = Device(
            Metadata(device, app, labels=claim.labels), {"authentication": {"credentials": [{"pass": secret}]}}
        )
        for _ in range(TRIES):
            left = await self._uses(claim.app, claim.id)
            if not left:
                return False
            spend = DeleteDocument(USES, secrets.choice(left))
            try:
                await self._registry.create_device(app, given, f"claim {claim.id}", also=[spend], what="enrol")
            except NotFoundError:
                continue  # somebody else spent it
            except ConflictError:
                return await self._made_before(app, device, secret)
            return True
        return False

    async def _made_before(self, app: str, device: str, secret: str) -> bool:
        view = await self._store.device(app, device)
        if view is None or is_disabled(view.device.spec):
            return False
        return is_secret_of(view.device.spec, secret, self._key)  # whoever enrolled has a keyed hash

    async def _uses(self, app: str, name: str) -> list[str]:
        prefix = f"{app}/{name}/"
        return [key for key, _ in await self._store.documents(USES, prefix=prefix, after=prefix, limit=USES_MAX)]

    async def _count(self, app: str) -> int:
        found = 0
        after = f"{app}/"
        while documents := await self._store.documents(CLAIMS, prefix=f"{app}/", after=after):
            after = documents[-1][0]
            found += len(documents)
        return found


def _read(key: str, stored: bytes) -> Claim | None:
    """Return a stored claim, or None for one that cannot be read: it lets nobody in, and can be deleted."""
    return read_record("claims.read", stored, Claim, claim=key)
