"""Requests, answers and the table of routes. A route that is not in the table has no recording behind it: 501."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from tests.plugins.hawkbit.model.entities import PAGE, PAGE_MAX, Problem, Target, Unknown

HAL = "application/hal+json"


@dataclass
class Request:
    method: str
    path: str  # as sent, still percent-encoded
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes
    base: str = ""  # scheme://host:port of this request, which hawkBit's links repeat

    def only(self, *allowed: str) -> None:
        """Raise Unknown for a query parameter that the model does not know."""
        if extra := set(self.query) - set(allowed):
            raise Unknown(f"query parameters {sorted(extra)}")

    def json(self, *allowed: str, rows: bool = False) -> Any:
        """Return the body. Raises Problem where hawkBit would, Unknown for keys that the model does not know."""
        if "json" not in self.headers.get("content-type", ""):
            raise Unknown(f"content type {self.headers.get('content-type')}")
        try:
            found = json.loads(self.body)
        except ValueError:
            raise bad_body() from None
        if rows and isinstance(found, dict):
            found = [found]
        for row in found if isinstance(found, list) else [found]:
            if not isinstance(row, dict):
                raise bad_body()
            if allowed and (extra := set(row) - set(allowed)):
                raise Unknown(f"body keys {sorted(extra)}")
        return found


@dataclass
class Response:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def bad_body() -> Problem:
    return Problem(400, "hawkbit.server.error.rest.body.notReadable", "The given request body is not well formed")


def answer(value: Any, status: int = 200, kind: str = HAL) -> Response:
    return Response(status, json.dumps(value, separators=(",", ":")).encode(), {"content-type": kind})


def page(request: Request, rows: list[Any], show: Callable[[Any], Any]) -> Response:
    """Return one page of rows that are in order already. Pages of more than 500 are cut in silence."""
    try:
        offset = int(request.query.get("offset", 0))
        limit = int(request.query.get("limit", PAGE))
    except ValueError:
        raise Problem(400, "hawkbit.server.error.rest.param.illegal", "not a number") from None
    limit = min(limit, PAGE_MAX)
    shown = [show(row) for row in rows[offset : offset + limit]]
    return answer({"content": shown, "total": len(rows), "size": len(shown)})


def in_order(request: Request, rows: Sequence[Any], default: str = "id:ASC") -> list[Any]:
    name, _, direction = request.query.get("sort", default).partition(":")
    keys = {
        "id": "id",
        "lastmodifiedat": "modified_at",
        "createdat": "created_at",
        "name": "name",
        "controllerid": "cid",
    }
    if name.lower() not in keys:
        raise Unknown(f"sort by {name}")
    attribute = keys[name.lower()]
    if attribute == "id" and rows and isinstance(rows[0], Target):
        attribute = "cid"  # the id of a target is what it is called
    return sorted(rows, key=lambda row: getattr(row, attribute), reverse=direction.upper() == "DESC")


Handler = Callable[..., Response]


class Routes:
    """Patterns like `/targets/{cid}/actions/{id:int}`; the handler gets the request and the parts."""

    def __init__(self) -> None:
        self._table: list[tuple[str, re.Pattern[str], list[bool], Handler]] = []

    def add(self, method: str, pattern: str) -> Callable[[Handler], Handler]:
        numbers = [bool(part) for part in re.findall(r"\{\w+(:int)?\}", pattern)]
        expression = re.sub(r"\{\w+:int\}", r"(\\d+)", pattern)
        expression = re.sub(r"\{\w+\}", r"([^/]+)", expression)

        def keep(handler: Handler) -> Handler:
            self._table.append((method, re.compile(expression), numbers, handler))
            return handler

        return keep

    def handlers(self) -> list[Handler]:
        return [handler for _, _, _, handler in self._table]

    def find(self, method: str, path: str) -> tuple[Handler, list[Any]]:
        for wanted, pattern, numbers, handler in self._table:
            if wanted == method and (found := pattern.fullmatch(path)):
                parts = [
                    int(text) if number else unquote(text) for text, number in zip(found.groups(), numbers, strict=True)
                ]
                return handler, parts
        raise Unknown("no such route")
