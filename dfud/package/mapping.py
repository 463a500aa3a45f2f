"""Where the addresses of an old image went in a new one: the encoder's guess, from what both images point at in equal places.

Nothing here is part of the format. A wrong guess costs bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dfud.package.table import ENTRIES_MAX, Segment, Table, fits, segments
from dfud.package.view_numpy import Bytes, References, Words, view

# Halfwords that must be equal, addresses aside, for two places to be taken for the same.
GRAM = 12
# How many references an entry of the table must put right: an entry costs about 3 bytes, a reference 2 to 8. What is best
# depends on the pair, by 1 to 3 %.
ENTRY_COSTS = (1.5, 6.0)
# A branch that moved together with its target says little about where it went.
LOCAL_BRANCH = 0.1
RETURN = 0x8082  # c.jr ra: in rv32imc code about every fiftieth halfword, elsewhere almost never
RETURNS_PER_HALFWORD = 1 / 1500
# Chip identifiers of ESP images (esp_app_format.h); these are Xtensa.
XTENSA = (0, 2, 9)
# Flash and SRAM of the ESP32-C3 as instructions are fetched from it.
CODE_C3 = ((0x42000000, 0x42800000), (0x4037C000, 0x403E0000))


class Votes(NamedTuple):
    """Old addresses, how far each of them moved according to one reference, and how much that says."""

    addresses: Words
    shifts: Words
    weights: NDArray[np.float64]


def code_segments(image: bytes, found: Sequence[Segment]) -> int:
    """Return the bitmask of the segments that hold rv32 code."""
    chip = int.from_bytes(image[12:14], "little")
    mask = 0
    for i, s in enumerate(found):
        if not s.address or s.length < 4 or chip in XTENSA or s.offset & 1 or s.address & 1:
            continue
        halves = np.frombuffer(image, "<u2", s.length // 2, s.offset)
        code = np.count_nonzero(halves == RETURN) > len(halves) * RETURNS_PER_HALFWORD
        if code or (chip == 5 and any(low <= s.address < high for low, high in CODE_C3)):
            mask |= 1 << i
    return mask


def make_tables(old: bytes, new: bytes, entries: int = ENTRIES_MAX) -> list[Table]:
    """Return tables for a mapped delta from `old` to `new`, each with at most `entries` entries; the first is the largest."""
    was, now = segments(old), segments(new)
    if not was or not now:
        return [Table()]
    code, new_code = code_segments(old, was), code_segments(new, now)
    plain = Table(code, [s for i, s in enumerate(now) if new_code >> i & 1])
    _, old_references = view(old, plain)
    _, new_references = view(new, Table(new_code))
    votes = _votes(old, new, old_references, new_references)
    found: list[Table] = []
    for cost in ENTRY_COSTS:
        while True:
            starts, moved = _steps(votes, cost)
            table = Table(code, plain.new, starts, moved)
            if len(starts) <= entries and fits(table, was):
                break
            cost *= 1.25
        if table not in found:
            found.append(table)
    return found


def _normal(image: bytes, found: References) -> Words:
    """Return the image's halfwords without what it points at."""
    data: Bytes = np.frombuffer(image[: len(image) & ~1], np.uint8).copy()
    good = (found.at % 2 == 0) & (found.at + 8 <= len(data))
    half = data.view("<u2")
    kind, place = found.kind[good], found.at[good] // 2
    upper = (kind == 1) | (kind == 2) | (kind == 3)
    half[place[upper]] &= 0xFFF
    half[place[upper] + 1] = 0
    for at in (place[kind == 2] + 2, place[kind == 4]):
        stores = (half[at] & 0x7F) == 0x23
        half[at[stores]] &= 0xF07F
        half[at[stores] + 1] &= 0x01FF
        half[at[~stores] + 1] &= 0x000F
    half[place[kind == 6]] &= 0xF07F
    half[place[kind == 6] + 1] &= 0x01FF
    short = place[kind == 7]
    half[short] &= np.where(half[short] & 0x4000, 0xE383, 0xE003).astype(np.uint16)
    data_words = place[kind == 5]
    half[data_words] = 0xA0B0
    half[data_words + 1] >>= 3
    return half.astype(np.int64)


