"""hawkBit's queries (`q=`, RSQL): `;` is and, `,` is or, values may be quoted, `*` in a value of == stands for anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.plugins.hawkbit.model.entities import Problem

Row = Callable[[Any], Any]
Predicate = Callable[[Any], bool]
_TOKEN = re.compile(
    r"""\s*(?:(?P<op>==|!=|=(?:gt|ge|lt|le|in|out)=|<=|>=|<|>)|(?P<p>[();,])|(?P<q>'[^']*'|"[^"]*")|(?P<w>[^\s"'();,=!<>]+))"""
)
_SIGNS = {"<": "=lt=", "<=": "=le=", ">": "=gt=", ">=": "=ge="}


def compile_query(text: str, fields: Mapping[str, Row]) -> Predicate:
    """Return what `text` says of a row. Raises Problem as hawkBit does for a query that it cannot read."""
    return _Parser(text, fields).parse()


class _Parser:
    def __init__(self, text: str, fields: Mapping[str, Row]) -> None:
        self._fields = fields
        self._tokens: list[tuple[str, str]] = []
        at = 0
        text = text.strip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if not found or not found.lastgroup:
                raise _syntax()
            self._tokens.append((found.lastgroup, found[found.lastgroup]))
            at = found.end()

    def parse(self) -> Predicate:
        found = self._or()
        if self._tokens:
            raise _syntax()
        return found

    def _next(self, *kinds: str) -> str:
        if not self._tokens or self._tokens[0][0] not in kinds:
            raise _syntax()
        return self._tokens.pop(0)[1]

    def _is(self, text: str) -> bool:
        return bool(self._tokens) and self._tokens[0] == ("p", text)

    def _or(self) -> Predicate:
        parts = [self._and()]
        while self._is(","):
            self._tokens.pop(0)
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else lambda row: any(part(row) for part in parts)

    def _and(self) -> Predicate:
        parts = [self._one()]
        while self._is(";"):
            self._tokens.pop(0)
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else lambda row: all(part(row) for part in parts)

    def _one(self) -> Predicate:
        if self._is("("):
            self._tokens.pop(0)
            found = self._or()
            if not self._is(")"):
                raise _syntax()
            self._tokens.pop(0)
            return found
        name = self._next("w")
        op = self._next("op")
        op = _SIGNS.get(op, op)
        if op in ("=in=", "=out="):
            if not self._is("("):
                raise _syntax()
            values = []
            while self._tokens.pop(0) != ("p", ")"):
                values.append(_unquoted(self._next("q", "w")))
                if not self._tokens:
                    raise _syntax()
        else:
            values = [_unquoted(self._next("q", "w"))]
        return self._test(name, op, values)

    def _test(self, name: str, op: str, values: list[str]) -> Predicate:
        get = self._getter(name)
        if op in ("==", "=in="):
            tests = [_equal(value) for value in values]
            return lambda row: any(test(get(row)) for test in tests)
        if op in ("!=", "=out="):
            tests = [_equal(value) for value in values]
            return lambda row: not any(test(get(row)) for test in tests)
        try:
            limit = int(values[0])
        except ValueError:
            raise Problem(400, "hawkbit.server.error.rest.body.notReadable", f"bad value {values[0]}") from None
        compare: dict[str, Callable[[int], bool]] = {
            "=gt=": lambda value: value > limit,
            "=ge=": lambda value: value >= limit,
            "=lt=": lambda value: value < limit,
            "=le=": lambda value: value <= limit,
        }
        test = compare[op]
        return lambda row: (value := get(row)) is not None and test(value)

    def _getter(self, name: str) -> Row:
        lowered = name.lower()
        for key, get in self._fields.items():
            if key.lower() == lowered:
                return get
            if key.endswith(".*") and lowered.startswith(key[:-1].lower()):
                rest = name[len(key) - 1 :]
                return lambda row: get(row).get(rest)
        raise Problem(400, "hawkbit.server.error.rest.param.rsqlInvalidField", f"no field {name}")


def _unquoted(text: str) -> str:
    return text[1:-1] if text[0] in "'\"" else text


def _equal(value: str) -> Predicate:
    if "*" in value:
        pattern = re.compile(".*".join(re.escape(part) for part in value.split("*")), re.IGNORECASE | re.DOTALL)
        return lambda found: found is not None and pattern.fullmatch(_text(found)) is not None
    lowered = value.lower()
    return lambda found: (found is None and value == "") or (found is not None and _text(found).lower() == lowered)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _syntax() -> Problem:
    return Problem(400, "hawkbit.server.error.rest.param.rsqlParamSyntax", "The given search query is malformed.")
