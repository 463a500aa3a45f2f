"""Label selectors: which resources a user means. Pure; reading one takes time in proportion to its length, which is limited.

Source of the grammar: Kubernetes' label selectors, as Drogue's registry takes them (docs/drogue.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from dfud.errors import PeerError
from dfud.model.names import is_label_key

# [registry] selector_max_bytes and selector_max_terms may be lower. A store must take as many terms as this.
SELECTOR_MAX_BYTES = 8192
SELECTOR_MAX_TERMS = 100


class Requirement(msgspec.Struct, frozen=True):
    """One clause of a selector; `values` is empty for exists and absent."""

    key: str
    operator: Literal["in", "notin", "exists", "absent"]
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        found = labels.get(self.key)
        if self.operator == "exists":
            return found is not None
        if self.operator == "absent":
            return found is None
        if self.operator == "in":
            return found in self.values
        return found not in self.values


class Selector(msgspec.Struct, frozen=True):
    """A conjunction of requirements; the empty one matches everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(r.matches(labels) for r in self.requirements)


EVERYTHING = Selector()

# One token at a time and no pattern within another: there is nothing to try again, so a text is read once.
_TOKEN = re.compile(r"(?P<space>\s+)|(?P<mark>==|!=|[=!,()])|(?P<word>[^\s,()=!]+)")


def parse_selector_untrusted(
    text: str, *, max_bytes: int = SELECTOR_MAX_BYTES, max_terms: int = SELECTOR_MAX_TERMS
) -> Selector:
    """Parse `k=v,k!=v,k in (a,b),k notin (a,b),k,!k` (comma is AND).

    Raises PeerError that names the place or the limit; the empty text gives the selector that matches everything.
    """
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    if size > max_bytes:
        raise PeerError(f"label selector: {size} bytes, expected at most {max_bytes}")
    reader = _Reader(text)
    found: list[Requirement] = []
    if reader.at_end():
        return EVERYTHING
    while True:
        if len(found) >= max_terms:
            raise PeerError(f"label selector: more than {max_terms} terms")
        found.append(reader.term())
        if reader.at_end():
            return Selector(tuple(found))
        reader.expect(",")
        if reader.at_end():
            raise PeerError("label selector: ends with a comma")


class _Reader:
    """The tokens of one selector, from the left."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [(m[0], m.start()) for m in _TOKEN.finditer(text) if m.lastgroup != "space"]
        self._at = 0

    def at_end(self) -> bool:
        return self._at >= len(self._tokens)

    def _next(self) -> str:
        """Return the next token without taking it, "" at the end."""
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        """Take the next token if it is one of `wanted`, else return ""."""
        token = self._next()
        if token not in wanted or not token:
            return ""
        self._at += 1
        return token

    def _word(self) -> str:
        """Take a word, or return "" where there is none."""
        token = self._next()
        if not token or token in ("==", "!=", "=", "!", ",", "(", ")"):
            return ""
        self._at += 1
        return token

    def expect(self, token: str) -> None:
        if not self._take(token):
            raise self.error(f"expected '{token}'")

    def error(self, why: str) -> PeerError:
        position = self._tokens[self._at][1] if not self.at_end() else len(self._text)
        return PeerError(
            f"label selector: cannot read {self._text[position : position + 40]!r} at position {position}: {why}"
        )

    def _key(self) -> str:
        key = self._word()
        if not key:
            raise self.error("expected a label")
        if not is_label_key(key):
            raise PeerError(f"label selector: {key[:80]!r} is no label")
        return key

    def term(self) -> Requirement:
        if self._take("!"):
            return Requirement(self._key(), "absent")
        key = self._key()
        operator = self._take("=", "==", "!=")
        if operator:
            return Requirement(key, "notin" if operator == "!=" else "in", (self._word(),))
        if self._take("in"):
            return Requirement(key, "in", self._values())
        if self._take("notin"):
            return Requirement(key, "notin", self._values())
        return Requirement(key, "exists")

    def _values(self) -> tuple[str, ...]:
        self.expect("(")
        values = [self._word()]
        while self._take(","):
            values.append(self._word())
        self.expect(")")
        return tuple(values)
