"""Mapped deltas the whole way: two images of real code for the chip, a real daemon, the real agent on real MicroPython."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.corpus import own_pair
from devicefw.sim.firmware import program
from devicefw.sim.flash import partition
from dfud.package.build import build_delta, build_full
from dfud.package.file import PackageFile, read_package_untrusted
from dfud.wire.messages import Kind
from tests.e2e.fleet import Fleet, fleet
from tests.real_parts import require


def images() -> tuple[bytes, bytes]:
    require("riscv-gcc")
    require("esptool")
    pair = own_pair((program("good", "1.0"), program("good", "1.1")))
    return pair.old, pair.new


def made(f: Fleet) -> list[PackageFile]:
    """What the daemon has packed."""
    return [read_package_untrusted(p.read_bytes()) for p in (f.directory / "dfud" / "packages").rglob("*.dfup")]


@pytest.mark.parametrize("install", ["agent", "bootloader"])
async def test_a_board_is_updated_with_a_mapped_delta(tmp_path: Path, install: str) -> None:
    require("micropython")
    old, new = images()
    async with fleet(tmp_path) as f:
        await f.publish(old, "1.0")
        await f.publish(new, "1.1")
        board = await f.board("lamp1", old, install=install, payload=4112)
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        status = await f.wait("lamp1", "done", timeout_s=120)
        assert (status["current"], status["deployment"]["attempts"]) == ("1.1", 0)
        (package,) = made(f)
        assert package.kind == Kind.MAPPED
        assert package.total_bytes < build_delta(new, old, 6144).total_bytes < build_full(new, 6144).total_bytes
        assert [b.slot for b in board.boots] == [0, 1]
        assert board.flash.read(partition("ota_1")[0], len(new)) == new
        assert board.version_line() == "app: confirmed 1.1"
        chosen, measured = status["deployment"]["package"], status["actual"]["measured"]
        assert (chosen["kind"], chosen["bytes"]) == ("mapped delta", package.total_bytes) and chosen["seconds"] >= 1
        # A package of 400 bytes shows nothing of the link.
        assert "bytesPerSecond" not in measured and measured["slowness"] > 0
