"""What the fuzzers have found worth keeping, through the sanitizers; and a short run of the fuzzers themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.amounts import sampled
from tests.bootloader.core import made
from tests.real_parts import require

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "bootloader"
TARGETS = ["image", "record", "frame", "zstd", "recovery", "mapped"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_goes_through(target: str) -> None:
    require("cc")
    replay = BUILD / f"replay-{target}"
    made(f"../build/bootloader/replay-{target}")
    run = subprocess.run([str(replay), str(ROOT / "bootloader" / "fuzz" / "corpus" / target)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert int(run.stdout) > 5


@pytest.mark.parametrize("runs", sampled(2_000, 10_000))
@pytest.mark.parametrize("target", TARGETS)
def test_more_inputs_go_through(target: str, runs: int, tmp_path: Path) -> None:
    require("clang")
    made(f"../build/bootloader/fuzz-{target}")
    corpus = ROOT / "bootloader" / "fuzz" / "corpus" / target
    command = [str(BUILD / f"fuzz-{target}"), f"-runs={runs}", "-seed=1", "-max_total_time=8", f"-artifact_prefix={tmp_path}/"]
    run = subprocess.run([*command, str(tmp_path), str(corpus)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
