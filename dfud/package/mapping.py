"""Where the addresses of an old image went in a new one: the encoder's guess, from what both images point at in equal places.

Nothing here is part of the format. A wrong guess costs bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dfud.package.lanes import Bytes, References, Words, view
from dfud.package.table import ENTRIES_MAX, Segment, Table, encode_table, segments

# Halfwords that must be equal, addresses aside, for two places to be taken for the same.
GRAM = 12
# How many references an entry of the table must put right: an entry costs about 3 bytes, a reference 4 to 8.
ENTRY_COST = 2.0
RETURN = 0x8082  # c.jr ra: in rv32imc code about every fiftieth halfword, elsewhere almost never
RETURNS_PER_HALFWORD = 1 / 1500
# Chip identifiers of ESP images (esp_app_format.h); these are Xtensa.
XTENSA = (0, 2, 9)
# Flash and SRAM of the ESP32-C3 as instructions are fetched from it.
CODE_C3 = ((0x42000000, 0x42800000), (0x4037C000, 0x403E0000))


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


def make_table(old: bytes, new: bytes, entries: int = ENTRIES_MAX) -> Table:
    """Return the table for a mapped delta from `old` to `new`, with at most `entries` entries."""
    was, now = segments(old), segments(new)
    if not was or not now:
        return Table()
    code, new_code = code_segments(old, was), code_segments(new, now)
    plain = Table(code, [s for i, s in enumerate(now) if new_code >> i & 1])
    _, old_references = view(old, plain)
    _, new_references = view(new, Table(new_code))
    addresses, shifts = _votes(old, new, old_references, new_references)
    cost = ENTRY_COST
    while True:
        starts, moved = _steps(addresses, shifts, cost)
        table = Table(code, plain.new, starts, moved)
        if len(starts) <= entries:
            try:
                encode_table(table, was)
                return table
            except ValueError:
                pass
        cost *= 1.25


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


def _votes(old: bytes, new: bytes, old_refs: References, new_refs: References) -> tuple[Words, Words]:
    """Return, for every pair of references in equal places, the old address and how far it moved."""
    was, now = _normal(old, old_refs), _normal(new, new_refs)
    old_grams, new_grams = _grams(was), _grams(now)
    order = np.argsort(old_grams, kind="stable")
    ordered = old_grams[order]
    empty = np.zeros(0, np.int64)
    if not len(ordered) or not len(new_grams) or not len(old_refs.at):
        return empty, empty
    once = np.append(True, ordered[1:] != ordered[:-1]) & np.append(ordered[1:] != ordered[:-1], True)
    place = np.minimum(np.searchsorted(ordered, new_grams), len(ordered) - 1)
    hits = np.nonzero((ordered[place] == new_grams) & once[place])[0]
    if not len(hits):
        return empty, empty
    distance = order[place[hits]] - hits
    addresses, shifts = [], []
    at = new_refs.at // 2
    voted = np.zeros(len(at), bool)
    for side in (-1, 0):
        # every reference is looked up where the nearest sure match before it, or behind it, says that it was
        nearest = np.clip(np.searchsorted(hits, at, "right") + side, 0, len(hits) - 1)
        there = at + distance[nearest]
        good = (there >= 0) & (there + 1 < len(was)) & (at + 1 < len(now)) & ~voted
        index = np.nonzero(good)[0]
        there = there[index]
        equal = (was[there] == now[at[index]]) & (was[there + 1] == now[at[index] + 1])
        index, there = index[equal], there[equal]
        match = np.minimum(np.searchsorted(old_refs.at, 2 * there), len(old_refs.at) - 1)
        same = (old_refs.at[match] == 2 * there) & (old_refs.kind[match] == new_refs.kind[index])
        index, match = index[same], match[same]
        voted[index] = True
        addresses.append(old_refs.address[match])
        shifts.append(((new_refs.address[index] - old_refs.address[match] + (1 << 31)) & 0xFFFFFFFF) - (1 << 31))
    return np.concatenate(addresses), np.concatenate(shifts)


def _steps(addresses: Words, shifts: Words, cost: float) -> tuple[list[int], list[int]]:
    """Return the step function of the address that agrees with most votes, each step counted as `cost` votes against it."""
    pairs, counts = np.unique(np.stack([addresses, shifts], 1), axis=0, return_counts=True)
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
