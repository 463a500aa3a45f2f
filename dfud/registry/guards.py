"""Compare-and-set on what the store has none for: a numbered document that a commit takes and puts again.

What is judged by reading several records, and then written, takes the guard's changes before it reads and commits them with what
it writes. Whoever else does so in between has taken the same number: the commit is refused, and everything is read again.
"""

from __future__ import annotations

from dfud.api import Change, DeleteDocument, PutDocument, Store

COLLECTION = "guard"


async def take(store: Store, name: str) -> list[Change]:
    """Return the changes to commit together with what is judged from now on. name: without a slash.

    The commit may then raise ConflictError or NotFoundError for the guard's sake.
    """
    prefix = f"{name}/"
    found = await store.documents(COLLECTION, prefix=prefix, after=prefix, limit=1)
    if not found:
        return [PutDocument(COLLECTION, f"{prefix}{1:020d}", b"", create=True)]
    key = found[0][0]
    following = f"{prefix}{int(key.removeprefix(prefix)) + 1:020d}"
    return [DeleteDocument(COLLECTION, key), PutDocument(COLLECTION, following, b"", create=True)]
