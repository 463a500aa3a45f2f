"""Which of the packages that bring a device to an image is sent: the quickest one, or on a metered link the smallest.

Pure. A package takes its bytes over the link's rate, and its work, counted for an ESP32-C3, times how slow the device is beside one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dfud.errors import PeerError

RATE_MIN, RATE_MAX = 100, 10_000_000  # bytes a second that are believed
SLOWNESS_MIN, SLOWNESS_MAX = 20, 20_000  # permille of an ESP32-C3's time
TOLD_MAX = 1_000_000_000
ASSUMED_RATE = 20_000  # until a transfer has shown it: a link that is slower costs more than a decoder that is
# What saves less time than that is not worth its bytes.
GAIN_PERCENT = 10
# Shorter transfers show how long an answer takes, and little of the rate.
SHOWS_BYTES, SHOWS_WORK_MS = 8192, 200


class Candidate(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """A package that was made. work_ms: dfud.package.work; 0: nobody counted it."""

    package: str
    kind: int
    total_bytes: int
    work_ms: int = 0


class Measured(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """What the transfers of a device have shown. rate: bytes a second, 0: nothing yet; slowness: permille, 0: nothing yet."""

    rate: int = 0
    slowness: int = 0


class Link(msgspec.Struct, frozen=True):
    """What spec.link says. bytes_per_second 0: it does not say."""

    bytes_per_second: int = 0
    metered: bool = False


class Pace(msgspec.Struct, frozen=True):
    """How a device fetches and decodes. of_rate, of_slowness: how that is known: told, shown, others (of its kind), assumed."""

    rate: int = ASSUMED_RATE
    slowness: int = 1000
    metered: bool = False
    of_rate: str = "assumed"
    of_slowness: str = "assumed"

    def seconds(self, candidate: Candidate) -> float:
        return candidate.total_bytes / self.rate + candidate.work_ms * self.slowness / 1e6


ASSUMED = Pace()


class Other(msgspec.Struct, frozen=True, rename="camel", gc=False):
    kind: int
    total_bytes: int
    seconds: int


class Choice(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """Why a package was chosen; kept with the deployment. why: quickest, metered, or only: there was no other, or nothing to compare.

    seconds: estimated; rate: the link's, of_rate: known from where; others: those that were not chosen.
    """

    package: str
    kind: int
    why: str
    total_bytes: int = 0
    seconds: int = 0
    work_ms: int = 0
    rate: int = 0
    of_rate: str = ""
    others: tuple[Other, ...] = ()


def choose(candidates: Sequence[Candidate], pace: Pace) -> Choice:
    """Return what to send of at least one candidate."""
    known = all(c.work_ms for c in candidates)
    smallest = min(candidates, key=lambda c: c.total_bytes)
    chosen, why = smallest, "only"
    if known and len(candidates) > 1:
        why = "metered" if pace.metered else "quickest"
        if not pace.metered:
            most_s = min(map(pace.seconds, candidates)) * (100 + GAIN_PERCENT) / 100
            chosen = min((c for c in candidates if pace.seconds(c) <= most_s), key=lambda c: c.total_bytes)
    seconds = {c.package: max(1, round(pace.seconds(c))) if known else 0 for c in candidates}
    others = sorted((c for c in candidates if c is not chosen), key=lambda c: seconds[c.package])
    return Choice(
        package=chosen.package,
        kind=chosen.kind,
        why=why,
        total_bytes=chosen.total_bytes,
        seconds=seconds[chosen.package],
        work_ms=chosen.work_ms,
        rate=pace.rate,
        of_rate=pace.of_rate,
        others=tuple(Other(c.kind, c.total_bytes, seconds[c.package]) for c in others),
    )


def worthwhile(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those that may be chosen at some pace, the smallest first: each larger one takes clearly less work."""
    found: list[Candidate] = []
    for one in sorted(candidates, key=lambda c: (c.total_bytes, c.work_ms)):
        if not found or one.work_ms * (100 + GAIN_PERCENT) < found[-1].work_ms * 100:
            found.append(one)
    return found


def pace_of(link: Link, own: Measured | None, others: Measured | None, assumed_rate: int = ASSUMED_RATE) -> Pace:
    """Return the pace of a device. own: what its transfers showed; others: what those of its kind did."""
    rate, of_rate = assumed_rate, "assumed"
    slowness, of_slowness = 1000, "assumed"
    for shown, where in ((others, "others"), (own, "shown")):
        if shown is not None and shown.rate:
            rate, of_rate = shown.rate, where
        if shown is not None and shown.slowness:
            slowness, of_slowness = shown.slowness, where
    if link.bytes_per_second:
        rate, of_rate = link.bytes_per_second, "told"
    return Pace(rate, slowness, link.metered, of_rate, of_slowness)


