"""The database's tables and how an older database becomes a newer one. Bodies are msgpack of the model's structs."""

from __future__ import annotations

import sqlite3

from dfud.api import StoreError

# One entry a version, never changed once released: a database of version n is brought up by MIGRATIONS[n:].
MIGRATIONS = (
    """
    CREATE TABLE app (name TEXT PRIMARY KEY, version TEXT NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE app_label (app TEXT, key TEXT, value TEXT, PRIMARY KEY (app, key)) WITHOUT ROWID;
    CREATE TABLE device (app TEXT, name TEXT, version TEXT NOT NULL, wants TEXT NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (app, name)) WITHOUT ROWID;
    CREATE INDEX device_wants ON device (app, wants) WHERE wants <> '';
    CREATE TABLE device_label (app TEXT, key TEXT, value TEXT, device TEXT,
        PRIMARY KEY (app, key, value, device)) WITHOUT ROWID;
    CREATE INDEX device_label_of ON device_label (app, device);
    CREATE TABLE alias (app TEXT, alias TEXT, device TEXT, PRIMARY KEY (app, alias)) WITHOUT ROWID;
    CREATE INDEX alias_of ON alias (app, device);
    CREATE TABLE firmware (app TEXT, version TEXT, sha256 TEXT NOT NULL, sequence INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (app, version)) WITHOUT ROWID;
    CREATE INDEX firmware_digest ON firmware (app, sha256);
    CREATE TABLE actual (app TEXT, device TEXT, body BLOB NOT NULL, PRIMARY KEY (app, device)) WITHOUT ROWID;
    CREATE TABLE deployment (id TEXT PRIMARY KEY, app TEXT NOT NULL, device TEXT NOT NULL, version TEXT NOT NULL,
        created REAL NOT NULL, open INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
    CREATE INDEX deployment_of ON deployment (app, device, created);
    CREATE INDEX deployment_open ON deployment (app, version) WHERE open;
    CREATE TABLE history (id INTEGER PRIMARY KEY AUTOINCREMENT, app TEXT NOT NULL, device TEXT NOT NULL, body BLOB NOT NULL);
    CREATE INDEX history_of ON history (app, device, id);
    """,
    """
    CREATE TABLE document (collection TEXT, key TEXT, value BLOB NOT NULL, PRIMARY KEY (collection, key)) WITHOUT ROWID;
    """,
    """
    ALTER TABLE deployment ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
    DROP INDEX deployment_of;
    CREATE INDEX deployment_of ON deployment (app, device, number, created);
    ALTER TABLE history ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
    DROP INDEX history_of;
    CREATE INDEX history_of ON history (app, device, number);
    CREATE INDEX firmware_blob ON firmware (sha256);
    """,
    """
    CREATE TABLE count (scope TEXT, name TEXT, number INTEGER NOT NULL, PRIMARY KEY (scope, name)) WITHOUT ROWID;
    """,
    """
    ALTER TABLE device ADD COLUMN firmware BLOB;
    ALTER TABLE device ADD COLUMN newer INTEGER NOT NULL DEFAULT 0;
    """,
    # A row without a body: nothing was said yet, but there are deployments.
    """
    ALTER TABLE actual ADD COLUMN sequence INTEGER NOT NULL DEFAULT 0;
    """,
    # Apps that were deleted and whose devices are still to go.
    """
    CREATE TABLE dropped (app TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE INDEX deployment_ended ON deployment (created) WHERE NOT open;
    """,
    """
    CREATE TABLE firmware_image (app TEXT, version TEXT, sha256 TEXT, PRIMARY KEY (app, version, sha256)) WITHOUT ROWID;
    CREATE INDEX firmware_image_digest ON firmware_image (sha256, app);
    """,
)


def version_of(database: sqlite3.Connection) -> int:
    """Return the version of a database's schema. Raises StoreError if it is newer than this program."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreError(f"the database has schema version {version}, this dfud knows up to {len(MIGRATIONS)}")
    return int(version)


def migrate(database: sqlite3.Connection) -> int:
    """Bring `database` to the newest version, in one transaction; return the version it had.

    Raises StoreError if it is newer than this program. On any error the database is as before.
    """
    version = version_of(database)
    if version < len(MIGRATIONS):
        database.execute("BEGIN IMMEDIATE")
        try:
            for migration in MIGRATIONS[version:]:
                for statement in migration.split(";"):
                    if statement.strip():
                        database.execute(statement)
            database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")
    return version
