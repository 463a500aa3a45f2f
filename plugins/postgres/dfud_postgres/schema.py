"""The database's tables and how an older database becomes a newer one. Bodies are msgpack of the model's structs.

A device has one row in `actual` from the moment it is registered: what is written with every report is locked and changed there, so
the larger row in `device` is not rewritten, and `sequence` and `entries` are at hand while it is locked. An app that is deleted with
more devices than go at once is `dropped`: nothing of it is shown, and its devices follow.
"""

from __future__ import annotations

from dfud.api import StoreError
from dfud_postgres.connection import BEGIN, COMMIT, Connection
from dfud_postgres.errors import DatabaseError
from dfud_postgres.wire import Query

LOCK = 0x64667564  # of migrations; leads and blobs have other classes of locks
C = 'text COLLATE "C"'  # ordered by its bytes

# One entry a version, never changed once released: a database of version n is brought up by MIGRATIONS[n:].
MIGRATIONS = (
    f"""
    CREATE TABLE app (name {C} PRIMARY KEY, version text NOT NULL, body bytea NOT NULL,
        dropped bool NOT NULL DEFAULT false);
    CREATE TABLE app_label (app {C} REFERENCES app ON DELETE CASCADE, key {C}, value {C} NOT NULL, PRIMARY KEY (app, key));
    CREATE TABLE device (app {C} REFERENCES app ON DELETE CASCADE, name {C}, version text NOT NULL, wants {C} NOT NULL,
        body bytea NOT NULL, firmware bytea, newer bigint NOT NULL DEFAULT 0, PRIMARY KEY (app, name));
    CREATE INDEX device_wants ON device (app, wants, name) WHERE wants <> '';
    CREATE TABLE device_label (app {C}, key {C}, value {C}, device {C}, PRIMARY KEY (app, key, value, device),
        FOREIGN KEY (app, device) REFERENCES device ON DELETE CASCADE);
    CREATE INDEX device_label_of ON device_label (app, device);
    CREATE TABLE alias (app {C}, alias {C}, device {C} NOT NULL, PRIMARY KEY (app, alias),
        FOREIGN KEY (app, device) REFERENCES device ON DELETE CASCADE);
    CREATE INDEX alias_of ON alias (app, device);
    CREATE TABLE actual (app {C}, device {C}, body bytea NOT NULL DEFAULT '', sequence bigint NOT NULL DEFAULT 0,
        entries bigint NOT NULL DEFAULT 0, PRIMARY KEY (app, device),
        FOREIGN KEY (app, device) REFERENCES device ON DELETE CASCADE) WITH (fillfactor = 70);
    CREATE TABLE deployment (id {C} PRIMARY KEY, app {C} NOT NULL, device {C} NOT NULL, version {C} NOT NULL,
        created float8 NOT NULL, open bool NOT NULL, number bigint NOT NULL, body bytea NOT NULL,
        FOREIGN KEY (app, device) REFERENCES actual ON DELETE CASCADE) WITH (fillfactor = 80);
    CREATE INDEX deployment_of ON deployment (app, device, number, created, id);
    CREATE INDEX deployment_open ON deployment (app, version, device) WHERE open;
    CREATE INDEX deployment_open_of ON deployment (app, device) WHERE open;
    CREATE INDEX deployment_ended ON deployment (created, id) WHERE NOT open;
    CREATE TABLE history (app {C}, device {C}, number bigint, body bytea NOT NULL, at_s float8 NOT NULL,
        id bigint GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (app, device, number),
        FOREIGN KEY (app, device) REFERENCES actual ON DELETE CASCADE);
    CREATE UNIQUE INDEX history_in_order ON history (id);
    CREATE TABLE blob (sha256 {C} PRIMARY KEY, stored bool NOT NULL DEFAULT false);
    CREATE TABLE blob_hold (id {C} PRIMARY KEY, sha256 {C} NOT NULL REFERENCES blob ON DELETE CASCADE,
        holder {C} NOT NULL, until timestamptz NOT NULL);
    CREATE INDEX blob_hold_of ON blob_hold (sha256);
    CREATE TABLE firmware (app {C} REFERENCES app ON DELETE CASCADE, version {C}, sequence bigint NOT NULL,
        body bytea NOT NULL, PRIMARY KEY (app, version));
    CREATE TABLE firmware_image (app {C}, version {C}, sha256 {C} NOT NULL REFERENCES blob,
        PRIMARY KEY (app, version, sha256), FOREIGN KEY (app, version) REFERENCES firmware ON DELETE CASCADE);
    CREATE INDEX firmware_image_digest ON firmware_image (sha256, app);
    CREATE TABLE document (collection {C}, key {C}, value bytea NOT NULL, PRIMARY KEY (collection, key));
    CREATE TABLE count (scope {C}, name {C}, number bigint NOT NULL, PRIMARY KEY (scope, name)) WITH (fillfactor = 70);
    """,
    f"""
    CREATE TABLE lead (name {C} PRIMARY KEY, token text NOT NULL, holder text NOT NULL, server text NOT NULL);
    """,
)

