"""Watching updates until they have ended: what `status --watch` and `update --watch` do, and the exit codes that tell how it went."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from dfud.cli.client import CliError, Session
from dfud.cli.show import say, say_lines, show_json
from dfud.cli.state import GOOD, Judged, Outcome, concerned, in_sync, is_of_app, judge, line, result_text

EXIT_OTHERWISE, EXIT_WAITING = 3, 4  # docs/cli.md, "Exit codes"
LOOK_S = 15.0  # look at everything so often, whatever the events tell
GATHER_S = 0.3  # events that come together are looked at together
AGAIN_S = 1.0
ONE_BY_ONE = 20  # up to so many devices are asked for each by itself


def exit_code(outcomes: Iterable[Judged]) -> int:
    """Return 0 if all ended well, 3 if one ended otherwise, 4 if the time was over before."""
    found = {judged.outcome for judged in outcomes}
    if found <= GOOD:
        return 0
    return EXIT_WAITING if found <= GOOD | {Outcome.WAITING} else EXIT_OTHERWISE


class Watch:
    """Shows every change of some devices until each of their updates has ended, or the time is over.

    labels: a selector that they all match, "" if there is none. version, app: what they are updated to; None: whatever
    they should run.
    """

    def __init__(
        self,
        session: Session,
        names: Iterable[str],
        *,
        labels: str = "",
        version: str | None = None,
        app: str | None = None,
        download_only: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        self._session = session
        self._names = list(dict.fromkeys(names))
        self._pending = set(self._names)
        self._labels = labels
        self._version = version
        self._app = app
        self.of_app = app is not None and version is None
        self._download_only = download_only
        self._until = time.monotonic() + timeout_s if timeout_s else float("inf")
        self._told: dict[str, str] = {}
        self.outcomes: dict[str, Judged] = {}
        self.found: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, Judged]:
        """Return how each ended. What the registry says no to is raised; that it is away for a while is not."""
        events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._look(set())
        if self._pending:
            only = self._names[0] if len(self._names) == 1 else None
            threading.Thread(target=_listen, args=(self._session, only, events.put), daemon=True).start()
        while self._pending and (left_s := self._until - time.monotonic()) > 0:
            changed = _gather(events, min(LOOK_S, left_s))
            if changed is None:
                self._look(set())
            elif changed & self._pending:
                self._look(changed & self._pending)
        for name in sorted(self._pending):
            self.outcomes[name] = Judged(
                Outcome.WAITING, line(self.found[name], of_app=self.of_app) if name in self.found else ""
            )
        return self.outcomes

    def _look(self, names: set[str]) -> None:
        """Look at `names`, or (none given) at all that are pending. What is shown is what is stored, not what an event says."""
        while True:
            try:
                self._read(names or self._pending)
                return
            except CliError as error:
                left_s = self._until - time.monotonic()
                if not error.transient or left_s <= 0:
                    raise
                say(f"{error}; trying again", err=True)
                time.sleep(min(AGAIN_S, left_s))

    def _read(self, names: set[str]) -> None:
        todo = set(names)
        if len(todo) > ONE_BY_ONE:
            for page in self._session.pages(self._session.registry("devices"), labels=self._labels):
                for one in page:
                    name = one["metadata"]["name"]
                    if name in todo:
                        todo.discard(name)
                        self._judge(name, one["status"]["firmware"])
        # A device that moved between two pages was not in either of them.
        for name in sorted(todo):
            try:
                self._judge(name, firmware_of(self._session, name))
            except CliError as error:
                if error.status != 404:
                    raise
                self._end(name, Judged(Outcome.GONE))

    def _judge(self, name: str, firmware: dict[str, Any]) -> None:
        self.found[name] = firmware
        told = line(firmware, of_app=self.of_app)
        if self._told.get(name) != told:
            self._told[name] = told
            if self._session.json:
                show_json({"device": name, **firmware}, indent=None)
            else:
                say(f"{name}: {told}")
        judged = judge(firmware, self._version, self._app, download_only=self._download_only)
        if judged.outcome is not None:
            self._end(name, judged)

    def _end(self, name: str, judged: Judged) -> None:
        self._pending.discard(name)
        self.outcomes[name] = judged


def firmware_of(session: Session, name: str) -> dict[str, Any]:
    found: dict[str, Any] = session.request("GET", session.registry("devices", name))["status"]["firmware"]
    return found


def _gather(events: queue.SimpleQueue[str], wait_s: float) -> set[str] | None:
    """Return the devices of the events that come within `wait_s`, as soon as there are some; None: look at all."""
    names: set[str] = set()
    until = time.monotonic() + wait_s
    while (left_s := until - time.monotonic()) > 0:
        try:
            name = events.get(timeout=left_s)
        except queue.Empty:
            break
        if not names:
            until = min(until, time.monotonic() + GATHER_S)
        names.add(name)
    return names if names and "" not in names else None


def _listen(session: Session, device: str | None, tell: Callable[[str], object]) -> None:
    """Tell the device of each event, "" when events may have been missed. Never ends; errors are for who asks to see."""
    while True:
        try:
            params = {"device": device} if device is not None else {}
            with session.client() as client, client.stream("GET", session.api("events"), params=params) as answer:
                for text in answer.iter_lines() if answer.is_success else ():
                    tell(json.loads(text)["device"] if text.strip() else "")
        except (CliError, ValueError, KeyError):
            pass
        time.sleep(AGAIN_S)


def tell_outcomes(session: Session, seen: Watch) -> None:
    """Say how it ended: what became of each device that is not where it should be, and a count of all."""
    outcomes, found = seen.outcomes, seen.found
    if session.json:
        told = {name: {"outcome": str(o.outcome), "why": o.why} for name, o in sorted(outcomes.items())}
        show_json({"outcomes": told}, indent=None)
        return
    for name, judged in sorted(outcomes.items()):
        if judged.outcome in GOOD:
            continue
        # Of a traceback that line which says what it was; the whole of it stands below.
        title = judged.why.strip().rpartition("\n")[2].strip()
        say(f"{name}: {judged.outcome}{f': {title}' if title else ''}")
        deployment = found.get(name, {}).get("deployment") or {}
        if not seen.of_app or is_of_app(deployment):
            show_result(found.get(name, {}))
        elif title != judged.why.strip():
            say_lines(judged.why, "  | ")  # what is shown as the device's deployment is the system's
        ended = judged.outcome in (Outcome.ROLLED_BACK, Outcome.FAILED, Outcome.CANCELLED)
        if deployment.get("blocked") if not seen.of_app or is_of_app(deployment) else ended:
            say(f"  It is not sent again by itself; `dfuctl retry {name}` lets it try again.")
    if len(outcomes) > 1:
        counts = Counter(str(judged.outcome) for judged in outcomes.values())
        say(f"{len(outcomes)} devices: {', '.join(f'{count} {what}' for what, count in counts.most_common())}.")


def show_weaker(firmware: dict[str, Any]) -> None:
    """Show what a device lacks that has another bootloader than dfud's."""
    for condition in firmware.get("conditions", ()):
        if condition.get("type") == "DfudBootloader":
            say(f"  not dfud's bootloader: {condition.get('message', '')}")


def show_result(firmware: dict[str, Any]) -> None:
    """Show the reason and the traceback of the last deployment, with its version: it may be about another than the target."""
    deployment = firmware.get("deployment") or {}
    told = result_text(deployment)
    if not told:
        return
    condition = in_sync(firmware)
    # Nor of now is the end of an attempt that another one follows.
    current = concerned(firmware) and condition.get("status") != "True" and condition.get("reason") != "pending"
    which = "" if current else f"{deployment['version']}, {deployment['updated']}: "
    say(f"  {which}{told}")
    say_lines(deployment["result"]["text"], "  | ")
