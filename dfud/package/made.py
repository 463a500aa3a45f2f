"""What was made of one image, base, kinds and payload: the file <key>.key of the directory of packages. Pure.

A line for each candidate, the smallest first: name, kind, bytes, work in milliseconds. A line with a name alone, from before work was
counted, is a package of which nothing else is known.
"""

from __future__ import annotations

from collections.abc import Sequence

from dfud.errors import PeerError
from dfud.model.quickest import Candidate

CANDIDATES_MAX = 16


def write_made(made: Sequence[Candidate]) -> bytes:
    return "".join(f"{c.package} {c.kind} {c.total_bytes} {c.work_ms}\n" for c in made).encode()


def read_made_untrusted(text: str) -> tuple[Candidate, ...]:
    """Return the candidates, at least one. Raises PeerError for anything else."""
    found = []
    for line in text.splitlines()[: CANDIDATES_MAX + 1]:
        name, *numbers = line.split()[:5] or [""]
        if len(name) != 32 or set(name) - set("0123456789abcdef") or len(numbers) not in (0, 3):
            raise PeerError(f"package key: a line is {line[:60]!r}, expected a name, kind, bytes and work")
        if not all(number.isascii() and number.isdigit() and len(number) < 16 for number in numbers):
            raise PeerError(f"package key: a line is {line[:60]!r}, expected whole numbers")
        found.append(Candidate(name, *map(int, numbers or (0, 0, 0))))
    if not 0 < len(found) <= CANDIDATES_MAX:
        raise PeerError(f"package key: {len(found)} lines, expected 1 to {CANDIDATES_MAX}")
    return tuple(found)
