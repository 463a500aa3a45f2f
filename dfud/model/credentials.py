"""Device credentials in spec.authentication, in Drogue's forms: how they are kept and compared. Pure.

Pre-shared keys are needed in clear: they are kept sealed under the same key that passwords are hashed with.

A secret that dfud makes has 128 random bits, so a fast keyed hash is enough: whoever steals the database without the key
cannot even try guesses. Passwords that came as bcrypt or sha512-crypt are compared as they are.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

PSK_BYTES = 16
_FROM_URL, _TO_URL = bytes.maketrans(b"-_", b"+/"), bytes.maketrans(b"+/", b"-_")
SEALED = "sealed"  # in place of `key` in a psk that this module has sealed
KEYED = "dfud"  # the password form that this module writes: {"pass": {"dfud": "<salt>.<mac>"}}
_BCRYPT = re.compile(r"\$2[abxy]?\$([0-9]{2})\$")
_DECOY = {KEYED: "AAAAAAAAAAAA." + "A" * 43 + "="}  # what is compared where there is nothing: as dear, and never right


class PasswordLimits(msgspec.Struct, frozen=True):
    """What one guess may cost, whatever is stored: [endpoint] of dfud.toml.

    forms: passwords of one device, or of one of its users, that are looked at; slow_forms: of these, dear ones. bcrypt_cost: 2^13
    rounds take about half a second, 31 would take days; sha512_rounds: more would let a stranger's attempt cost seconds.
    """

    forms: int = 64
    slow_forms: int = 4
    bcrypt_cost: int = 13
    sha512_rounds: int = 100_000


LIMITS = PasswordLimits()


def new_secret() -> str:
    """Return a fresh 128-bit secret as 22 characters of URL-safe base64."""
    return secrets.token_urlsafe(16)


def keyed_hash(secret: str, key: bytes, salt: bytes | None = None) -> str:
    """Return `<salt>.<mac>` in URL-safe base64: HMAC-SHA256 of salt and secret under `key`."""
    salt = secrets.token_bytes(9) if salt is None else salt
    return f"{base64.urlsafe_b64encode(salt).decode()}.{_keyed_mac(secret, key, salt).decode()}"


def protect(spec: Mapping[str, Any], key: bytes) -> dict[str, Any]:
    """Return a copy of a device's spec in which every plain password has become a keyed hash, every pre-shared key sealed.

    Both of Drogue's places, `authentication` and `credentials`, are treated; what is not understood stays as it is, and
    never matches.
    """
    out = dict(spec)
    for place in ("authentication", "credentials"):
        section = out.get(place)
        if isinstance(section, Mapping) and isinstance(section.get("credentials"), list):
            out[place] = {**section, "credentials": [_protect_one(c, key) for c in section["credentials"]]}
    return out


def _protect_one(credential: Any, key: bytes) -> Any:
    if not isinstance(credential, Mapping):
        return credential
    if "pass" in credential:
        return {**credential, "pass": _protect_password(credential["pass"], key)}
    psk = credential.get("psk")
    if isinstance(psk, Mapping) and isinstance(psk.get("key"), str):
        rest = {name: value for name, value in psk.items() if name != "key"}
        return {**credential, "psk": {SEALED: _seal(psk["key"].encode(), key), **rest}}
    user = credential.get("user")
    if isinstance(user, Mapping) and "password" in user:
        return {**credential, "user": {**user, "password": _protect_password(user["password"], key)}}
    return credential


def _protect_password(password: Any, key: bytes) -> Any:
    plain = password.get("plain") if isinstance(password, Mapping) else password
    return {KEYED: keyed_hash(plain, key)} if isinstance(plain, str) else password


def _sealing(key: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(hmac.digest(key, b"dfud psk 1", "sha256"))


def _seal(plain: bytes, key: bytes) -> str:
    nonce = secrets.token_bytes(12)
    return base64.b64encode(nonce + _sealing(key).encrypt(nonce, plain, None)).decode()


def _unseal(text: str, key: bytes) -> str:
    """Raises ValueError if it was not sealed under this key."""
    data = base64.b64decode(text, validate=True)
    try:
        return _sealing(key).decrypt(data[:12].ljust(12), data[12:], None).decode()
    except InvalidTag:
        raise ValueError("sealed under another key") from None


def credentials_of(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the credentials of a device; `credentials` counts only where `authentication` is absent, as in Drogue."""
    section = spec.get("authentication", spec.get("credentials"))
    items = section.get("credentials") if isinstance(section, Mapping) else None
    return [c for c in items if isinstance(c, Mapping)] if isinstance(items, list) else []


def passwords(spec: Mapping[str, Any], username: str | None) -> Iterator[Any]:
    """Yield the stored forms that a password may match: those of `username`, or the device's own for None."""
    for credential in credentials_of(spec):
        if username is None and "pass" in credential:
            yield credential["pass"]
        user = credential.get("user")
        if username is not None and isinstance(user, Mapping) and user.get("username") == username:
            yield user.get("password")


def _slow(stored: Any) -> bool:
    return isinstance(stored, Mapping) and KEYED not in stored and ("bcrypt" in stored or "sha512" in stored)


def is_slow(spec: Mapping[str, Any], username: str | None, limits: PasswordLimits = LIMITS) -> bool:
    """Say whether verify() may take milliseconds."""
    return any(_slow(stored) for stored in islice(passwords(spec, username), limits.forms))


