"""How much the store keeps of one device."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """The oldest go first, in the commit that brings one too many."""

    history_per_device: int = 200
    deployments_per_device: int = 20
