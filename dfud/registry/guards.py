"""Compare-and-set on what the store has none for: a document of random bytes, which a commit replaces.

What is judged by reading several records, and then written, takes the guard's change before it reads and commits it with what
it writes. Whoever else does so in between has replaced it: the commit is refused, and everything is read again.
"""

from __future__ import annotations

import secrets

from dfud.api import Change, PutDocument, Store

COLLECTION = "guard"


async def take(store: Store, name: str) -> list[Change]:
    """Return the change to commit together with what is judged from now on.

    The commit may then raise ConflictError for the guard's sake. The document is never deleted, and no value comes twice: what
    was created, deleted and created again in between would be taken for what was read.
    """
    found = await store.document(COLLECTION, name)
    return [PutDocument(COLLECTION, name, secrets.token_bytes(16), create=found is None, expect=found)]
