"""What a package costs a device is counted as its own code takes it; and what is made is what may be chosen."""

from __future__ import annotations

import msgspec
import pytest

from bench.chip import Chip, installed
from dfud.errors import PeerError
from dfud.model.quickest import Candidate
from dfud.package.apply import apply_package
from dfud.package.build import build_package, build_packages
from dfud.package.made import CANDIDATES_MAX, read_made_untrusted, write_made
from dfud.package.work import work_ms
from dfud.wire.messages import Kind
from tests.devicefw.test_turns import PAYLOAD_BYTES, images, package_of
from tests.package.test_build import changed, code

ALL = 1 << Kind.FULL | 1 << Kind.DELTA | 1 << Kind.MAPPED
OFF = 0.2  # of what the agent takes; choosing needs no better


@pytest.mark.parametrize("kind", ["full", "delta", "mapped", "mapped, looking back"])
def test_the_work_is_what_the_agent_takes_on_the_chip(kind: str) -> None:
    old, new = images()
    package = package_of(kind, old, new)
    chunks = range(min(2, len(package.chunks)))
    with Chip() as chip:
        installed(chip, package, old, new, chunks)
    counted_ms = work_ms(msgspec.structs.replace(package, chunks=[package.chunks[n] for n in chunks]), len(old))
    taken_ms = chip.now_us / 1000
    print(f"{kind}: counted {counted_ms} ms, taken {taken_ms:.0f} ms, {chip.erase_us / 1000:.0f} of them erasing")
    assert abs(counted_ms - taken_ms) <= OFF * taken_ms


def test_packages_for_different_links_are_made_of_a_large_change_and_one_of_a_small_one() -> None:
    old, new = images()
    found = build_packages(new, old, kinds=ALL, payload_bytes=PAYLOAD_BYTES)
    print([(p.kind, p.total_bytes, work) for p, work in found])
    assert len(found) > 1
    assert all(apply_package(package, old) == new for package, _ in found)
    sizes, works = [p.total_bytes for p, _ in found], [work for _, work in found]
    assert sizes == sorted(sizes) and works == sorted(works, reverse=True)
    assert found == build_packages(new, old, kinds=ALL, payload_bytes=PAYLOAD_BYTES), "the same each time"
    assert build_package(new, old, kinds=ALL, payload_bytes=PAYLOAD_BYTES) == found[0][0]
    base = code(300_000)
    small = build_packages(changed(base), base, kinds=ALL, payload_bytes=PAYLOAD_BYTES)
    assert [p.kind for p, _ in small] == [Kind.DELTA]


def test_what_was_made_is_read_as_it_was_written() -> None:
    made = (Candidate("0a" * 16, 3, 465_000, 205_000), Candidate("b0" * 16, 1, 946_000, 26_000))
    assert read_made_untrusted(write_made(made).decode()) == made
    assert read_made_untrusted("0a" * 16) == (Candidate("0a" * 16, 0, 0),), "as it was before work was counted"


NAME = "0a" * 16


@pytest.mark.parametrize("text", ["", "x", NAME[:30], NAME.upper(), f"{NAME} 1", f"{NAME} 1 2 x", f"{NAME} 1 2 -3", f"{NAME}\n\n"])
def test_a_key_that_is_none_is_made_anew(text: str) -> None:
    with pytest.raises(PeerError):
        read_made_untrusted(text)
    with pytest.raises(PeerError):
        read_made_untrusted(f"{NAME} 1 2 3\n" * (CANDIDATES_MAX + 1))
