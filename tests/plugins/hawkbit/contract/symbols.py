"""Names for what differs from run to run, so that what one server answered can be compared with what another answers.

Numbers of modules, sets, actions and so on become `{module:1}` in order of first appearance, times become `{time}`, the
server's address `{url}`, the names that a scenario gives `{run}`, tokens `{token}`.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import Any

_PATHS = {
    "softwaremodules": "module",
    "artifacts": "artifact",
    "distributionsets": "set",
    "actions": "action",
    "deploymentBase": "action",
    "installedBase": "action",
    "cancelAction": "action",
    "confirmationBase": "action",
    "rollouts": "rollout",
    "deploygroups": "group",
    "targetfilters": "filter",
    "softwaremoduletypes": "moduletype",
    "distributionsettypes": "settype",
}
_IN_PATH = re.compile(rf"/({'|'.join(_PATHS)})/(\d+)(?=[/?#\"{{]|$)")
_HASH = re.compile(r"\?c=-?\d+")
_IN_QUERY = re.compile(r"(?<![\w.])(?:rollout\.)?id(?:==|=gt=)(\d+)")
NOWHERE = 900_000  # numbers from here on are of nothing, and stay as they are
_UNORDERED = {"modules": "type", "chunks": "part"}
_TIME_MS = 1_000_000_000_000
_KEYS = {"distributionSetId": "set", "rollout": "rollout", "stopId": "action"}
_SYMBOL = re.compile(r"\{(module|artifact|set|action|rollout|group|moduletype|settype|filter|status):(\d+)\}")


class Symbols:
    """Both directions for one scenario on one server. run: the part that all its names share."""

    def __init__(self, url: str, run: str, secrets: dict[str, str] | None = None) -> None:
        self._literals: list[tuple[str, str]] = [(url, "{url}"), (run, "{run}")]
        self._literals += [(text, "{" + name + "}") for name, text in (secrets or {}).items()]
        self._numbers: dict[str, list[int]] = {}
        self._made: dict[str, Any] = {}

    def literal(self, text: str, symbol: str) -> str:
        """Show `text` as `{symbol}` from now on, and the other way round."""
        self._literals.append((text, "{" + symbol + "}"))
        return text

    def moment(self, offset_s: int) -> str:
        """Return a maintenance schedule of one moment, `offset_s` from now in UTC."""
        at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=offset_s)
        text = f"{at.second} {at.minute} {at.hour} {at.day} {at.month} ? {at.year}"
        return self.literal(text, f"moment:{offset_s}")

    def at(self, offset_ms: int) -> int:
        """Return the time `offset_ms` from now."""
        value = int(dt.datetime.now(dt.UTC).timestamp() * 1000) + offset_ms
        self.literal(str(value), f"at:{offset_ms}")
        return value

    def _name(self, kind: str, number: int) -> str:
        if number >= NOWHERE:
            return str(number)
        known = self._numbers.setdefault(kind, [])
        if number not in known:
            known.append(number)
        return f"{{{kind}:{known.index(number) + 1}}}"

    def hide_query(self, text: str) -> str:
        """Return a query of actions with symbols."""

        def shown(found: re.Match[str]) -> str:
            kind = "rollout" if found[0].startswith("rollout") else "action"
            return found[0].removesuffix(found[1]) + self._name(kind, int(found[1]))

        return _IN_QUERY.sub(shown, self.hide_text(text))

    def hide_text(self, text: str) -> str:
        for literal, symbol in self._literals:
            text = text.replace(literal, symbol)
        text = _HASH.sub("?c={hash}", text)
        return _IN_PATH.sub(lambda m: f"/{m[1]}/{self._name(_PATHS[m[1]], int(m[2]))}", text)

    def hide(self, value: Any, kind: str = "") -> Any:
        """Return a body with symbols. kind: what a bare `id` in it numbers."""
        if isinstance(value, dict):
            # What an error tells of hawkBit's own classes is left out.
            shown = {k: self._hide_entry(k, v, value, kind) for k, v in value.items() if k != "exceptionClass"}
            if all(shown.get(key) == "{time}" for key in ("createdAt", "lastModifiedAt")):
                # Four lines of every row there is, as one.
                del shown["createdAt"], shown["lastModifiedAt"]
                shown = {"by": f"{shown.pop('createdBy')} {shown.pop('lastModifiedBy')}", **shown}
            return shown
        if isinstance(value, list):
            return [self.hide(item, kind) for item in value]
        if isinstance(value, str):
            return self.hide_text(value)
        if isinstance(value, int) and not isinstance(value, bool) and value >= _TIME_MS:
            text = self.hide_text(str(value))
            return text if text.startswith("{") else "{time}"
        return value

    def _hide_entry(self, key: str, value: Any, owner: dict[str, Any], kind: str) -> Any:
        if key == "id":
            own = self._kind(owner) or kind
            if own and str(value).isdigit():
                return self._name(own, int(value))
        if key in _KEYS and str(value).isdigit():
            return self._name(_KEYS[key], int(value))
        if key == "messages" and isinstance(value, list):
            return sorted(self.hide(value), key=str)  # hawkBit keeps them as a set
        if key in _UNORDERED and isinstance(value, list):
            rows = sorted(value, key=lambda row: str(row.get(_UNORDERED[key])))
            return self.hide(rows, "module" if key == "modules" else kind)
        if key == "timestamp" and isinstance(value, str):
            return "{time}"
        if key == "securityToken":
            return "{token}"
        if key == "polling":
            return self.hide(value)
        return self.hide(value, "" if key in ("_links",) else kind)

    @staticmethod
    def _kind(owner: dict[str, Any]) -> str:
        """What a body is, by its own address."""
        links = owner.get("_links")
        link = links.get("self") if isinstance(links, dict) else None
        if isinstance(link, dict):
            found = re.search(r"/([A-Za-z]+)/\d+(?:\?.*)?$", link.get("href", ""))
            if found:
                return _PATHS.get(found[1], "")
        return ""

    def show_text(self, text: str) -> str:
        """Return text without symbols: the opposite of hide_text, on this server."""
        for found in re.findall(r"\{moment:(-?\d+)\}", text):
            if not any(symbol == f"{{moment:{found}}}" for _, symbol in self._literals):
                self.moment(int(found))
        for found in re.findall(r"\{at:(-?\d+)\}", text):
            if not any(symbol == f"{{at:{found}}}" for _, symbol in self._literals):
                self.at(int(found))
        for literal, symbol in self._literals:
            text = text.replace(symbol, literal)
        return _SYMBOL.sub(lambda m: str(self._numbers[m[1]][int(m[2]) - 1]), text)

    def show(self, value: Any) -> Any:
        """Return a request's body without symbols; numbers that were hidden are numbers again."""
        text = json.dumps(value)
        text = re.sub(r'"(\{(?:at|module|set|action|rollout):-?\d+\})"', r"\1", text)
        return json.loads(self.show_text(text))