_LOCK, _UNLOCK = Query("SELECT pg_advisory_lock($1)", "i"), Query("SELECT pg_advisory_unlock($1)", "i")
_VERSION = Query("SELECT version FROM dfud_schema")
_TABLE = Query("SELECT to_regclass('dfud_schema') IS NOT NULL")
_ENCODING = Query("SELECT current_setting('server_encoding'), current_setting('server_version_num')::bigint")
SERVER_MIN = 130000


async def version_of(connection: Connection) -> int:
    """Return the version of a database's schema, 0 for an empty one. Raises StoreError for what dfud cannot use."""
    encoding, server = (await connection.run((_ENCODING, ())))[0].rows[0]
    if encoding != "UTF8":
        raise StoreError(
            f"the database has the encoding {encoding}, expected UTF8: CREATE DATABASE ... ENCODING 'UTF8'"
        )
    if server < SERVER_MIN:
        raise StoreError(f"the server is PostgreSQL {server // 10000}, expected {SERVER_MIN // 10000} or newer")
    if not (await connection.run((_TABLE, ())))[0].rows[0][0]:
        return 0
    row = (await connection.run((_VERSION, ())))[0].row
    version = int(row[0]) if row is not None else 0
    if version > len(MIGRATIONS):
        raise StoreError(f"the database has schema version {version}, this dfud knows up to {len(MIGRATIONS)}")
    return version


async def migrate(connection: Connection) -> int:
    """Bring the database to the newest version, in one transaction that one process at a time is in; return the version it had.

    Raises StoreError if it is newer than this program, or the role may not make tables. On any error it is as before, and the
    connection has to be closed.
    """
    if await version_of(connection) == len(MIGRATIONS):
        return len(MIGRATIONS)
    try:
        # Before the transaction, which goes on taking a table that it has not found at its start not to be there.
        await connection.run((_LOCK, (LOCK,)))
        await connection.run((BEGIN, ()))
        version = await version_of(connection)  # another process may have been faster
        statements = [text for migration in MIGRATIONS[version:] for text in migration.split(";") if text.strip()]
        if version == 0:
            statements.insert(0, "CREATE TABLE IF NOT EXISTS dfud_schema (version bigint NOT NULL)")
        statements += ["DELETE FROM dfud_schema", f"INSERT INTO dfud_schema VALUES ({len(MIGRATIONS)})"]  # noqa: S608 - a number
        await connection.run(*((Query(text), ()) for text in statements))
        await connection.run((COMMIT, ()))
        await connection.run((_UNLOCK, (LOCK,)))
    except DatabaseError as error:
        raise StoreError(
            f"the tables could not be made: {error}; the role needs CREATE on its schema, see docs/cluster.md"
        ) from error
    return version
