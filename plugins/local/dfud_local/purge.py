"""Deleting what has many records, a few at a time between other commits: nobody waits for the whole of it.

An app that is deleted goes at once: its record, its labels and its firmware. Its devices follow, and until the last is gone they
are hidden, and no app of that name can be made. What is left to do is in the database, so it goes on after a restart.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from dfud_local.columns import text

AT_ONCE = 100  # devices with all that is theirs: some milliseconds
DEVICE_TABLES = ("device_label", "alias", "actual", "deployment", "history")


class Purge:
    """Runs in the writer's thread, but for `hidden`: the apps whose devices are still there. Nobody may see them."""

    def __init__(self) -> None:
        self.hidden: set[str] = set()

    def load(self, database: sqlite3.Connection) -> None:
        """Take up what is left to do in a database that was opened."""
        self.hidden = {text(name) for (name,) in database.execute("SELECT app FROM dropped")}

    def hide(self, apps: Iterable[str]) -> None:
        """Take over apps that drop_app() did not delete whole; their commit is durable."""
        self.hidden = self.hidden.union(apps)

    def step(self, database: sqlite3.Connection) -> None:
        """Delete some devices, in a transaction of its own. Raises sqlite3.Error, and then nothing of that was done."""
        name = min(self.hidden)
        database.execute("BEGIN IMMEDIATE")
        try:
            done = drop_devices(database, name)
            if done:
                database.execute("DELETE FROM dropped WHERE app=?", (name,))
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        if done:
            self.hidden = self.hidden - {name}


def drop_app(database: sqlite3.Connection, name: str) -> bool:
    """Delete an app; return whether all of its devices are gone with it, else Purge does the rest."""
    database.execute("DELETE FROM app WHERE name=?", (name,))
    database.execute("DELETE FROM app_label WHERE app=?", (name,))
    database.execute("DELETE FROM firmware WHERE app=?", (name,))
    database.execute("DELETE FROM firmware_image WHERE app=?", (name,))
    if drop_devices(database, name):
        return True
    database.execute("INSERT OR IGNORE INTO dropped VALUES (?)", (name,))
    return False


def drop_devices(database: sqlite3.Connection, app: str) -> bool:
    """Delete up to AT_ONCE devices of an app with all that is theirs; return whether these were the last."""
    rows = database.execute("SELECT name FROM device WHERE app=? LIMIT ?", (app, AT_ONCE)).fetchall()
    names = json.dumps([text(row[0]) for row in rows])
    database.execute("DELETE FROM device WHERE app=? AND name IN (SELECT value FROM json_each(?))", (app, names))
    for table in DEVICE_TABLES:
        database.execute(
            f"DELETE FROM {table} WHERE app=? AND device IN (SELECT value FROM json_each(?))",  # noqa: S608 - from above
            (app, names),
        )
    if len(rows) == AT_ONCE:
        return False
    for table in DEVICE_TABLES:  # what an older dfud, or a hand, left behind
        database.execute(f"DELETE FROM {table} WHERE app=?", (app,))  # noqa: S608 - from above
    return True
