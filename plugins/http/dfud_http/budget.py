"""What peers may have the listener hold for them: bytes of requests that are not answered yet. Pure counting.

Counted is what they cost here, not what was sent: every request and every header has a price besides its bytes.
"""

from __future__ import annotations

REQUEST_COST_BYTES = 1024  # the objects around one request, measured: 600 to 900
HEADER_COST_BYTES = 128
FREE_BYTES = 8192  # what every connection may hold whatever the others do: more than a device's status


class Budget:
    """A pool that all connections share; a small request never needs it, so who empties it stops large ones only."""

    def __init__(self, total: int) -> None:
        self._total = total
        self.taken = 0

    def change(self, before: int, after: int) -> bool:
        """A connection that held `before` bytes holds `after`; return whether the pool has as much."""
        more = max(0, after - FREE_BYTES) - max(0, before - FREE_BYTES)
        if more > 0 and self.taken + more > self._total:
            return False
        self.taken += more
        return True
