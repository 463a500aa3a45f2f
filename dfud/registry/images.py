"""The images of one version: which may stand beside which, and what may be said of the ways to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from dfud.api import ConflictError, Firmware, Image, PeerError, RefusedError, Requires
from dfud.model.firmware import IMAGES_MAX, SEQUENCE_MAX, ambiguous

ATTRIBUTES_MAX = 16  # docs/protocol.md, status key 11
ATTRIBUTE_BYTES = 64


def read_attributes_untrusted(pairs: Sequence[str]) -> dict[str, str]:
    """Read conditions on attributes, `rev=2` each. Raises PeerError."""
    found: dict[str, str] = {}
    if len(pairs) > ATTRIBUTES_MAX:
        raise PeerError(f"attribute: {len(pairs)} conditions, expected at most {ATTRIBUTES_MAX}")
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or key in found:
            raise PeerError(f"attribute {pair[:80]!r}: expected KEY=VALUE, each key once, such as rev=2")
        if any(
            len(part.encode("utf-8", "surrogatepass")) > ATTRIBUTE_BYTES or not part.isprintable()
            for part in (key, value)
        ):
            raise PeerError(f"attribute {pair[:80]!r}: expected printable text of at most {ATTRIBUTE_BYTES} bytes each")
        found[key] = value
    return found


def added(existing: Firmware, image: Image) -> Firmware:
    """Return a record with one more image. Raises ConflictError where it could not be told whose image is whose."""
    what = f"firmware {existing.version} of app {existing.app}"
    for held in existing.images:
        if (held.hardware, held.attributes) == (image.hardware, image.attributes):
            raise ConflictError(f"{what} exists already, with another image for {held.meant_for}")
        if ambiguous(held, image):
            raise ConflictError(
                f"{what} has an image for {held.meant_for}; a device could be meant by that and by {image.meant_for}: "
                "give one of them another condition, so that one is more exact"
            )
    if len(existing.images) >= IMAGES_MAX:
        raise RefusedError(f"{what} has {IMAGES_MAX} images already")
    if image.sequence != existing.sequence:
        raise ConflictError(
            f"sequence {image.sequence} was given, the images of {existing.version} have {existing.sequence}: "
            f"give the same (`--sequence {existing.sequence}`)"
        )
    return existing.with_images([*existing.images, image])


def replaced(existing: Firmware, image: Image) -> Firmware:
    """Return a record in which this image stands for the one of the same digest."""
    return existing.with_images([image if held.sha256 == image.sha256 else held for held in existing.images])


def chosen(firmware: Firmware, hardware: str, attributes: Mapping[str, str]) -> Image:
    """Return the image that a user names; the only one needs no name. Raises RefusedError that says which there are."""
    images = firmware.images
    if not hardware and not attributes:
        if len(images) == 1:
            return images[0]
        found = []
    else:
        found = [i for i in images if i.hardware == hardware and i.attributes == dict(attributes)]
    if len(found) != 1:
        there = "; ".join(image.meant_for for image in images)
        raise RefusedError(f"firmware {firmware.version} has images for {there}: say for which hardware and attributes")
    return found[0]


class Bound(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A range of versions as a user says it: by name, or by sequence."""

    from_: str | int | None = msgspec.field(default=None, name="from")
    to: str | int | None = None


def bound_of(from_: str | None, to: str | None) -> Bound | None:
    """Return the range that two parameters of a request say, None without any."""
    return Bound(from_, to) if from_ is not None or to is not None else None


def refuse_recalled(firmware: Firmware) -> None:
    """Raise RefusedError for a version that nobody is to get."""
    if firmware.recalled is not None:
        raise RefusedError(f"firmware {firmware.version} is recalled: {firmware.recalled.reason}")


def read_requires(bound: Bound, published: Sequence[Firmware], version: str, sequence: int) -> Requires:
    """Return which sequences may go to a version directly. Raises PeerError that names the field."""
    known = {firmware.version: firmware.sequence for firmware in published}

    def number(field: str, value: str | int | None, default: int) -> int:
        if value is None:
            return default
        if isinstance(value, int):
            if not 0 <= value <= SEQUENCE_MAX:
                raise PeerError(f"requires.{field}: {value}, expected a version or a sequence from 0 to {SEQUENCE_MAX}")
            return value
        if value not in known:
            raise PeerError(
                f"requires.{field}: {value[:80]} is not published, expected a version that is, or a sequence"
            )
        return known[value]

    if bound.from_ is None and bound.to is None:
        raise PeerError("requires: expected from, to or both; leave it out where every version may go to it")
    found = Requires(number("from", bound.from_, 0), number("to", bound.to, SEQUENCE_MAX))
    if found.low > found.high:
        raise PeerError(f"requires.to: sequence {found.high} is below that of requires.from, {found.low}")
    if found.low >= sequence:
        raise PeerError(
            f"requires.from: sequence {found.low}, expected less than {version}'s own, {sequence}: nothing older could go to it"
        )
    return found
