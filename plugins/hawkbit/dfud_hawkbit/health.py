"""Whether hawkBit can be asked, by who asks it; says so once, when it changes."""

from __future__ import annotations

import logging
from collections import Counter

log = logging.getLogger("dfud.hawkbit")


class Health:
    def __init__(self) -> None:
        self._problems: dict[str, str] = {}
        self._tries: Counter[str] = Counter()

    @property
    def problem(self) -> str:
        """Return why hawkBit is away, or ""."""
        return next(iter(self._problems.values()), "")

    def away(self, who: str, problem: str) -> int:
        """Note a failure; return how many there were in a row."""
        self._tries[who] += 1
        if problem != self._problems.get(who):
            self._problems[who] = problem
            log.error("hawkBit is away; devices are served from the records", extra={"who": who, "why": problem})
        return self._tries[who]

    def here(self, who: str) -> None:
        if self._problems.pop(who, ""):
            log.info("hawkBit is back", extra={"who": who, "tries": self._tries[who]})
        self._tries.pop(who, None)
