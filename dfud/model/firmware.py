"""Firmware: one published version of an app, with one image for each kind of board that it is for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from dfud.model import kinds

SEQUENCE_MAX = (1 << 32) - 1
IMAGES_MAX = 32
Kind = Literal["esp-image", "raw", "app"]


class Image(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One image of a version. attributes: what a device of its hardware must have reported to be given it.

    sha256 is lower-case hexadecimal and names the blob. manifest is the envelope of docs/protocol.md; its fields agree with the
    ones here. signed is true if a key of the app signed it.
    """

    hardware: str
    sequence: int
    size_bytes: int
    sha256: str
    manifest: bytes
    kind: Kind = "esp-image"
    signed: bool = False
    attributes: dict[str, str] = {}

    def fits(self, hardware: str, attributes: Mapping[str, str]) -> bool:
        """Say whether a device that reports this is given the image."""
        return self.hardware == hardware and all(attributes.get(k) == v for k, v in self.attributes.items())

    @property
    def meant_for(self) -> str:
        """Say whom it is for: `esp32c3`, or `esp32c3 with rev=2`."""
        return place_of(self.hardware, self.attributes)


class Requires(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Which versions may go to a version directly: those whose sequence is from `low` to `high`."""

    low: int = 0
    high: int = SEQUENCE_MAX

    def admits(self, sequence: int) -> bool:
        return self.low <= sequence <= self.high


class Recall(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    reason: str
    by: str = ""
    at: str = ""


class Firmware(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What dfud knows of a published version. Identity: (app, version).

    The first image stands in the record itself, the others in `more`; a record without `more` has one image. of() gives the record
    as it is for one device: that device's image as its first and only one.

    requires: which versions may go to it directly, None: all. stop: a device that comes from an older version may not skip it.
    recalled: nobody gets it any longer.
    """

    app: str
    version: str
    hardware: str
    sequence: int
    size_bytes: int
    sha256: str
    manifest: bytes
    kind: Kind = "esp-image"
    signed: bool = False
    created: str = ""
    uploaded_by: str = ""
    notes: str = ""
    attributes: dict[str, str] = {}
    more: tuple[Image, ...] = ()
    requires: Requires | None = None
    stop: bool = False
    recalled: Recall | None = None

    @property
    def first(self) -> Image:
        return Image(
            hardware=self.hardware,
            sequence=self.sequence,
            size_bytes=self.size_bytes,
            sha256=self.sha256,
            manifest=self.manifest,
            kind=self.kind,
            signed=self.signed,
            attributes=self.attributes,
        )

    @property
    def of_kind(self) -> kinds.Kind:
        """Say which kind of firmware it is: all its images are of one."""
        return kinds.APP if self.kind == "app" else kinds.SYSTEM

    @property
    def images(self) -> tuple[Image, ...]:
        """All images, in the order in which they were published."""
        return (self.first, *self.more)

    @property
    def digests(self) -> frozenset[str]:
        return frozenset((self.sha256, *(image.sha256 for image in self.more)))

    def with_images(self, images: Iterable[Image]) -> Firmware:
        """Return the record with these images, at least one, instead."""
        first, *more = images
        return msgspec.structs.replace(self, **msgspec.structs.asdict(first), more=tuple(more))

    def of(self, hardware: str, attributes: Mapping[str, str]) -> Firmware | None:
        """Return the record as it is for a device that reports this, or None if it has no image for it.

        Of several that fit, the one with the most conditions counts (of equally many the earlier one).
        """
        if not self.more:
            return self if self.first_fits(hardware, attributes) else None
        fitting = [image for image in self.images if image.fits(hardware, attributes)]
        if not fitting:
            return None
        return self.with_images([max(fitting, key=lambda image: len(image.attributes))])

    def first_fits(self, hardware: str, attributes: Mapping[str, str]) -> bool:
        if self.hardware != hardware:
            return False
        return not self.attributes or all(attributes.get(k) == v for k, v in self.attributes.items())

    def of_digest(self, sha256: str) -> Firmware | None:
        """Return the record with the image of this digest alone, or None if it has none such."""
        if not self.more:
            return self if self.sha256 == sha256 else None
        return next((self.with_images([image]) for image in self.images if image.sha256 == sha256), None)


def place_of(hardware: str, attributes: Mapping[str, str]) -> str:
    conditions = ", ".join(f"{key}={value}" for key, value in sorted(attributes.items()))
    return f"{hardware} with {conditions}" if conditions else hardware


def ambiguous(one: Image, other: Image) -> bool:
    """Say whether a device could be meant by both images and neither is more exact: as many conditions, which can all hold."""
    if one.hardware != other.hardware or len(one.attributes) != len(other.attributes):
        return False
    return all(other.attributes.get(key, value) == value for key, value in one.attributes.items())
