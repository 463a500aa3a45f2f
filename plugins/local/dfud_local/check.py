"""What would keep the store from opening, found without opening it for writing."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from dfud.api import StoreError
from dfud_local.lock import held, in_use
from dfud_local.schema import version_of


def check_directory(directory: Path) -> None:
    """Raise StoreError for a directory that cannot be made or written, a database of a newer dfud, or one that is in use.

    That it is in use is the one error that is retryable.
    """
    try:
        _check(directory)
    except OSError as error:
        raise StoreError(f"[store.local] path {directory}: {error.strerror} for user {os.getuid()}") from error


def _check(directory: Path) -> None:
    found = directory
    while not found.exists() and found != found.parent:
        found = found.parent
    if not found.is_dir():
        raise StoreError(f"[store.local] path {directory}: {found} is no directory")
    if not os.access(found, os.W_OK | os.X_OK):
        raise StoreError(f"[store.local] path {directory}: {found} is not writable for user {os.getuid()}")
    database = directory / "dfud.sqlite3"
    for path in (database, directory / "blobs", directory / "dfud.lock"):
        if path.exists() and not os.access(path, os.W_OK):
            raise StoreError(f"[store.local] path {directory}: {path} is not writable for user {os.getuid()}")
    if held(directory):
        raise StoreError(in_use(directory), retryable=True)
    if database.exists():
        try:
            # immutable: makes no files beside it; nobody else has it open, the lock says.
            with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro&immutable=1", uri=True)) as connection:
                version_of(connection)
        except sqlite3.Error as error:
            raise StoreError(f"[store.local] path {directory}: {database} is no database of dfud's: {error}") from error


def peek(directory: Path, collection: str, key: str) -> bytes | None:
    """Return a document of a database that nobody has open, None where it has none, or newer things stand in its log."""
    database = directory / "dfud.sqlite3"
    log = database.with_name(database.name + "-wal")
    try:
        if not database.exists() or (log.exists() and log.stat().st_size):
            return None
        with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro&immutable=1", uri=True)) as connection:
            query = "SELECT value FROM document WHERE collection=? AND key=?"
            row = connection.execute(query, (collection, key)).fetchone()
    except (sqlite3.Error, OSError):
        return None  # check_directory() says why
    return None if row is None else bytes(row[0])
