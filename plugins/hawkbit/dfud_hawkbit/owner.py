"""Whose a target is. Two dfuds with an app of one name at one hawkBit would close each other's actions; the second is refused.

The mark is a number that each dfud makes once and keeps in its records. It stands in the description of the targets that a
dfud makes, and in the attribute `dfud.owner` of those that it speaks for. A target without a mark is taken over.
"""

from __future__ import annotations

import re
import secrets

from dfud.api import ConflictError, PutDocument, Store
from dfud_hawkbit import records
from dfud_hawkbit.answers import Target
from dfud_hawkbit.client import Client
from dfud_hawkbit.desire import OWNER

_KEY = "mark"
_MARK = re.compile(r"app [^ ]+ of dfud ([0-9a-f]{16})")


class Ownership:
    """mark: this dfud's, once load() has returned."""

    def __init__(self, store: Store, client: Client) -> None:
        self._store = store
        self._client = client
        self.mark = ""

    async def load(self) -> None:
        """Read the mark, or make it. Raises StoreError."""
        if await self._store.document(records.INSTANCE, _KEY) is None:
            made = secrets.token_hex(8).encode()
            try:
                await self._store.commit([PutDocument(records.INSTANCE, _KEY, made, create=True)])
            except ConflictError:
                pass  # made meanwhile: that one counts
        self.mark = (await self._store.document(records.INSTANCE, _KEY) or b"").decode("ascii", "replace")

    def description(self, app: str) -> str:
        return f"app {app} of dfud {self.mark}"

    def other(self, description: str | None) -> str:
        """Return the mark of another dfud in a description, or ""."""
        found = _MARK.fullmatch(description or "")
        return found[1] if found is not None and found[1] != self.mark else ""

    @staticmethod
    def unmarked(app: str, description: str | None) -> bool:
        """Say whether a description is one that dfud wrote before there were marks."""
        return description == f"app {app} of dfud"

    async def find(self, app: str, target: str) -> str:
        """Return the mark of the other dfud that an existing target belongs to; "": it is this one's from now on."""
        answer = await self._client.mgmt("owner", "GET", f"/targets/{target}")
        found = answer.read(Target, "target")
        if other := self.other(found.description):
            return other
        if found.description == self.description(app):
            return ""
        answer = await self._client.mgmt("owner", "GET", f"/targets/{target}/attributes", expect=(200, 204))
        said = answer.read(dict[str, str], "attributes of a target").get(OWNER, "") if answer.body else ""
        if said and said != self.mark:
            return said
        if self.unmarked(app, found.description):
            await self.take(app, target)
        return ""

    async def take(self, app: str, target: str) -> None:
        """Make a target this dfud's, whosever it was."""
        await self._client.mgmt("owner", "PUT", f"/targets/{target}", {"description": self.description(app)})

    def sentence(self, target: str, other: str) -> str:
        return (
            f"target {target} belongs to another dfud ({other}): rename the app in one of them, or have this dfud take over "
            "its targets with `dfuctl hawkbit take-over`"
        )