def verify(
    spec: Mapping[str, Any], username: str | None, password: str, key: bytes, limits: PasswordLimits = LIMITS
) -> bool:
    """Say whether `password` is right. Constant time for keyed hashes; compares at least once, whatever is stored.

    What it costs is bounded by `limits`, whatever is stored.
    """
    right = False
    compared = False
    slow = 0
    for stored in islice(passwords(spec, username), limits.forms):
        compared = True
        if _slow(stored):
            slow += 1
            if slow > limits.slow_forms:
                continue
        right |= _matches(stored, password, key, limits)
    if not compared:
        _matches(_DECOY, password, key, limits)
    return right


def verify_quick(
    spec: Mapping[str, Any], username: str | None, password: str, key: bytes, limits: PasswordLimits = LIMITS
) -> bool | None:
    """As verify(), where that takes microseconds; None where it may take milliseconds."""
    section = spec.get("authentication")
    if username is None and type(section) is dict and type(several := section.get("credentials")) is list:
        # One secret that dfud made, or has hashed, as nearly all devices have it.
        form = several[0].get("pass") if len(several) == 1 and type(several[0]) is dict else None
        if type(form) is dict and len(form) == 1 and type(value := form.get(KEYED)) is str:
            return _keyed_matches(value, password, key)
    if is_slow(spec, username, limits):
        return None
    return verify(spec, username, password, key, limits)


def _keyed_matches(value: str, password: str, key: bytes) -> bool:
    salt, _, mac = value.partition(".")
    try:
        expected = _keyed_mac(password, key, binascii.a2b_base64(salt.encode("ascii").translate(_FROM_URL)))
    except ValueError:
        return False
    return bool(mac) and hmac.compare_digest(expected, mac.encode("utf-8", "surrogatepass"))


def _keyed_mac(secret: str, key: bytes, salt: bytes) -> bytes:
    mac = hmac.digest(key, salt + secret.encode("utf-8", "surrogatepass"), "sha256")
    return binascii.b2a_base64(mac, newline=False).translate(_TO_URL)


def _matches(stored: Any, password: str, key: bytes, limits: PasswordLimits) -> bool:
    if isinstance(stored, str):
        stored = {"plain": stored}
    if not isinstance(stored, Mapping):
        return False
    value = next((v for v in stored.values() if isinstance(v, str)), "")
    given = password.encode("utf-8", "surrogatepass")
    if KEYED in stored:
        return _keyed_matches(value, password, key)
    if "plain" in stored:
        return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(value.encode()).digest())
    if "bcrypt" in stored:
        return _bcrypt(given, value, limits.bcrypt_cost)
    if "sha512" in stored:
        return _sha512_crypt(given, value, limits.sha512_rounds)
    return False


def _bcrypt(given: bytes, stored: str, cost_max: int) -> bool:
    import bcrypt  # here: an extra of those who bring Drogue's credentials along

    cost = _BCRYPT.match(stored)
    if cost is None or int(cost[1]) > cost_max:
        return False
    try:
        return bool(bcrypt.checkpw(given[:72], stored.encode()))
    except ValueError:
        return False


def keys_of(spec: Mapping[str, Any], now: datetime, key: bytes) -> list[bytes]:
    """Return the pre-shared keys that are valid now, in the order of the spec; `key` unseals them."""
    found = []
    for credential in credentials_of(spec):
        psk = credential.get("psk")
        if not isinstance(psk, Mapping):
            continue
        validity = psk.get("validity")
        try:
            if isinstance(validity, Mapping):
                if "notBefore" in validity and now < datetime.fromisoformat(validity["notBefore"]):
                    continue
                if "notAfter" in validity and now > datetime.fromisoformat(validity["notAfter"]):
                    continue
            text = _unseal(psk[SEALED], key) if SEALED in psk else psk["key"]
            found.append(base64.b64decode(text, validate=True))
        except (ValueError, TypeError, KeyError):
            continue
    return found


_ITOA64 = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ORDER = [(i * 22 % 63, (i * 22 + 21) % 63, (i * 22 + 42) % 63) for i in range(21)]


def _sha512_crypt(given: bytes, stored: str, rounds_max: int) -> bool:
    """Compare with a crypt(3) `$6$` string. Source: Drepper, "Unix crypt using SHA-256 and SHA-512", 2008."""
    parts = stored.split("$")
    if len(parts) < 4 or parts[0] or parts[1] != "6":
        return False
    rounds = 5000
    if parts[2].startswith("rounds="):
        try:
            rounds = max(1000, int(parts[2][7:]))
        except ValueError:
            return False
        parts = [*parts[:2], *parts[3:]]
    if rounds > rounds_max or len(parts) != 4:
        return False
    salt = parts[2].encode()[:16]
    b = hashlib.sha512(given + salt + given).digest()
    a = hashlib.sha512(given + salt + _repeat(b, len(given)))
    n = len(given)
    while n:
        a.update(b if n & 1 else given)
        n >>= 1
    digest = a.digest()
    p = _repeat(hashlib.sha512(given * len(given)).digest(), len(given))
    s = _repeat(hashlib.sha512(salt * (16 + digest[0])).digest(), len(salt))
    for i in range(rounds):
        c = (p if i & 1 else digest) + (s if i % 3 else b"") + (p if i % 7 else b"") + (digest if i & 1 else p)
        digest = hashlib.sha512(c).digest()
    out = ""
    for one, two, three in _ORDER:
        out += _base64(digest[one] << 16 | digest[two] << 8 | digest[three], 4)
    out += _base64(digest[63], 2)
    return hmac.compare_digest(out.encode(), parts[3].encode("utf-8", "surrogatepass"))


def _repeat(block: bytes, size: int) -> bytes:
    return (block * (size // len(block) + 1))[:size]


def _base64(value: int, count: int) -> str:
    return "".join(_ITOA64[value >> (6 * i) & 63] for i in range(count))
