"""Many selectors over the same labels: which of them could match, without asking each. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dfud.model.selectors import Selector


class LabelIndex:
    """Each selector is kept under the values of one of its `in` terms; those without one are always candidates."""

    def __init__(self, selectors: Sequence[Selector]) -> None:
        self._always: list[int] = []
        self._by_label: dict[tuple[str, str], list[int]] = {}
        for number, selector in enumerate(selectors):
            terms = [r for r in selector.requirements if r.operator == "in"]
            if not terms:
                self._always.append(number)
                continue
            narrowest = min(terms, key=lambda r: len(r.values))
            for value in set(narrowest.values):
                self._by_label.setdefault((narrowest.key, value), []).append(number)

    def candidates(self, labels: Mapping[str, str]) -> list[int]:
        """Return, in order, the numbers of the selectors that may match; all that do are among them."""
        found = [self._always] if self._always else []
        if self._by_label:
            found += [numbers for label in labels.items() if (numbers := self._by_label.get(label)) is not None]
        if len(found) == 1:
            return found[0]
        return sorted(number for numbers in found for number in numbers)
