"""hawkBit's answers as values. Pure: bytes in, values out; `*_untrusted` raise PeerError and nothing else.

Unknown fields are ignored: hawkBit adds some with every version.
"""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from dfud.api import UNDECODABLE, PeerError
from dfud.api import decode_untrusted as decode_json_untrusted

T = TypeVar("T")


def address_untrusted(text: str) -> SplitResult:
    """Take an address apart; one that is none has no part."""
    try:
        return urlsplit(text)
    except ValueError:
        return SplitResult("", "", "", "", "")


class Link(msgspec.Struct, frozen=True):
    href: str = ""
    name: str = ""


class Named(msgspec.Struct, frozen=True):
    """What is known by a number: modules, sets, actions of an assignment."""

    id: int
    name: str = ""
    version: str = ""
    type: str = ""
    deleted: bool = False
    modules: list[Named] = []


class Hashes(msgspec.Struct, frozen=True):
    sha1: str = ""
    sha256: str = ""


class StoredArtifact(msgspec.Struct, frozen=True, rename="camel"):
    id: int
    provided_filename: str = ""
    size: int = 0
    hashes: Hashes = Hashes()


class Entry(msgspec.Struct, frozen=True):
    key: str
    value: str = ""


class Action(msgspec.Struct, frozen=True, rename="camel"):
    """One row of the change feed."""

    id: int
    status: str = ""
    active: bool = False
    last_modified_at: int = 0
    force_type: str = ""
    links: dict[str, Link | list[Link]] = msgspec.field(name="_links", default_factory=dict)

    @property
    def target(self) -> str:
        """The target's id, from the address: the name beside it may be anything."""
        for key in ("target", "self"):
            link = self.links.get(key)
            if isinstance(link, Link):
                found = re.search(r"/targets/([^/?]+)", address_untrusted(link.href).path)
                if found:
                    return unquote(found[1])
        return ""


class RolloutRow(msgspec.Struct, frozen=True, rename="camel"):
    """A rollout, or (without a set) one of its groups. totals: targets by status, only where one is read by its number."""

    id: int
    name: str = ""
    status: str = ""
    distribution_set_id: int = 0
    total_targets: int = 0
    totals: dict[str, int] = msgspec.field(name="totalTargetsPerStatus", default_factory=dict)
    created_by: str = ""
    deleted: bool = False


class Page(msgspec.Struct, frozen=True):
    content: list[Any] = []
    total: int = 0
    size: int = 0


class Rows(msgspec.Struct, Generic[T]):
    """A page of a list. sent: how many rows it had; total: rows of all pages; unread: why rows are left out of `rows`."""

    rows: list[T]
    sent: int
    total: int
    unread: list[Exception]


class Target(msgspec.Struct, frozen=True, rename="camel"):
    controller_id: str
    update_status: str = ""
    description: str | None = None
    request_attributes: bool = False


class Assigned(msgspec.Struct, frozen=True, rename="camel"):
    assigned: int = 0
    already_assigned: int = 0
    assigned_actions: list[Named] = []


class _Error(msgspec.Struct, frozen=True, rename="camel"):
    error_code: str = ""
    message: str = ""


class _Polling(msgspec.Struct, frozen=True):
    sleep: str = ""


class _BaseConfig(msgspec.Struct, frozen=True):
    polling: _Polling = _Polling()


class _Base(msgspec.Struct, frozen=True):
    config: _BaseConfig = _BaseConfig()
    links: dict[str, Link | list[Link]] = msgspec.field(name="_links", default_factory=dict)


class Offer(msgspec.Struct, frozen=True):
    """What hawkBit wants of one device now. kind: "" for nothing, "update", "cancel" or "confirm"; path: where it stands.

    attributes: it asks for the device's attributes besides.
    """

    kind: str = ""
    action: int = 0
    path: str = ""
    sleep_s: float = 0.0
    attributes: bool = False


class Artifact(msgspec.Struct, frozen=True):
    filename: str = ""
    size: int = 0
    hashes: Hashes = Hashes()
    links: dict[str, Link] = msgspec.field(name="_links", default_factory=dict)

    @property
    def module(self) -> int:
        """The module's number, from a download address; 0 if there is none."""
        for link in self.links.values():
            found = re.search(r"/softwaremodules/(\d{1,18})/", link.href)
            if found:
                return int(found[1])
        return 0


class Chunk(msgspec.Struct, frozen=True):
    part: str = ""
    name: str = ""
    version: str = ""
    metadata: list[Entry] = []
    artifacts: list[Artifact] = []


class Order(msgspec.Struct, frozen=True, rename="camel"):
    """What an action is about. update: skip, attempt or forced; window: "", "available" or "unavailable"."""

    download: str = ""
    update: str = ""
    maintenance_window: str = ""
    chunks: list[Chunk] = []


class _Deployment(msgspec.Struct, frozen=True):
    id: str | int = ""
    deployment: Order | None = None
    confirmation: Order | None = None


def decode_untrusted(body: bytes, kind: type[T], what: str) -> T:
    """Read JSON as `kind`. Raises PeerError."""
    return decode_json_untrusted(f"hawkBit's {what} is not what it should be", body, kind)


def decode_rows_untrusted(body: bytes, kind: type[T], what: str) -> Rows[T]:
    """Read a page; a row that is not what it should be costs that row alone. Raises PeerError."""
    page = decode_untrusted(body, Page, what)
    rows: list[T] = []
    unread: list[Exception] = []
    for row in page.content:
        try:
            rows.append(msgspec.convert(row, kind))
        except (msgspec.ValidationError, RecursionError) as error:
            unread.append(error)
    return Rows(rows, len(page.content), page.total, unread)


def decode_error_untrusted(body: bytes) -> tuple[str, str]:
    """Return (errorCode, message) of an error body, both empty if there is none: an empty 429 is the request limiter."""
    try:
        error = msgspec.json.decode(body, type=_Error)
    except UNDECODABLE:
        return "", ""
    return error.error_code[:128], error.message[:512]


def decode_offer_untrusted(body: bytes) -> Offer:
    """Read a DDI base answer. Raises PeerError."""
    base = decode_untrusted(body, _Base, "answer to a poll")
    sleep_s = sleep_untrusted(base.config.polling.sleep)
    asks = "configData" in base.links
    for key, kind in (("cancelAction", "cancel"), ("confirmationBase", "confirm"), ("deploymentBase", "update")):
        link = base.links.get(key)
        if isinstance(link, Link):
            parts = address_untrusted(link.href)
            found = re.search(rf"/{key}/(\d{{1,18}})$", parts.path)
            if found:
                query = f"?{parts.query}" if parts.query else ""
                return Offer(kind, int(found[1]), f"/{key}/{found[1]}{query}", sleep_s, asks)
    return Offer(sleep_s=sleep_s, attributes=asks)


def decode_order_untrusted(body: bytes) -> Order:
    """Read a deploymentBase or confirmationBase answer. Raises PeerError."""
    found = decode_untrusted(body, _Deployment, "deployment")
    order = found.deployment or found.confirmation
    if order is None:
        raise PeerError("hawkBit's deployment says neither deployment nor confirmation")
    return order


def sleep_untrusted(text: str) -> float:
    """Return the seconds of `HH:mm:ss`; 0 for anything else."""
    found = re.fullmatch(r"(\d{1,4}):([0-5]\d):([0-5]\d)", text, re.ASCII)
    return int(found[1]) * 3600.0 + int(found[2]) * 60.0 + int(found[3]) if found else 0.0
