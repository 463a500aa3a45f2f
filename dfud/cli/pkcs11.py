"""Publisher's keys in hardware: PKCS#11 through the library that the token's maker ships. Source: PKCS#11 3.1, RFC 7512.

A key is named by a PKCS#11 URI, `pkcs11:token=LABEL;object=NAME?module-path=/path/of/library.so`. The private part is made
in the token and never leaves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dfud.cli.client import CliError

SCHEME = "pkcs11:"
ED25519 = bytes.fromhex("06032b6570")  # DER of the OID 1.3.101.112, RFC 8410
_EXAMPLE = f"{SCHEME}token=LABEL;object=NAME?module-path=/path/of/library.so"


class Place(msgspec.Struct, frozen=True):
    """Which key in which token, and the library that talks to it."""

    module: str
    token: str
    label: str


def parse_uri(text: str) -> Place:
    """Read a PKCS#11 URI. Raises CliError: a PIN in it is refused, it would stand in the shell's history."""
    path, _, query = text.removeprefix(SCHEME).partition("?")
    found: dict[str, str] = {}
    for pair in [*path.split(";"), *query.split("&")]:
        name, _, value = pair.partition("=")
        if name in ("pin-value", "pin-source"):
            raise CliError(f"{name} does not belong into the key's URI; give --passphrase-file, or be asked")
        if pair and name not in ("token", "object", "module-path"):
            raise CliError(f"key {text!r}: {name!r} is not understood, expected {_EXAMPLE}")
        found[name] = unquote(value)
    if not (found.get("token") and found.get("object") and found.get("module-path")):
        raise CliError(f"key {text!r}: expected {_EXAMPLE}")
    return Place(found["module-path"], found["token"], found["object"])


class TokenKey:
    """An Ed25519 key in an open session with its token."""

    def __init__(self, public: bytes, private: Any) -> None:
        self.public = public
        self._private = private

    def sign(self, data: bytes) -> bytes:
        """Have the token sign. Raises CliError if what it gives is not this key's signature."""
        import pkcs11

        signature = bytes(self._private.sign(data, mechanism=pkcs11.Mechanism.EDDSA))
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, data)
        except InvalidSignature:
            raise CliError("the token's signature does not fit its public key: two keys with one name?") from None
        return signature


@contextmanager
def _session(place: Place, pin: str, *, write: bool) -> Iterator[Any]:
    """Yield a session that is logged in; everything that goes wrong is one sentence without the PIN."""
    try:
        import pkcs11
    except ImportError:
        raise CliError("keys in tokens need python-pkcs11: pip install dfud[users]") from None
    try:
        library = pkcs11.lib(place.module)
    except (RuntimeError, pkcs11.PKCS11Error) as error:
        raise CliError(f"{place.module} is no PKCS#11 library: {error or type(error).__name__}") from None
    try:
        with library.get_token(token_label=place.token).open(user_pin=pin, rw=write) as session:
            yield session
    except pkcs11.NoSuchToken:
        raise CliError(f"{place.module} knows no token {place.token!r}") from None
    except pkcs11.MultipleTokensReturned:
        raise CliError(f"several tokens are called {place.token!r}") from None
    except (pkcs11.PinIncorrect, pkcs11.PinLenRange, pkcs11.PinInvalid):
        raise CliError(f"token {place.token!r}: the PIN is wrong; too many wrong ones lock it") from None
    except pkcs11.PinLocked:
        raise CliError(f"token {place.token!r}: the PIN is locked") from None
    except pkcs11.PKCS11Error as error:
        raise CliError(f"token {place.token!r}: {type(error).__name__} {error}".rstrip()) from None


def _objects(session: Any, place: Place, kind: Any) -> list[Any]:
    import pkcs11

    attributes = {pkcs11.Attribute.CLASS: kind, pkcs11.Attribute.LABEL: place.label}
    return [o for o in session.get_objects(attributes) if o.key_type == pkcs11.KeyType.EC_EDWARDS]


def _point(public: Any) -> bytes:
    """Return the 32 bytes of a public key: as a DER octet string, or (older modules) bare."""
    import pkcs11

    value = bytes(public[pkcs11.Attribute.EC_POINT])
    value = value[2:] if len(value) == 34 and value[:2] == b"\x04\x20" else value
    if len(value) != 32:
        raise CliError(f"the token's public key has {len(value)} bytes, expected the 32 of Ed25519")
    return value


def make(place: Place, pin: str) -> bytes:
    """Make a key pair in the token; return its public part. Raises CliError; a name is never used twice."""
    with _session(place, pin, write=True) as session:
        import pkcs11

        kinds = (pkcs11.ObjectClass.PRIVATE_KEY, pkcs11.ObjectClass.PUBLIC_KEY)
        if any(_objects(session, place, kind) for kind in kinds):
            raise CliError(f"token {place.token!r} has a key {place.label!r} already; it is never replaced")
        parameters = session.create_domain_parameters(
            pkcs11.KeyType.EC_EDWARDS, {pkcs11.Attribute.EC_PARAMS: ED25519}, local=True
        )
        public, private = parameters.generate_keypair(
            mechanism=pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
            store=True,
            label=place.label,
            private_template={pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False},
        )
        found = TokenKey(_point(public), private)
        found.sign(b"dfud: the new key signs")
        return found.public


@contextmanager
def opened(place: Place, pin: str) -> Iterator[TokenKey]:
    """Yield the key while the session with its token lasts. Raises CliError."""
    with _session(place, pin, write=False) as session:
        import pkcs11

        private = _objects(session, place, pkcs11.ObjectClass.PRIVATE_KEY)
        public = _objects(session, place, pkcs11.ObjectClass.PUBLIC_KEY)
        if len(private) != 1 or len(public) != 1:
            raise CliError(
                f"token {place.token!r} has {len(private)} private and {len(public)} public Ed25519 keys "
                f"{place.label!r}, expected one of each"
            )
        yield TokenKey(_point(public[0]), private[0])
