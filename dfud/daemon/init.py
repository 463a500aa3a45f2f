"""What is done on the machine itself, while dfud is stopped: the first start, and the ways back in."""

from __future__ import annotations

import time
from pathlib import Path

import trio

from dfud.api import Bus, Config, Store
from dfud.daemon.key import binding, check_key, fingerprint, make_key, read_key
from dfud.endpoint.config import EndpointConfig
from dfud.registry import audit
from dfud.registry.users import Users


async def initialise(
    config: Config, store: Store, user: str, days: int, *, new_admin: bool = False, accept_key: bool = False
) -> str | None:
    """Make what a first start needs; return a new admin token, or None if there is one already.

    new_admin: make one all the same, for whoever has lost theirs. accept_key: make the key in the file the database's own.
    Both are audited. Raises ConfigError for a key that is not this database's, StoreError for a store that is in use.
    """
    path = config.section("endpoint", EndpointConfig).credential_key
    make_key(Path(path))
    key = read_key(Path(path))
    text: str | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        await audit.follow(store)
        now_s = time.time()
        if accept_key:
            told = audit.entry(now_s, "dfud init", "accept-key", "credential-key", fingerprint(key)[:8])
            await store.commit([binding(key), told])
        await check_key(store, key, path)
        users = Users(store)
        existing = [t for t in await users.tokens() if t.roles.get("*") == "admin" and t.expires_s > now_s]
        if new_admin or not existing:
            by = "dfud init --new-admin" if new_admin else "dfud init"
            _, text = await users.create(
                user, {"*": "admin"}, by=by, now_s=now_s, days=days, description=f"made by {by}"
            )
        nursery.cancel_scope.cancel()
    return text
