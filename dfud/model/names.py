"""Names: what users and devices call things, one rule for each kind.

A name is checked where it enters: the command line, the registry, an enrolment. What was stored under an older rule is still
found, shown and deleted by its name, so nothing that looks a name up checks it.

Source of the grammar: Drogue's registry (docs/drogue.md) and Kubernetes' labels.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Literal
from urllib.parse import quote

import msgspec

from dfud.errors import PeerError
from dfud.model.text import hidden, visible

APP_NAME_MAX_BYTES = 63
DEVICE_NAME_MAX_BYTES = 255
VERSION_MAX_BYTES = 64  # docs/protocol.md, status key 1
HARDWARE_MAX_BYTES = 32  # docs/protocol.md, status key 3
LABEL_MAX_BYTES = 255

_APP = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_LABEL = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")

Kind = Literal[
    "app", "device", "alias", "version", "hardware", "user", "label", "label value", "channel", "command", "rollout"
]


class Rule(msgspec.Struct, frozen=True):
    """What a kind of name must be beyond the rules of all names (check_name).

    what: the kind in an error. grammar: the whole name, `expected` says it in words. part_of_path: it has its place in paths of
    URLs. without: characters that it may not hold.
    """

    what: str
    max_bytes: int
    min_bytes: int = 1
    grammar: re.Pattern[str] | None = None
    expected: str = ""
    part_of_path: bool = False
    without: str = ""


RULES: dict[Kind, Rule] = {
    "app": Rule("app name", APP_NAME_MAX_BYTES, grammar=_APP, expected="a lower-case host name"),
    "device": Rule("device name", DEVICE_NAME_MAX_BYTES, part_of_path=True),
    "alias": Rule("alias", DEVICE_NAME_MAX_BYTES, part_of_path=True),
    "version": Rule("version", VERSION_MAX_BYTES, part_of_path=True),
    "hardware": Rule("hardware", HARDWARE_MAX_BYTES),
    "user": Rule("user name", 255, without=":"),  # HTTP's Basic authentication ends it with a colon
    "label": Rule(
        "label",
        LABEL_MAX_BYTES,
        grammar=_LABEL,
        expected="[prefix/]name of letters, digits, '-', '_' and '.'",
    ),
    "label value": Rule("label value", LABEL_MAX_BYTES, min_bytes=0),
    "channel": Rule("channel", 255, part_of_path=True),
    "command": Rule("command", 255),
    "rollout": Rule("rollout name", APP_NAME_MAX_BYTES, grammar=_APP, expected="a lower-case host name"),
}


def check_name(kind: Kind, name: str) -> str:
    """Return `name` if it may be given to a new thing of this kind, else raise PeerError that says what was expected.

    Every name: its length in bytes of UTF-8; no hidden character (text.hidden) and so one line that reads as it is stored; the
    composed Unicode form (NFC), so that what looks the same is the same; no space at either end. One that has its place in
    paths: no empty part and no part of dots alone between its slashes, since proxies and clients fold those.
    """
    rule = RULES[kind]
    problem = _problem(rule, name)
    if problem:
        raise PeerError(f"{rule.what} '{visible(name[:80])}': expected {problem}")
    return name


def _problem(rule: Rule, name: str) -> str:
    """Return what was expected, or "" if the name is right."""
    if rule.grammar is not None and not (len(name) <= rule.max_bytes and rule.grammar.fullmatch(name)):
        return f"{rule.expected} of {rule.min_bytes} to {rule.max_bytes} bytes"
    if not rule.min_bytes <= len(name.encode("utf-8", "surrogatepass")) <= rule.max_bytes:
        return f"{rule.min_bytes} to {rule.max_bytes} bytes"
    found = next((c for c in name if hidden(c)), "")
    if found:
        return f"printable characters, found U+{ord(found):04X}"
    if not unicodedata.is_normalized("NFC", name):
        return f"the composed Unicode form (NFC), '{visible(unicodedata.normalize('NFC', name)[:80])}'"
    if name != name.strip():
        return "no space at its beginning or end"
    if rule.part_of_path and name and any(not part.strip(".") for part in name.split("/")):
        return "no empty part and no part of dots alone between slashes"
    if any(c in rule.without for c in name):
        return f"none of the characters {rule.without}"
    return ""


def path_of(base: str, *names: str) -> str:
    """Return the path of a URL: `base` as it is, each name behind it percent-encoded whole, its slashes too.

    A name of dots alone, which older rules took, keeps its place: its dots are encoded as well. A proxy may fold it still, so
    whoever deletes something compares what is there first. Raises PeerError for an empty name, which has no place at all.
    """
    if not all(names):
        raise PeerError("a name is empty, expected at least one character")
    return "/".join([base, *(quote(name, safe="") if name.strip(".") else "%2E" * len(name) for name in names)])


def check_app_name(name: str) -> str:
    """Return `name` if it is a lower-case host name of 1 to 63 bytes, else raise PeerError."""
    return check_name("app", name)


def check_device_name(name: str) -> str:
    """Return `name` if a new device may be called so, else raise PeerError."""
    return check_name("device", name)


def check_labels(labels: Mapping[str, str], held: Mapping[str, str] | None = None) -> None:
    """Raise PeerError at the first label whose key or value is outside its rule.

    held: the labels that the thing has already; what is unchanged among them is not judged again, so that something which was
    labelled under an older rule can still be changed.
    """
    for key, value in labels.items():
        if held is not None and held.get(key) == value:
            continue
        check_name("label", key)
        try:
            check_name("label value", value)
        except PeerError as error:
            raise PeerError(f"label {key}: {error}") from None


def is_label_key(key: str) -> bool:
    """Say whether a label may have this key."""
    return len(key) <= LABEL_MAX_BYTES and _LABEL.fullmatch(key) is not None
