"""Users whom an OpenID Connect issuer vouches for: bearer tokens that are JWTs. joserfc does the JOSE, httpx fetches the keys.

Source: OpenID Connect Discovery 1.0; RFC 7517 (keys), 7519 (claims), 8725 (what to be careful of). Nothing is fetched before
somebody shows a token, and never more often than every FETCH_AGAIN_S.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
import msgspec
import trio

from dfud.api import UNDECODABLE, Cache, ConfigError, Section, StoreError
from dfud.model.address import is_loopback
from dfud.registry.users import ROLES, Role, User

log = logging.getLogger("dfud.registry")
Meta = msgspec.Meta
S = {"unit": "s"}
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA")
TOKEN_MAX_BYTES = 8192
DOCUMENT_MAX_BYTES = 1 << 18
KEYS_MAX = 64
CHUNK_BYTES = 1 << 14
FETCH_AGAIN_S = 30.0
USER_MAX = 200
EXPIRES_MAX_S = 1e11


class OidcConfig(msgspec.Struct, frozen=True):
    issuer: Annotated[
        str, Meta(description="URL of the OpenID Connect issuer whose bearer tokens are accepted; empty: none are")
    ] = ""
    audience: Annotated[str, Meta(description="what the tokens' `aud` must hold; needed with an issuer")] = ""
    ca: Annotated[str, Meta(description="PEM file of the CA of the issuer's certificate; empty: the system's")] = ""
    user_claim: Annotated[str, Meta(description="claim that names the user")] = "sub"
    roles_claim: Annotated[
        str, Meta(description="claim with the user's groups or roles, text or a list; dots go into maps")
    ] = "roles"
    roles: Annotated[
        list[str],
        Meta(description='what they stand for: "VALUE:APP=ROLE", APP may be *; a user with none of them is refused'),
    ] = msgspec.field(default_factory=list)
    algorithms: Annotated[
        list[str], Meta(description=f"signature algorithms that are accepted, of {', '.join(ALGORITHMS)}")
    ] = msgspec.field(default_factory=lambda: ["RS256", "ES256", "Ed25519", "EdDSA"])
    leeway_s: Annotated[float, Meta(description="how far the clocks may differ", ge=0, le=300, extra=S)] = 30.0
    keys_s: Annotated[
        float,
        Meta(description="life of the issuer's keys before they are fetched again", ge=30, le=604800, extra=S),
    ] = 3600.0
    tokens_known: Annotated[
        int, Meta(description="tokens that are remembered as right; others are judged anew", ge=16, le=10_000_000)
    ] = 10_000
    fetch_s: Annotated[float, Meta(description="time the issuer has to answer", ge=0.1, le=60, extra=S)] = 5.0


SECTION = Section("oidc", OidcConfig, "Users of an OpenID Connect issuer, beside those with access tokens.")


def parse_roles(config: OidcConfig) -> dict[str, dict[str, Role]]:
    """Return claim value to app to role. Raises ConfigError that names the entry."""
    found: dict[str, dict[str, Role]] = {}
    for entry in config.roles:
        value, colon, grant = entry.rpartition(":")
        app, equals, role = grant.partition("=")
        known = next((r for r in ROLES if r == role), None)
        if not (colon and equals and value and app) or known is None:
            raise ConfigError(
                f'[oidc] roles {entry[:80]!r}, expected "VALUE:APP=ROLE" with a role of {", ".join(ROLES)}'
            )
        found.setdefault(value, {})[app] = known
    return found


class Oidc:
    """Judges tokens of one issuer. `client` makes what it fetches with; tests give their own."""

    def __init__(
        self,
        config: OidcConfig,
        now: Callable[[], float],
        client: Callable[[], httpx.AsyncClient] | None = None,
    ) -> None:
        """Raises ConfigError for what cannot be right."""
        try:
            import joserfc.jwk
        except ImportError as error:
            raise ConfigError("[oidc] issuer needs joserfc: pip install dfud[users]") from error
        self._jwk = joserfc.jwk
        self._config = config
        self._now = now
        self._issuer = config.issuer
        if not _trustworthy(config.issuer):
            raise ConfigError(f"[oidc] issuer {config.issuer!r}, expected an https URL (http on the loopback only)")
        if not config.audience:
            raise ConfigError("[oidc] audience is missing: tokens made for others would be accepted")
        for name in config.algorithms:
            if name not in ALGORITHMS:
                raise ConfigError(f"[oidc] algorithms {name!r}, expected some of {', '.join(ALGORITHMS)}")
        self._roles = parse_roles(config)
        self._client = client or self._make_client
        self._keys: dict[str, Any] = {}
        self._fetched_s = -math.inf
        self._tried_s = -math.inf
        self._fetching = trio.Lock()
        # What was judged right, with its end: judging again costs a signature. New keys end it, as they may leave one out.
        self._known: Cache[bytes, tuple[User, float]] = Cache(config.tokens_known)

    def _make_client(self) -> httpx.AsyncClient:
        # Redirects are not followed: the keys come from where the issuer says, and from nowhere else.
        # Nothing compressed is asked for: a kilobyte of it could be a gigabyte.
        return httpx.AsyncClient(
            verify=self._config.ca or True, timeout=self._config.fetch_s, headers={"accept-encoding": "identity"}
        )

    def known(self, token: str) -> User | None:
        """Return whom a token speaks for that was judged before and is still good, at the cost of a hash."""
        if len(token) > TOKEN_MAX_BYTES:
            return None
        found = self._known.get(_digest(token))
        if found is None or self._now() >= found[1] or self._due() or self._too_old():
            return None
        return found[0]

    def _age_s(self, at_s: float) -> float:
        """Return how long ago that was; a clock that was set back since makes it for ever."""
        age_s = self._now() - at_s
        return age_s if age_s >= 0 else math.inf

    def _due(self) -> bool:
        """Say whether the keys are to be fetched again before anything is judged by them."""
        return self._age_s(self._fetched_s) >= self._config.keys_s and self._age_s(self._tried_s) >= FETCH_AGAIN_S

    def _too_old(self) -> bool:
        """Say whether the issuer was away for so long that its keys count no more: who is away takes no key back either."""
        return self._age_s(self._fetched_s) >= 2 * self._config.keys_s

    async def user(self, token: str) -> User | None:
        """Return whom the token speaks for, or None. Raises StoreError(retryable) if the keys cannot be had."""
        if len(token) > TOKEN_MAX_BYTES:
            return None
        if (before := self.known(token)) is not None:
            return before
        found = await self._judge(token)
        return found[0] if found is not None else None

    async def _judge(self, token: str) -> tuple[User, float] | None:
        """Return whom the token speaks for and until when, or None. Raises StoreError."""
        from joserfc import errors, jws, jwt

        try:
            header = jws.extract_compact(token.encode("ascii")).headers()
            algorithm, kid = header.get("alg"), header.get("kid")
            if algorithm not in self._config.algorithms:
                return None
            key = await self._key(kid if isinstance(kid, str) else None)
            if key is None:
                return None
            claims = jwt.decode(token, key, algorithms=[str(algorithm)]).claims
            now_s = int(self._now())
            jwt.JWTClaimsRegistry(
                now=lambda: now_s,
                leeway=int(self._config.leeway_s),
                iss={"essential": True, "value": self._issuer},
                aud={"essential": True, "value": self._config.audience},
                exp={"essential": True},
            ).validate(claims)
        except (errors.JoseError, ValueError, TypeError, KeyError, RecursionError):
            return None  # why is nobody's business; which library calls which of them is its own
        user, expires = self._user(claims), claims.get("exp")
        if user is None or not isinstance(expires, int | float) or not 0 <= expires <= EXPIRES_MAX_S:
            return None  # not a number (NaN compares as nothing), or one that no clock reaches
        found = (user, float(expires) + int(self._config.leeway_s))
        self._known.put(_digest(token), found)  # nothing was awaited since its key was found
        return found

    def _user(self, claims: Mapping[str, Any]) -> User | None:
        name = claims.get(self._config.user_claim)
        if not isinstance(name, str) or not 1 <= len(name) <= USER_MAX or not name.isprintable():
            return None
        value: Any = claims
        for part in self._config.roles_claim.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        roles: dict[str, Role] = {}
        for group in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
            for app, role in self._roles.get(group, {}).items() if isinstance(group, str) else ():
                if app not in roles or ROLES.index(role) > ROLES.index(roles[app]):
                    roles[app] = role
        # The colon keeps it apart from every user of an access token, who can have none in his name.
        return User(f"oidc:{name}", roles) if roles else None

    async def _key(self, kid: str | None) -> Any:
        """Return the key of this name, fetching if it is unknown or what there is has become old."""
        if self._due() or self._find(kid) is None:
            async with self._fetching:
                if self._due() or (self._find(kid) is None and self._age_s(self._tried_s) >= FETCH_AGAIN_S):
                    self._tried_s = self._now()
                    await self._fetch()
        if self._too_old():
            raise StoreError("the issuer of the tokens cannot be reached", retryable=True)
        return self._find(kid)

    def _find(self, kid: str | None) -> Any:
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    async def _fetch(self) -> None:
        """Replace the keys by the issuer's; on failure leave them as they are and say so in the log."""
        try:
            with trio.fail_after(self._config.fetch_s):
                async with self._client() as client:
                    about = await _document(client, self._issuer.rstrip("/") + "/.well-known/openid-configuration")
                    where = about.get("jwks_uri")
                    if about.get("issuer") != self._issuer:
                        raise ValueError("the discovery document is another issuer's")
                    if not isinstance(where, str) or not _trustworthy(where):
                        raise ValueError("jwks_uri is no https URL")
                    self._keys = self._usable(await _document(client, where))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, trio.TooSlowError) as error:
            log.warning("the issuer's keys were not fetched", extra={"issuer": self._issuer, "error": str(error)[:200]})
            return
        self._fetched_s = self._now()
        self._known.forget_all()
        log.info("the issuer's keys were fetched", extra={"issuer": self._issuer, "keys": len(self._keys)})

    def _usable(self, document: Mapping[str, Any]) -> dict[str, Any]:
        listed = document.get("keys")
        found: dict[str, Any] = {}
        for entry in listed[:KEYS_MAX] if isinstance(listed, list) else ():
            # Shared secrets have no place in a public document; a key for encrypting signs nothing.
            if not isinstance(entry, dict) or entry.get("kty") == "oct" or entry.get("use", "sig") != "sig":
                continue
            try:
                key = self._jwk.import_key(entry)
                if key.is_private:
                    continue
            except (
                Exception
            ) as error:  # the library raises its own and cryptography's, and one bad key must not cost the others
                log.warning("a key of the issuer's was left out", extra={"error": type(error).__name__})
                continue
            kid = entry.get("kid")
            found[kid if isinstance(kid, str) else f"\0{len(found)}"] = key
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def looks_like_jwt(token: str) -> bool:
    return token.count(".") == 2


async def _document(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """Fetch a JSON object of at most DOCUMENT_MAX_BYTES. Raises httpx.HTTPError, ValueError."""
    async with client.stream("GET", url) as answer:
        if answer.status_code != 200:
            raise ValueError(f"{url} answered {answer.status_code}")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise ValueError(f"{url} answered compressed, which was not asked for")
        data = bytearray()
        async for piece in answer.aiter_raw(CHUNK_BYTES):
            data += piece
            if len(data) > DOCUMENT_MAX_BYTES:
                raise ValueError(f"{url} answered more than {DOCUMENT_MAX_BYTES} bytes")
    try:
        found = msgspec.json.decode(data)
    except UNDECODABLE:
        raise ValueError(f"{url} did not answer with JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"{url} did not answer with a JSON object")
    return found


def _trustworthy(url: str) -> bool:
    """Say whether what this URL gives cannot be changed on the way."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host)
    return parts.scheme == "http" and is_loopback(host)
