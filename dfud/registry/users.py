"""Users are known by access tokens; a token carries roles. Kept hashed, in the store's documents.

Format of a token: Drogue's, `drg_` + 6 letters that name it + `_` + 30 random ones + base62 of CRC-32 over all before.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Literal

import msgspec

from dfud.api import (
    Change,
    ConflictError,
    DeleteDocument,
    DfudError,
    NotFoundError,
    PeerError,
    PutDocument,
    RefusedError,
    Store,
    UnreadableError,
    read_record,
)
from dfud.model.names import check_app_name, check_name
from dfud.model.text import hidden
from dfud.registry import audit, guards

COLLECTION = "token"
GUARD = "admin-tokens"
DESCRIPTION_MAX_BYTES = 255
ROLES_MAX = 100
TRIES = 8
PREFIX_LENGTH = 10
_PREFIX = re.compile(r"drg_[0-9A-Za-z]{6}")
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
Role = Literal["reader", "manager", "admin"]
ROLES: tuple[Role, ...] = ("reader", "manager", "admin")
EVERY_APP = "*"


class Forbidden(DfudError):
    """Not with this token."""


class Token(msgspec.Struct, frozen=True):
    """What is stored of a token. roles: app name, or "*" for all, to role. Times are seconds since the epoch."""

    prefix: str
    user: str
    sha3: str
    roles: dict[str, Role]
    created_s: float
    expires_s: float
    description: str = ""


class User(msgspec.Struct, frozen=True):
    """Somebody whose token was right."""

    name: str
    roles: Mapping[str, Role]
    token: str = ""

    def may(self, role: Role, app: str | None) -> bool:
        """Say whether this user has at least `role` for `app` (None: for dfud as a whole)."""
        found = [self.roles.get(EVERY_APP)] + ([self.roles.get(app)] if app is not None else [])
        return any(r is not None and ROLES.index(r) >= ROLES.index(role) for r in found)

    def sees(self, app: str) -> bool:
        return self.may("reader", app)


def new_token_text() -> tuple[str, str]:
    """Return (prefix, whole token)."""
    prefix = "drg_" + "".join(secrets.choice(_LETTERS) for _ in range(6))
    text = prefix + "_" + "".join(secrets.choice(_LETTERS) for _ in range(30))
    return prefix, text + checksum(text)


def checksum(text: str) -> str:
    value, out = zlib.crc32(text.encode()), ""
    while value:
        value, digit = divmod(value, 62)
        out = _LETTERS[digit] + out
    return out or "0"


def _hash(token: str) -> str:
    return hashlib.sha3_512(token.encode("utf-8", "surrogatepass")).hexdigest()


class Users:
    """Owns the tokens of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._limits = guards.Guarded(store)

    async def check_apps(self, roles: Collection[str]) -> None:
        """Raise PeerError or NotFoundError for roles of an app that there is not: a typing error, or a right on what comes later."""
        if len(roles) > ROLES_MAX:
            raise PeerError(f"roles: {len(roles)}, expected at most {ROLES_MAX}")
        for app in roles:
            if app != EVERY_APP:
                check_app_name(app)
                with suppress(UnreadableError):  # it is there
                    if await self._store.app(app) is None:
                        raise NotFoundError(f"roles: no app {app}; create it first")

    async def create(
        self,
        user: str,
        roles: dict[str, Role],
        *,
        by: str,
        now_s: float,
        days: int,
        description: str = "",
        most: int | None = None,
    ) -> tuple[Token, str]:
        """Make a token; return what is stored and the token itself, which nobody can show again.

        most: tokens that the user may have, expired ones included. Its audit entry is committed with it.
        """
        check_name("user", user)
        if len(description.encode("utf-8", "surrogatepass")) > DESCRIPTION_MAX_BYTES or any(map(hidden, description)):
            raise PeerError(f"description: expected at most {DESCRIPTION_MAX_BYTES} bytes of printable characters")
        if len(roles) > ROLES_MAX:
            raise PeerError(f"roles: {len(roles)}, expected at most {ROLES_MAX}")
        for app, role in roles.items():
            if app != EVERY_APP:
                check_app_name(app)
            if role not in ROLES:
                raise PeerError(f"role {role!r} for {app}: expected one of {', '.join(ROLES)}")
        told = (
            f"{user}: {', '.join(f'{role} of {app}' for app, role in sorted(roles.items())) or 'no roles'}, {days} days"
        )
        prefix, text = new_token_text()
        token = Token(
            prefix=prefix,
            user=user,
            sha3=_hash(text),
            roles=roles,
            created_s=now_s,
            expires_s=now_s + days * 86400.0,
            description=description,
        )
        put = PutDocument(COLLECTION, prefix, msgspec.json.encode(token), create=True)

        async def judged() -> Sequence[Change]:
            if most is not None and len(await self.tokens(user)) >= most:
                raise RefusedError(
                    f"user {user} has {most} tokens already, the most that one may have; delete one first"
                )
            return [put, audit.entry(now_s, by, "create-token", prefix, told)]

        await self._limits.commit(f"tokens of {user}", judged)
        return token, text

    async def of_token(self, text: str, now_s: float, claimed: str | None = None) -> User | None:
        """Return the user of a token, or None; `claimed` is the name given beside it."""
        prefix = text[:PREFIX_LENGTH]
        looked_up = len(text) < 128 and _PREFIX.fullmatch(prefix) is not None
        token = await self._token(prefix) if looked_up else None
        right = hmac.compare_digest(_hash(text), token.sha3 if token is not None else "0" * 128)
        if token is None or not right or now_s >= token.expires_s or claimed not in (None, "", token.user):
            return None
        return User(token.user, token.roles, token.prefix)

    async def _token(self, prefix: str) -> Token | None:
        stored = await self._store.document(COLLECTION, prefix)
        return _read(prefix, stored) if stored is not None else None

    async def tokens(self, user: str | None = None) -> list[Token]:
        """Return the tokens of `user`, or all."""
        found: list[Token] = []
        after = ""
        while documents := await self._store.documents(COLLECTION, after=after):
            after = documents[-1][0]
            found += [token for prefix, value in documents if (token := _read(prefix, value)) is not None]
        return [t for t in found if user is None or t.user == user]

    async def delete(self, prefix: str, by: User, now_s: float) -> None:
        """Forget a token: oneself's, one of one's own that may no more than this one, or as admin of everything any.

        Never the last admin token that is still good: nobody could make another. Raises NotFoundError, Forbidden, RefusedError.
        """
        for _ in range(TRIES):
            # Taken before anything is read: of two admins who end each other's token, one comes second.
            guard = await guards.take(self._store, GUARD)
            stored = await self._store.document(COLLECTION, prefix) if _PREFIX.fullmatch(prefix) else None
            token = _read(prefix, stored) if stored is not None else None
            if stored is not None and token is None and by.may("admin", None):
                token = Token(prefix, "", "", {}, now_s, now_s)  # it cannot be read, and so may nothing
            if token is None or (token.user != by.name and not by.may("admin", None)):
                raise NotFoundError(f"no token {prefix[:40]!r}")
            if prefix != by.token and not _at_most(token.roles, by):
                raise Forbidden(f"token {prefix} may more than the one that you use: only an admin deletes it")
            changes: list[Change] = [DeleteDocument(COLLECTION, prefix)]
            if _is_admin(token, now_s):
                if not any(_is_admin(other, now_s) for other in await self.tokens() if other.prefix != prefix):
                    raise RefusedError("this is the last admin token; make another one first")
                changes += guard
            entry = audit.entry(now_s, by.name, "delete-token", prefix, token.user)
            try:
                await self._store.commit([*changes, entry])
            except (ConflictError, NotFoundError):
                continue  # the token or the guard is not what it was
            return
        raise ConflictError("tokens are being deleted by others; try again")


def _is_admin(token: Token, now_s: float) -> bool:
    return token.roles.get(EVERY_APP) == "admin" and now_s < token.expires_s


def _at_most(roles: Mapping[str, Role], by: User) -> bool:
    return all(by.may(role, None if app == EVERY_APP else app) for app, role in roles.items())


def _read(prefix: str, stored: bytes) -> Token | None:
    """Return a stored token, or None for one that cannot be read: it is nobody's."""
    return read_record("users.token", stored, Token, token=prefix)
