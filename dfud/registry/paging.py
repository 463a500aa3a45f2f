"""How many rows to read at once, so that a page has about as many bytes whatever the rows are. Pure."""

from __future__ import annotations

FIRST_ROWS = 8  # what is read before it is known how large the rows are
ROWS_MAX = 200


class Paging:
    """`rows` is how many to read next."""

    def __init__(self, page_bytes: int) -> None:
        self._page_bytes = page_bytes
        self.rows = FIRST_ROWS

    def read(self, rows: int, size_bytes: int) -> None:
        """Learn from a page that was read."""
        if rows:
            self.rows = max(1, min(ROWS_MAX, rows * self._page_bytes // max(1, size_bytes)))
