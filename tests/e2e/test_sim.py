"""`dfud sim` as a user runs it: how it begins when something is missing, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
import trio

from devicefw.sim.cli import ROOT, build_bootloader
from devicefw.sim.processes import until_signalled
from dfud.testing.daemon import DaemonProcess
from tests.real_parts import require

START = ROOT / "devicefw" / "sim" / "shims" / "start.py"
APP = {"metadata": {"name": "lamps"}, "spec": {"signing": {"mode": "optional"}}}


def sim(daemon: DaemonProcess, *more: str, **replaced: str) -> list[str]:
    options = {
        "registry": daemon.urls["registry"],
        "url": daemon.urls["http"],
        "token": daemon.token,
        "app": "lamps",
        "directory": str(daemon.directory / "boards"),
    } | replaced
    said = [word for name, value in options.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "dfud.daemon", "sim", *said, *more]


def interpreters(directory: Path) -> dict[int, int]:
    """Return process id and a file descriptor that can be read when it has ended, of each MicroPython of these boards."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(START) in command and any(os.fsencode(directory) in word for word in command):
                found[int(entry.name)] = os.pidfd_open(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


async def test_no_board_outlives_its_simulator(nursery: trio.Nursery, tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    await nursery.start(daemon.run)
    async with daemon.client() as client:
        assert (await client.post("/api/registry/v1alpha1/apps", json=APP)).is_success
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        # Whoever runs the tests may have been told to ignore some.
        process = await trio.lowlevel.open_process(
            ["env", "--default-signal", *sim(daemon, "--devices", "2")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        told = b""
        running: dict[int, int] = {}
        with trio.fail_after(200):
            async with process.stdout:
                while data := await process.stdout.receive_some(65536):
                    told += data
                    if not running and all(f"sim-{board}: app: ".encode() in told for board in (0, 1)):
                        running = interpreters(daemon.directory)
                        assert len(running) == 2
                        process.send_signal(number)
                code = await process.wait()
            assert (code, b"Traceback" in told, b"Group" in told) == (
                -signal.SIGKILL if number == signal.SIGKILL else 0,
                False,
                False,
            ), told.decode()
            for pidfd in running.values():
                await trio.lowlevel.wait_readable(pidfd)
                os.close(pidfd)
        assert interpreters(daemon.directory) == {}, number
    nursery.cancel_scope.cancel()


async def test_what_nohup_ignores_is_ignored() -> None:
    told: list[str] = []

    async def run() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        await trio.lowlevel.checkpoint()
        told.append("goes on")
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        await until_signalled(run)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert told == ["goes on"]


async def test_an_error_comes_out_as_it_is() -> None:
    async def run() -> None:
        async with trio.open_nursery():
            raise click.ClickException("a sentence")

    with pytest.raises(click.ClickException, match="a sentence"):
        await until_signalled(run)


async def test_what_is_missing_is_one_sentence(nursery: trio.Nursery, tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    await nursery.start(daemon.run)
    for replaced, message in (
        ({"app": "none"}, "device sim-0 of app none cannot be created: Referenced a non-existing entity"),
        ({"token": "drg_wrong"}, "cannot be created: Authentication failed"),
        ({"registry": "http://127.0.0.1:1"}, "http://127.0.0.1:1 cannot be reached"),
        ({"prefix": "a\x1b"}, "expected printable characters, found U+001B"),
    ):
        run = await trio.run_process(sim(daemon, **replaced), capture_stdout=True, capture_stderr=True, check=False)
        told = run.stderr.decode()
        assert (run.returncode, len(told.splitlines())) == (1, 1), told
        assert told.startswith("Error: ") and message in told
    nursery.cancel_scope.cancel()


def test_the_bootloader_is_built_where_it_is_not(tmp_path: Path) -> None:
    require("riscv-gcc")
    elf = tmp_path / "made" / "bootloader.elf"
    build_bootloader(elf)
    assert elf.read_bytes()[:4] == b"\x7fELF"


def test_without_the_compiler_the_way_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(click.ClickException, match="install gcc-riscv64-unknown-elf"):
        build_bootloader(tmp_path / "bootloader.elf")
