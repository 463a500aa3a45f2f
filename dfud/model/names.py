"""Names of apps, devices, versions, and label selectors.

Source of the grammar: Drogue's registry (docs/drogue.md) and Kubernetes' label selectors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from dfud.errors import PeerError

APP_NAME_MAX_BYTES = 63
DEVICE_NAME_MAX_BYTES = 255
VERSION_MAX_BYTES = 64  # docs/protocol.md, status key 1
HARDWARE_MAX_BYTES = 32  # docs/protocol.md, status key 3
LABEL_MAX_BYTES = 255

_APP = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_LABEL = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def check_app_name(name: str) -> str:
    """Return `name` if it is a lower-case host name of 1 to 63 bytes, else raise PeerError."""
    if len(name) > APP_NAME_MAX_BYTES or not _APP.fullmatch(name):
        raise PeerError(f"app name {name[:80]!r}: expected a lower-case host name of 1 to {APP_NAME_MAX_BYTES} bytes")
    return name


def check_device_name(name: str) -> str:
    """Return `name` if it is 1 to 255 bytes of UTF-8 without control characters, else raise PeerError."""
    if not name or len(name.encode("utf-8", "surrogatepass")) > DEVICE_NAME_MAX_BYTES:
        raise PeerError(f"device name {name[:80]!r}: expected 1 to {DEVICE_NAME_MAX_BYTES} bytes")
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in name):
        raise PeerError(f"device name {name[:80]!r}: expected no control characters")
    return name


def check_text(what: str, text: str, limit_bytes: int) -> str:
    """Return `text` if it is 1 to `limit_bytes` bytes of printable UTF-8, else raise PeerError naming `what`."""
    if not 1 <= len(text.encode("utf-8", "surrogatepass")) <= limit_bytes or not text.isprintable():
        raise PeerError(f"{what} {text[:80]!r}: expected 1 to {limit_bytes} printable bytes")
    return text


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise PeerError at the first label whose key or value is outside the grammar."""
    for key, value in labels.items():
        if len(key) > LABEL_MAX_BYTES or not _LABEL.fullmatch(key):
            raise PeerError(f"label {key[:80]!r}: expected [prefix/]name of letters, digits, '-', '_' and '.'")
        if len(value.encode("utf-8", "surrogatepass")) > LABEL_MAX_BYTES:
            raise PeerError(f"label {key!r}: value longer than {LABEL_MAX_BYTES} bytes")


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

_CLAUSE = re.compile(
    r"""\s*(?:
        (?P<not>!)\s*(?P<absent>[^\s,()=!]+)
      | (?P<key>[^\s,()=!]+)\s*(?:
            (?P<op>==|=|!=)\s*(?P<value>[^\s,()=!]*)
          | \s(?P<set>in|notin)\s*\((?P<values>[^()]*)\)
        )?
    )\s*(?:,|$)""",
    re.VERBOSE,
)


def parse_selector_untrusted(text: str) -> Selector:
    """Parse `k=v,k!=v,k in (a,b),k notin (a,b),k,!k` (comma is AND).

    Raises PeerError that names the place; the empty text gives the selector that matches everything.
    """
    if not text.strip():
        return EVERYTHING
    requirements = []
    position = 0
    while position < len(text):
        match = _CLAUSE.match(text, position)
        if match is None or match.end() == position:
            raise PeerError(f"label selector: cannot read {text[position : position + 40]!r} at position {position}")
        position = match.end()
        key = match["absent"] or match["key"]
        if not _LABEL.fullmatch(key):
            raise PeerError(f"label selector: {key[:80]!r} is no label")
        if match["absent"]:
            requirements.append(Requirement(key, "absent"))
        elif match["op"]:
            requirements.append(Requirement(key, "notin" if match["op"] == "!=" else "in", (match["value"],)))
        elif match["set"]:
            values = tuple(v.strip() for v in match["values"].split(","))
            requirements.append(Requirement(key, "in" if match["set"] == "in" else "notin", values))
        else:
            requirements.append(Requirement(key, "exists"))
    if text.rstrip().endswith(","):
        raise PeerError("label selector: ends with a comma")
    return Selector(tuple(requirements))
