"""A forked program is what a started one would be."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dfud.testing.daemon import DaemonProcess
from tests import warm

COLD = warm._cold
FORKED = [sys.executable, "-m", "dfud.cli"]


@pytest.fixture(autouse=True)
def _warm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if sys.platform != "linux":
        pytest.skip("programs are forked on Linux alone")
    monkeypatch.setattr(subprocess, "Popen", warm.Popen)
    yield


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["nothing"], ["--config", "c.toml", "device", "list"], ["--config", "c.toml", "login", "http://127.0.0.1:1"]],
    ids=" ".join,
)
def test_it_says_what_a_new_interpreter_says(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"cwd": tmp_path, "input": "drg_\n", "capture_output": True, "text": True}
    forked = subprocess.run([*FORKED, *arguments], **options)
    monkeypatch.setattr(subprocess, "Popen", COLD)
    started = subprocess.run([*FORKED, *arguments], **options)
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


def test_it_ends_as_a_new_interpreter_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where what it has said cannot be written."""
    ends = []
    for start in (warm.Popen, COLD):
        monkeypatch.setattr(subprocess, "Popen", start)
        with open("/dev/full", "w") as full:
            run = subprocess.run([*FORKED, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
        with subprocess.Popen([*FORKED, "login", "-"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
        ends.append((run.returncode, run.stderr.splitlines()[-1], process.returncode))
    assert ends[0] == ends[1]


def daemon(directory: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Return a dfud that is ready."""
    made = DaemonProcess(directory)
    made.write_config()
    subprocess.run(made.command("init"), check=True, capture_output=True)
    process = subprocess.Popen(made.command("run"), stderr=subprocess.PIPE, **options)
    assert process.stderr is not None
    assert any(b'"ready"' in line for line in process.stderr)
    return process


def test_it_is_a_child_of_ours_with_files_and_environment_of_its_own(tmp_path: Path) -> None:
    environment = {**os.environ, "ONLY_ITS_OWN": "1"}
    secret, other = os.pipe()
    with daemon(tmp_path / "d", env=environment, cwd=tmp_path, start_new_session=True) as process:
        seen = psutil.Process(process.pid)
        assert seen.ppid() == os.getpid()
        assert seen.cwd() == str(tmp_path)
        assert os.getsid(process.pid) == process.pid
        assert seen.num_threads() < 20
        links = [os.readlink(file) for file in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert not {os.readlink(f"/proc/self/fd/{file}") for file in (secret, other)} & set(links)
        process.terminate()
        assert process.stderr is not None
        process.stderr.read()
        assert process.wait() == 0
    os.close(secret)
    os.close(other)


def test_a_kill_ends_it_before_wait_returns_and_its_time_is_counted(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with daemon(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not Path(f"/proc/{process.pid}").exists()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime > before.ru_utime


@pytest.mark.parametrize(
    "asked",
    [
        {"pass_fds": (2,)},
        {"preexec_fn": os.getpid},
        {"shell": True},
        {"umask": 0o77},
        {"process_group": 0},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_a_fork_cannot_give_starts_an_interpreter(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[object] = []
    monkeypatch.setattr(warm, "fork", lambda *given: forked.append(given))
    with subprocess.Popen([*FORKED, "--version"], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, **asked) as process:
        process.wait()
    assert forked == []


def test_what_an_interpreter_reads_at_its_start_is_as_it_was_asked_for() -> None:
    for optimized in ("1", ""):
        environment = {**os.environ, "PYTHONOPTIMIZE": optimized}
        with subprocess.Popen([*FORKED, "login", "-"], env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            settled = warm._settled({os.fsencode(name): os.fsencode(value) for name, value in environment.items()})
            assert (b"PYTHONOPTIMIZE", optimized.encode()) in settled and ("dfud.cli", settled) in warm._servers
            process.kill()


def test_a_module_that_is_run_forks_its_programs_in_turn(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(
        "import subprocess, sys\nprint(__name__, sys.argv[1:])\n"
        "print(type(subprocess.Popen([sys.executable, '-m', 'dfud.cli', '--version'], stdout=subprocess.PIPE)).__module__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{warm.ROOT}", "PYTHONWARNINGS": ""}
    run = subprocess.run(warm.module("parent", "a", "b"), env=environment, capture_output=True, text=True)
    assert run.stdout.split("\n")[:2] == ["__main__ ['a', 'b']", "__main__"], run


def test_other_programs_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "fork", lambda *given: pytest.fail("forked"))
    assert subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True).stdout == b"42\n"
    with pytest.raises(FileNotFoundError):
        subprocess.run([*FORKED, "--version"], cwd="/nowhere/at/all")
