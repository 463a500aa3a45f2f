"""Rollouts that were made in a store's own system, as dfud shows them."""

from __future__ import annotations

import msgspec


class OwnWave(msgspec.Struct, frozen=True):
    """One group of a rollout of the store's own: how many devices are in it, and what became of them."""

    name: str
    state: str
    devices: int
    told: int = 0
    under_way: int = 0
    done: int = 0
    failed: int = 0


class OwnRollout(msgspec.Struct, frozen=True):
    """A rollout that was made in the store's own system. state: in dfud's words (docs/rollouts.md); said: in the store's.

    waves: () where only one rollout of many was asked for in short. link: where it is seen and steered.
    """

    name: str
    firmware: str
    state: str
    said: str = ""
    devices: int = 0
    by: str = ""
    waves: tuple[OwnWave, ...] = ()
    link: str = ""
