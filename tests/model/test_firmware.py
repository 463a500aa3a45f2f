"""One version, several images: which device is given which, and which images can stand side by side."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.errors import ConflictError, PeerError, RefusedError
from dfud.model.deployment import Actual
from dfud.model.firmware import IMAGES_MAX, Firmware, Image, ambiguous
from dfud.model.steps import image_for
from dfud.registry.images import added, chosen, read_attributes_untrusted


def image(sha256: str, hardware: str = "esp32c3", **attributes: str) -> Image:
    return Image(hardware, 5, 100, sha256, b"m" + sha256.encode(), attributes=attributes)


ONE = Firmware(app="app", version="1.0", hardware="esp32c3", sequence=5, size_bytes=100, sha256="aa", manifest=b"maa")
MANY = ONE.with_images([image("aa"), image("bb", rev="2"), image("cc", rev="2", radio="x"), image("dd", "esp32s3")])


def test_a_record_from_before_reads_as_one_image() -> None:
    raw = msgspec.msgpack.encode(
        {"app": "app", "version": "1.0", "hardware": "x", "sequence": 1, "sizeBytes": 3, "sha256": "aa", "manifest": b"m"}
    )
    found = msgspec.msgpack.decode(raw, type=Firmware)
    assert [i.sha256 for i in found.images] == ["aa"] and found.of("x", {}) is found
    assert set(msgspec.json.decode(msgspec.json.encode(ONE))) == {
        "app",
        "version",
        "hardware",
        "sequence",
        "sizeBytes",
        "sha256",
        "manifest",
    }


@pytest.mark.parametrize(
    ("hardware", "attributes", "expected"),
    [
        ("esp32c3", {}, "aa"),
        ("esp32c3", {"rev": "1"}, "aa"),
        ("esp32c3", {"rev": "2"}, "bb"),
        ("esp32c3", {"rev": "2", "radio": "x", "more": "y"}, "cc"),
        ("esp32s3", {"rev": "2"}, "dd"),
        ("esp32", {"rev": "2"}, None),
    ],
)
def test_the_image_with_the_most_conditions_that_hold_is_given(
    hardware: str, attributes: dict[str, str], expected: str | None
) -> None:
    found = MANY.of(hardware, attributes)
    assert (found.sha256 if found is not None else None) == expected
    if found is not None:
        assert found.images == (next(i for i in MANY.images if i.sha256 == expected),) and found.version == "1.0"


def test_what_a_device_runs_stays_its_image_while_it_fits() -> None:
    def runs(sha256: str, hardware: str = "esp32c3", **attributes: str) -> str:
        return image_for(MANY, Actual("app", "d", "1.0", sha256, hardware, attributes=attributes)).sha256

    assert runs("aa", rev="2") == "aa", "it fits still: no second update for the same version"
    assert runs("bb", rev="1") == "aa", "it is for another board"
    assert runs("00", rev="2") == "bb"
    assert image_for(MANY, None) is MANY and image_for(MANY, Actual("app", "d", "1.0", "00", "")) is MANY


def test_images_between_which_nobody_could_choose_do_not_stand_side_by_side() -> None:
    for other, why in (
        (image("ee"), "exists already, with another image for esp32c3"),
        (image("ee", rev="2"), "with another image for esp32c3 with rev=2"),
        (image("ee", radio="x"), "a device could be meant by that and by esp32c3 with radio=x"),
        (msgspec.structs.replace(image("ee", rev="3"), sequence=6), "sequence 6 was given, the images of 1.0 have 5"),
    ):
        with pytest.raises(ConflictError, match=why):
            added(MANY, other)
    assert added(MANY, image("ee", rev="3")).digests == {"aa", "bb", "cc", "dd", "ee"}
    full = ONE.with_images([image(f"{n:02x}", rev=str(n)) for n in range(IMAGES_MAX)])
    with pytest.raises(RefusedError, match="has 32 images already"):
        added(full, image("ff", rev="x"))


attributes = st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), max_size=3)


@given(attributes, attributes, attributes)
def test_of_images_that_may_stand_side_by_side_one_is_always_more_exact(
    one: dict[str, str], other: dict[str, str], said: dict[str, str]
) -> None:
    first, second = image("aa", **one), image("bb", **other)
    if not ambiguous(first, second) and first.fits("esp32c3", said) and second.fits("esp32c3", said):
        assert len(one) != len(other)


def test_a_user_names_an_image_where_there_are_several() -> None:
    assert chosen(ONE, "", {}).sha256 == "aa" and chosen(MANY, "esp32c3", {"rev": "2"}).sha256 == "bb"
    with pytest.raises(RefusedError, match="has images for esp32c3; esp32c3 with rev=2; esp32c3 with radio=x, rev=2; esp32s3: say"):
        chosen(MANY, "", {})
    with pytest.raises(RefusedError):
        chosen(ONE, "esp32", {})


@pytest.mark.parametrize("pairs", [["rev"], ["=2"], ["a=1", "a=2"], ["a=" + "x" * 65], ["a=\n"], ["k=v"] * 17])
def test_a_condition_that_is_none_is_refused(pairs: list[str]) -> None:
    with pytest.raises(PeerError, match="attribute"):
        read_attributes_untrusted(pairs)
