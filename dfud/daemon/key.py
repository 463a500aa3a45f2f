"""The key under which device secrets are hashed: the file, and that it belongs to this database.

The database holds a fingerprint of the key, so that a wrong file is an error at start and not a fleet that is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from pathlib import Path

from dfud.api import Change, ConfigError, PutDocument, Store

log = logging.getLogger("dfud")
KEY_BYTES = 32
COLLECTION, NAME = "daemon", "credential-key"


def read_key(path: Path) -> bytes:
    """Return the key under which device secrets are hashed. Raises ConfigError."""
    try:
        key = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"[endpoint] credential_key {path}: {error.strerror}; `dfud init` makes it") from error
    if len(key) != KEY_BYTES:
        raise ConfigError(f"[endpoint] credential_key {path} has {len(key)} bytes, expected {KEY_BYTES}")
    return key


def make_key(path: Path) -> None:
    """Make the file with a new key unless there is one. Raises ConfigError for one that is no key, or cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        read_key(path)
        return
    except OSError as error:
        raise ConfigError(f"[endpoint] credential_key {path} cannot be made: {error.strerror}") from error
    with os.fdopen(fd, "wb") as file:
        file.write(os.urandom(KEY_BYTES))
        file.flush()
        os.fsync(fd)


def fingerprint(key: bytes) -> str:
    """Return what names a key without telling anything of it; hexadecimal."""
    return hmac.new(key, b"dfud credential key", hashlib.sha256).hexdigest()


def binding(key: bytes) -> Change:
    """Return the change that makes `key` the database's own."""
    return PutDocument(COLLECTION, NAME, fingerprint(key).encode())


async def check_key(store: Store, key: bytes, path: str) -> None:
    """Raise ConfigError if the database's device secrets were made with another key than this one.

    A database without a fingerprint, from before there were any, takes this key's.
    """
    stored = await store.document(COLLECTION, NAME)
    if stored is None:
        if await store.apps(limit=1):
            log.warning(
                "this database takes the key as its own", extra={"key": path, "fingerprint": fingerprint(key)[:8]}
            )
        await store.commit([binding(key)])
    else:
        compare_key(stored, key, path)


def compare_key(stored: bytes, key: bytes, path: str) -> None:
    """Raise ConfigError if what the database holds names another key. path: where this one was read."""
    if not hmac.compare_digest(stored, fingerprint(key).encode()):
        expected = stored.decode("ascii", "replace")[:8]
        raise ConfigError(
            f"[endpoint] credential_key {path} is not the key of this database (fingerprint {fingerprint(key)[:8]}, expected "
            f"{expected}): put the right file back from the backup. If it is lost for ever, `dfud init --accept-key` takes "
            "this one, and every device needs a new secret"
        )
