"""Users are known by access tokens; a token carries roles. Kept hashed, in the store's documents.

Format of a token: Drogue's, `drg_` + 6 letters that name it + `_` + 30 random ones + base62 of CRC-32 over all before.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import zlib
from collections.abc import Mapping
from typing import Literal

import msgspec

from dfud.api import DeleteDocument, DfudError, NotFoundError, PeerError, PutDocument, RefusedError, Store
from dfud.registry import audit

COLLECTION = "token"
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

    async def create(
        self, user: str, roles: dict[str, Role], *, by: str, now_s: float, days: int, description: str = ""
    ) -> tuple[Token, str]:
        """Make a token; return what is stored and the token itself, which nobody can show again.

        Its audit entry is committed with it.
        """
        if not user or len(user) > 255 or ":" in user or not user.isprintable():
            raise PeerError("user name: expected 1 to 255 printable characters without a colon")
        if len(description) > 255:
            raise PeerError("description: expected at most 255 characters")
        for app, role in roles.items():
            if role not in ROLES:
                raise PeerError(f"role {role!r} for {app}: expected one of {', '.join(ROLES)}")
        prefix, text = new_token_text()
        token = Token(prefix, user, _hash(text), roles, now_s, now_s + days * 86400.0, description)
        put = PutDocument(COLLECTION, prefix, msgspec.json.encode(token), create=True)
        await self._store.commit([put, audit.entry(now_s, by, "create-token", prefix, user)])
        return token, text

    async def of_token(self, text: str, now_s: float, claimed: str | None = None) -> User | None:
        """Return the user of a token, or None; `claimed` is the name given beside it."""
        stored = await self._store.document(COLLECTION, text[:10]) if len(text) < 128 else None
        token = msgspec.json.decode(stored, type=Token) if stored is not None else None
        right = hmac.compare_digest(_hash(text), token.sha3 if token is not None else "0" * 128)
        if token is None or not right or now_s >= token.expires_s or claimed not in (None, "", token.user):
            return None
        return User(token.user, token.roles, token.prefix)

    async def tokens(self, user: str | None = None) -> list[Token]:
        """Return the tokens of `user`, or all."""
        found: list[Token] = []
        after = ""
        while documents := await self._store.documents(COLLECTION, after=after):
            after = documents[-1][0]
            found += [msgspec.json.decode(value, type=Token) for _, value in documents]
        return [t for t in found if user is None or t.user == user]

    async def delete(self, prefix: str, by: User, now_s: float) -> None:
        """Forget a token. Whoever is not admin of everything may delete his own only."""
        stored = await self._store.document(COLLECTION, prefix)
        token = msgspec.json.decode(stored, type=Token) if stored is not None else None
        if token is None or (token.user != by.name and not by.may("admin", None)):
            raise NotFoundError(f"no token {prefix}")
        if token.roles.get(EVERY_APP) == "admin" and prefix == by.token:
            others = [t for t in await self.tokens() if t.roles.get(EVERY_APP) == "admin" and t.prefix != prefix]
            if not others:
                raise RefusedError("this is the last admin token; make another one first")
        entry = audit.entry(now_s, by.name, "delete-token", prefix, token.user)
        await self._store.commit([DeleteDocument(COLLECTION, prefix), entry])
