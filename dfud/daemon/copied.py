"""Where a store says that it is a copy, until the first dfud serves from it: then nothing is copied over what it stores."""

from __future__ import annotations

import msgspec

from dfud.api import DeleteDocument, Store, StoreError

COLLECTION = "store.copy"  # how far a copy is; never copied itself, as are the marks:
MARKS = "store.copy.marks"  # of devices, by pass, app and page
OWN = frozenset({COLLECTION, MARKS})
KEY = "place"
READ = 500


class Place(msgspec.Struct):
    """How far a copy is. done: parts that are whole; after: the last name of the part under way. source: whose copy it is.

    whole: all of it was compared once, so that only what has changed since needs to be looked at.
    """

    source: str
    done: list[str] = []
    part: str = ""
    after: str = ""
    whole: bool = False


async def place_of(store: Store) -> Place | None:
    found = await store.document(COLLECTION, KEY)
    return None if found is None else msgspec.json.decode(found, type=Place)


async def settle(store: Store) -> None:
    """Make a copy a store of its own, before anything is served from it. Raises StoreError for half of one."""
    place = await place_of(store)
    if place is None:
        return
    if not place.whole:
        raise StoreError(
            f"the store {store.name} holds an unfinished copy of {place.source}, expected a whole one: "
            "`dfud store copy` goes on with it"
        )
    while page := await store.documents(MARKS, limit=READ):
        await store.commit([DeleteDocument(MARKS, key) for key, _ in page])
    await store.commit([DeleteDocument(COLLECTION, KEY)])
