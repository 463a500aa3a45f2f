"""The build of the clients: it has all the time that it needs while it gets on, and a run that was cut off is continued."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.interop import build


@pytest.fixture(autouse=True)
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, path in (("TOOLS", tmp_path), ("SOURCES", tmp_path / "src"), ("TARGETS", tmp_path / "target")):
        monkeypatch.setattr(build, name, path)
    monkeypatch.setattr(build, "LOOK_S", 0.01)
    (tmp_path / "src").mkdir()
    (tmp_path / "target").mkdir()
    return tmp_path


class Clock:
    """build's clock: two seconds pass with each look, and each look waits until `true()`, however long that takes really."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, true: Callable[[], bool]) -> None:
        self.now_s = 0.0
        self.stopped = False
        self._true = true
        monkeypatch.setattr(build, "time", SimpleNamespace(monotonic=lambda: self.now_s, sleep=self.sleep))

    def sleep(self, seconds: float) -> None:
        while not self._true():
            time.sleep(0.005)
        self.now_s += 0.0 if self.stopped else 2.0


def test_a_command_that_stands_still_is_ended_with_all_that_it_started(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tools / "child").touch()
    script = f"sleep 1000 & echo $! > {tools}/child; wait"
    Clock(monkeypatch, lambda: bool((tools / "child").read_text()))
    with pytest.raises(build.Failed, match="nothing moved"):
        build.run("sh", "-c", script, cwd=tools, still_s=2.5)
    child = int((tools / "child").read_text())
    with suppress(ProcessLookupError):  # it is gone already
        ended = os.pidfd_open(child)
        assert select.select([ended], [], [], 120)[0], "killed, and not yet gone on a loaded machine"
        os.close(ended)


@pytest.mark.parametrize("sign", ["print", "file"])
def test_a_command_that_gets_on_has_longer_than_it_may_stand_still(
    tools: Path, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    """Ten steps, each of less than the time that it may stand still, and of much more in all."""
    step = "print(n, flush=True)" if sign == "print" else f"open(f'{tools}/target/{{n}}', 'w')"
    script = f"import os, time\nfor n in range(10):\n while not os.path.exists(f'{tools}/go{{n}}'): time.sleep(.005)\n {step}"
    seen, steps = None, 0

    def stepped() -> bool:
        """Let it make one more step, and say when that is there to see."""
        nonlocal seen, steps
        if steps == 10 and seen is None:
            clock.stopped = True  # now it ends
            return True
        if seen is None:
            seen = build.progress(tools / "running.log")
            (tools / f"go{steps}").touch()
            steps += 1
        if build.progress(tools / "running.log") == seen:
            return False
        seen = None
        return True

    clock = Clock(monkeypatch, stepped)
    build.run(sys.executable, "-c", script, cwd=tools, still_s=2.5)
    assert clock.now_s >= 20.0


def test_what_a_command_says_of_its_failure_is_kept(tools: Path) -> None:
    with pytest.raises(build.Failed, match="error: no such crate"):
        build.run("sh", "-c", "echo note; echo 'error: no such crate'; exit 3", cwd=tools)
    assert "note" in (tools / "failed.log").read_text()


def a_cargo(tools: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a cargo first on the path that writes down what it is asked, and builds unless it is told not to."""
    bin_ = tools / "path"
    bin_.mkdir()
    script = f"""#!{sys.executable}
import os, pathlib, sys
tools = pathlib.Path({str(tools)!r})
with open(tools / "asked", "a") as log:
    log.write(" ".join(sys.argv[1:2]) + " " + os.path.basename(os.getcwd()) + "\\n")
if sys.argv[1] == "build":
    out = pathlib.Path(sys.argv[sys.argv.index("--target-dir") + 1]) / "debug"
    out.mkdir(parents=True, exist_ok=True)
    (out / "half").touch()
    if (tools / "cut").exists():
        sys.exit("error: cut off")
    (out / os.path.basename(os.getcwd())).write_text("binary")
"""
    (bin_ / "cargo").write_text(script)
    (bin_ / "cargo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    home = tools / "home"
    source = home / "registry" / "src" / "index" / "drg-0.11.0"
    source.mkdir(parents=True)
    (source / "Cargo.toml").write_text("published")
    monkeypatch.setenv("CARGO_HOME", str(home))
    return tools / "asked"


def test_a_build_that_was_cut_off_goes_on_with_what_it_had(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = a_cargo(tools, monkeypatch)
    monkeypatch.setattr(build, "CLIENTS", (("drg", "drg 0.11.0", build.fetch_drg, build.build_drg),))
    (tools / "cut").touch()
    assert build.main() == 1
    half, source = tools / "target" / "drg" / "debug" / "half", tools / "src" / "drg" / "Cargo.toml"
    made = (half.stat().st_ino, source.stat().st_ino)
    (tools / "cut").unlink()
    binary = tools / "bin" / "drg"
    kept: list[tuple[int, int]] = []
    keep = build.keep

    def noting(path: Path) -> None:
        kept.append((half.stat().st_ino, source.stat().st_ino))
        keep(path)

    monkeypatch.setattr(build, "keep", noting)
    assert build.main() == 0
    assert kept == [made], "the second run had what the first had made"
    assert binary.read_text() == "binary"
    assert asked.read_text().split("\n").count("info " + tools.name) == 1, "it is unpacked once"
    assert not (tools / "target").exists() and not (tools / "src").exists(), "nothing is left when all is there"
    assert build.main() == 0
    assert asked.read_text().count("build ") == 2
