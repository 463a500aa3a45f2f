"""What every route of the user plane works with: who asks, what may be asked, bodies in, answers out.

Knows no route; dfud.registry.application puts the routes together.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import trio
from quart import Response, current_app, g, request

from dfud.api import DfudError, NotFoundError, PeerError, Selector, decode_untrusted, parse_selector_untrusted
from dfud.model.names import check_app_name
from dfud.registry.config import RegistryConfig
from dfud.registry.users import Forbidden, Role, User

T = TypeVar("T")
LIST_MAX = 1000
NUMBER_DIGITS_MAX = 12


class Busy(DfudError):
    """Too much is under way; the same request may be answered later."""


class TooLarge(PeerError):
    """A body beyond its limit."""


class TooSlow(PeerError):
    """A body that does not arrive in time."""


def user() -> User:
    """Return who asks."""
    found: User = g.user
    return found


def require(role: Role, app: str | None) -> User:
    """Return who asks, if he has at least `role` for `app`.

    Raises NotFoundError if he may not even know the app, Forbidden if he may know it and not do this.
    """
    found = user()
    if app is not None:
        check_app_name(app)
    if not found.may(role, app):
        if app is not None and not found.sees(app):
            raise NotFoundError(f"no app {app}")
        raise Forbidden(f"this needs the role {role}{f' for app {app}' if app else ''}")
    return found


async def read_body(limit: int) -> bytes:
    """Read the body, up to `limit` bytes and for [registry] body_s. Raises PeerError."""
    length = request.content_length
    if length is not None and length > limit:
        raise TooLarge(f"the body has {length} bytes, expected at most {limit}")
    out = bytearray()
    limit_s = current_app.config["BODY_TIMEOUT"]
    with trio.move_on_after(limit_s) as scope:
        async for data in request.body:
            out += data
            if len(out) > limit:
                raise TooLarge(f"the body has more than {limit} bytes")
    if scope.cancelled_caught:
        raise TooSlow(f"the body took longer than {limit_s:g} s")
    return bytes(out)


async def read_json(kind: type[T], limit: int, *, empty: T | None = None) -> T:
    """Read the body as JSON of `kind`; `empty` is what no body stands for. Raises PeerError that says where it is not."""
    body = await read_body(limit)
    if empty is not None and not body.strip():
        return empty
    return decode_untrusted("the body is not what it should be", body, kind)


def page(config: RegistryConfig) -> tuple[Selector, int, int]:
    """Return (selector, limit, offset) of a list request. Raises PeerError."""
    limit, offset = number_of("limit", LIST_MAX, 0, LIST_MAX), number_of("offset", 0, 0, 1 << 31)
    return selector_of(request.args.get("labels", ""), config), limit, offset


def number_of(name: str, default: int, low: int, high: int) -> int:
    """Return a parameter of the request that is a whole number. Raises PeerError."""
    text = request.args.get(name, str(default))
    if not is_number(text) or not low <= int(text) <= high:
        raise PeerError(f"{name} {text[:20]!r}: expected {low} to {high}")
    return int(text)


def is_number(text: str) -> bool:
    """Say whether a text is a whole number that may be read: judged by all of its digits, and of no more than NUMBER_DIGITS_MAX."""
    return text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS_MAX


def selector_of(text: str, config: RegistryConfig) -> Selector:
    """Read a label selector within the configured limits. Raises PeerError."""
    return parse_selector_untrusted(text, max_bytes=config.selector_max_bytes, max_terms=config.selector_max_terms)


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, content_type="application/json")


def error_response(status: int, error: str, message: str) -> Response:
    return json_response({"code": status, "error": error, "message": message}, status)
