"""Many selectors over the same labels: which of them could match, without asking each. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dfud.model.selectors import Selector


class LabelIndex:
    """Each selector is kept under the values of one of its `in` terms, or under the key of an `exists` term; those that say only
    what devices have not are always candidates.
    """

    def __init__(self, selectors: Sequence[Selector]) -> None:
        self._always: list[int] = []
        self._by_label: dict[tuple[str, str], list[int]] = {}
        self._by_key: dict[str, list[int]] = {}
        for number, selector in enumerate(selectors):
            terms = [r for r in selector.requirements if r.operator == "in"]
            key = next((r.key for r in selector.requirements if r.operator == "exists"), None)
            if terms:
                narrowest = min(terms, key=lambda r: len(r.values))
                for value in set(narrowest.values):
                    self._by_label.setdefault((narrowest.key, value), []).append(number)
            elif key is not None:
                self._by_key.setdefault(key, []).append(number)
            else:
                self._always.append(number)

    def candidates(self, labels: Mapping[str, str]) -> list[int]:
        """Return, in order, the numbers of the selectors that may match; all that do are among them."""
        found = [self._always] if self._always else []
        if self._by_label:
            found += [numbers for label in labels.items() if (numbers := self._by_label.get(label)) is not None]
        if self._by_key:
            found += [numbers for key in labels if (numbers := self._by_key.get(key)) is not None]
        if len(found) == 1:
            return found[0]
        return sorted(number for numbers in found for number in numbers)