def sample(received_bytes: int, receive_ms: int, decode_ms: int, work_ms: int, total_bytes: int) -> Measured:
    """Return what one transfer shows, as far as it shows anything. work_ms, total_bytes: of the whole package."""
    rate = slowness = 0
    if received_bytes >= SHOWS_BYTES and receive_ms > 0:
        rate = _rounded(min(RATE_MAX, max(RATE_MIN, received_bytes * 1000 // receive_ms)))
    if total_bytes and work_ms:
        done_ms = work_ms * min(received_bytes, total_bytes) // total_bytes
        if done_ms >= SHOWS_WORK_MS:
            slowness = _rounded(min(SLOWNESS_MAX, max(SLOWNESS_MIN, decode_ms * 1000 // done_ms)))
    return Measured(rate, slowness)


def learned(before: Measured | None, shown: Measured, weight: int = 2) -> Measured:
    """Return what is known with one transfer more, of which it is a part in `weight`."""
    if before is None:
        return shown
    pairs = ((before.rate, shown.rate), (before.slowness, shown.slowness))
    rate, slowness = (_rounded(old + (new - old) // weight) if old and new else new or old for old, new in pairs)
    return Measured(rate, slowness)


def _rounded(value: int) -> int:
    """Keep two digits: what is the same again is no news."""
    unit = 10 ** max(0, len(str(value)) - 2)
    return int(value // unit * unit)


def link_untrusted(spec: Mapping[str, Any]) -> Link | None:
    """Return what a spec says of the link, None if nothing. Raises PeerError that names the place."""
    if "link" not in spec:
        return None
    link = spec["link"]
    if not isinstance(link, Mapping) or set(link) - {"bytesPerSecond", "metered"}:
        raise PeerError('spec.link: expected an object such as {"bytesPerSecond": 20000, "metered": true}')
    rate, metered = link.get("bytesPerSecond", 0), link.get("metered", False)
    if type(rate) is not int or not (1 <= rate <= TOLD_MAX or "bytesPerSecond" not in link):
        raise PeerError(f"spec.link.bytesPerSecond: found {str(rate)[:40]}, expected an integer from 1 to {TOLD_MAX}")
    if type(metered) is not bool:
        raise PeerError(f"spec.link.metered: found {str(metered)[:40]}, expected true or false")
    return Link(rate, metered)


def link_of(app_spec: Mapping[str, Any], device_spec: Mapping[str, Any]) -> Link:
    """Return what is told of a device's link: by its own spec, or else by its app's. What cannot be read says nothing."""
    for spec in (device_spec, app_spec):
        try:
            link = link_untrusted(spec)
        except PeerError:
            continue
        if link is not None:
            return link
    return Link()


NAMES = {1: "full package", 2: "delta", 3: "mapped delta"}
KNOWN = {
    "told": "as spec.link says",
    "shown": "as its transfers have shown",
    "others": "as transfers to others of its kind have shown",
    "assumed": "assumed",
}


def sentence_of(choice: Choice) -> str:
    """Say why a package was chosen."""
    name = NAMES.get(choice.kind, f"package of kind {choice.kind}")
    if choice.why == "only":
        return f"It is sent a {name}, the only one that was made." if choice.work_ms else ""
    link = f"{choice.rate} bytes a second, {KNOWN.get(choice.of_rate, choice.of_rate)}"
    others = ", ".join(f"{NAMES.get(o.kind, o.kind)} {o.seconds} s ({o.total_bytes} bytes)" for o in choice.others)
    why = "the smallest, for its link is metered" if choice.why == "metered" else "estimated with a link of " + link
    return f"It is sent a {name}: {choice.seconds} s ({choice.total_bytes} bytes), {why}; {others}."


def choice_json(choice: Choice) -> dict[str, Any]:
    """Return a choice as users see it."""
    return {
        "kind": NAMES.get(choice.kind, str(choice.kind)),
        "why": choice.why,
        "seconds": choice.seconds,
        "bytes": choice.total_bytes,
        "link": {"bytesPerSecond": choice.rate, "from": choice.of_rate},
        "others": [
            {"kind": NAMES.get(o.kind, str(o.kind)), "seconds": o.seconds, "bytes": o.total_bytes}
            for o in choice.others
        ],
    }
