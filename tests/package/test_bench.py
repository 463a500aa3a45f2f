"""The benchmark of updates: its images are what a chip takes, its tools agree on the new image, its verdict follows its numbers."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from bench import corpus, rivals
from bench.delta import OURS
from bench.instructions import instructions
from dfud.model.espimage import check_esp_image_untrusted
from dfud.package.build import build_delta
from tests.real_parts import require

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pair() -> corpus.Pair:
    """Real code, compiled and linked here; nothing is downloaded."""
    require("riscv-gcc")
    require("esptool")
    return corpus.own_pair()


def test_the_images_are_applications_of_the_chip(pair: corpus.Pair) -> None:
    for image in (pair.old, pair.new):
        found = check_esp_image_untrusted(io.BytesIO(image), len(image), "esp32c3")
        segments = {s.address >> 24: s for s in found.segments if s.address}
        assert {0x3C, 0x42, 0x40} <= set(segments)
        mapped = [segments[0x3C], segments[0x42]]
        assert all(s.address % 0x10000 == s.offset % 0x10000 for s in mapped)
        pages = [{a >> 16 & 0x7F for a in (s.address, s.address + s.size - 1)} for s in mapped]
        assert not pages[0] & pages[1], "one table maps code and data"
        assert struct.unpack_from("<I", image, segments[0x3C].offset)[0] == 0xABCD5432, "the application's description comes first"
    differing = sum(a != b for a, b in zip(pair.old, pair.new, strict=False))
    assert differing > 1000, "one line moves what lies behind it, and everything that points there"


def test_instructions_are_counted_one_by_one(pair: corpus.Pair) -> None:
    require("unicorn")
    require("cc")
    package = build_delta(pair.new, pair.old, 6144)
    counted = instructions(package, pair.old, pair.new)
    assert counted == instructions(package, pair.old, pair.new)
    assert 5 * len(pair.new) < counted < 1000 * len(pair.new)


def test_a_run_over_pairs_of_ones_own(pair: corpus.Pair, tmp_path: Path) -> None:
    require("unicorn")
    require("micropython")
    anything = b"firmware " * 900
    for name, old, new in (("code", pair.old, pair.new), ("any", anything, anything[:7000] + bytes(range(256)))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old.bin").write_bytes(old)
        (tmp_path / name / "new.bin").write_bytes(new)
    command = [sys.executable, "-m", "bench.delta", "--pairs", str(tmp_path), "--json", str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    rows = {row["pair"]: row for row in json.loads((tmp_path / "out").read_text())}
    assert set(rows) == {"code", "any"}
    for row in rows.values():
        results = {name: found["bytes"] for name, found in row["results"].items()}
        assert set(results) == set(rivals.TOOLS) - (set() if row["pair"] == "code" else {rivals.ONLY_ESP})
        assert row["winner"] == min(results, key=lambda name: results[name])
        assert all(found["ram_bytes"] > 0 and found["seconds"] > 0 for found in row["results"].values())
        assert f"{row['winner']} (" in run.stdout and f"{results[row['winner']]:,}*" in run.stdout
    assert set(rows["code"]["instructions"]) == set(rows["code"]["agent"]) == set(OURS)
    fast = rows["code"]["agent"]["dfud 3"]
    assert fast["viper"] > 3 * fast["bytecode"], "the inner loops are worth their viper"
    assert all(rows["code"]["instructions"][tool] > 5 for tool in OURS)
    assert rows["code"]["unchunked"]["dfud 3"] * 0.9 < rows["code"]["results"]["dfud 3"]["bytes"]
    assert rows["any"]["instructions"] == {}, "no image of the chip: nothing boots it"
    assert rows["code"]["results"]["dfud 1"]["bytes"] > 5 * rows["code"]["results"]["dfud 2"]["bytes"]


def test_a_folder_without_pairs_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.delta", "--pairs", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 1 and "no pairs in it, expected NAME/old.bin" in run.stderr and "Traceback" not in run.stderr


def test_a_tool_that_gives_another_image_back_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    import bsdiff4

    monkeypatch.setattr(bsdiff4, "patch", lambda old, patch: old)
    with pytest.raises(AssertionError, match="bsdiff4: applied, it is not the new image"):
        rivals.bsdiff(b"old" * 100, b"new" * 100)