def _grams(half: Words) -> Any:
    total = np.zeros(max(len(half) - GRAM + 1, 0), np.uint64)
    with np.errstate(over="ignore"):
        for i in range(GRAM):
            total = total * np.uint64(0x9E3779B97F4A7C15) + half[i : i + len(total)].astype(np.uint64) + np.uint64(1)
        return total ^ total >> np.uint64(29)


def _votes(old: bytes, new: bytes, old_refs: References, new_refs: References) -> Votes:
    """Return, for every pair of references in equal places, the old address and how far it moved; of branches, whose offsets
    depend on both, so for what they lead to and for themselves."""
    was, now = _normal(old, old_refs), _normal(new, new_refs)
    old_grams, new_grams = _grams(was), _grams(now)
    order = np.argsort(old_grams, kind="stable")
    ordered = old_grams[order]
    none = Votes(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    if not len(ordered) or not len(new_grams) or not len(old_refs.at):
        return none
    once = np.append(True, ordered[1:] != ordered[:-1]) & np.append(ordered[1:] != ordered[:-1], True)
    place = np.minimum(np.searchsorted(ordered, new_grams), len(ordered) - 1)
    hits = np.nonzero((ordered[place] == new_grams) & once[place])[0]
    if not len(hits):
        return none
    distance = order[place[hits]] - hits
    addresses, shifts, weights = [], [], []
    at = new_refs.at // 2
    voted = np.zeros(len(at), bool)
    for side in (-1, 0):
        # every reference is looked up where the nearest sure match before it, or behind it, says that it was
        nearest = np.clip(np.searchsorted(hits, at, "right") + side, 0, len(hits) - 1)
        there = at + distance[nearest]
        good = (there >= 0) & (there + 1 < len(was)) & (at + 1 < len(now)) & ~voted
        index = np.nonzero(good)[0]
        there = there[index]
        behind = (was[there + 1] == now[at[index] + 1]) | (new_refs.kind[index] == 7)
        equal = (was[there] == now[at[index]]) & behind
        index, there = index[equal], there[equal]
        match = np.minimum(np.searchsorted(old_refs.at, 2 * there), len(old_refs.at) - 1)
        same = (old_refs.at[match] == 2 * there) & (old_refs.kind[match] == new_refs.kind[index])
        index, match = index[same], match[same]
        voted[index] = True
        moved = _signed(new_refs.address[index] - old_refs.address[match])
        itself = _signed(new_refs.place[index] - old_refs.place[match])
        branches = new_refs.kind[index] >= 6
        weight = np.where(branches & (moved == itself), LOCAL_BRANCH, 1.0)
        addresses += [old_refs.address[match], old_refs.place[match[branches]]]
        shifts += [moved, itself[branches]]
        weights += [weight, weight[branches]]
    return Votes(np.concatenate(addresses), np.concatenate(shifts), np.concatenate(weights))


def _signed(difference: Words) -> Words:
    return np.asarray(((difference + (1 << 31)) & 0xFFFFFFFF) - (1 << 31))


def _steps(votes: Votes, cost: float) -> tuple[list[int], list[int]]:
    """Return the step function of the address that agrees with most votes, each step counted as `cost` votes against it."""
    pairs, which = np.unique(np.stack([votes.addresses, votes.shifts], 1), axis=0, return_inverse=True)
    counts = np.bincount(which.ravel(), votes.weights, len(pairs))
    # A path per shift; `best` is the best of them. A node is (start, shift, node before).
    root: tuple[Any, ...] = ()
    paths: dict[int, tuple[float, tuple[Any, ...]]] = {0: (0.0, root)}
    best: tuple[float, tuple[Any, ...]] = (0.0, root)
    i, rows, numbers = 0, pairs.tolist(), counts.tolist()
    while i < len(rows):
        address, before = rows[i][0], best
        while i < len(rows) and rows[i][0] == address:
            shift = rows[i][1]
            score, node = paths.get(shift, (-math.inf, root))
            if before[0] - cost > score:
                score, node = before[0] - cost, (address, shift, before[1])
            paths[shift] = score, node = score + numbers[i], node
            if score > best[0]:
                best = score, node
            i += 1
    starts: list[int] = []
    moved: list[int] = []
    node = best[1]
    while node:
        starts.append(node[0])
        moved.append(node[1])
        node = node[2]
    return starts[::-1], moved[::-1]
