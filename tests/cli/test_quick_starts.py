"""The quick starts of README.md, `dfuctl --help` and docs/cli.md, each command as it is printed, against a real daemon."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import trio

from devicefw.sim.firmware import build
from dfud.testing.daemon import DaemonProcess
from dfud.testing.device import HttpDevice
from tests.real_parts import require
from tests.warm import typed

ROOT = Path(__file__).parents[2]
PASSPHRASE = "a passphrase of the publisher"


class Shell:
    """A user's shell: the environment is active, and the current directory is theirs. `put` stands for what a user fills in."""

    def __init__(self, daemon: DaemonProcess, directory: Path) -> None:
        self.daemon = daemon
        self.directory = directory
        self.put = {"http://127.0.0.1:8881": daemon.urls["registry"], "drg_...": daemon.token}

    def command(self, line: str) -> tuple[list[str], dict[str, str]]:
        for shown, real in self.put.items():
            line = line.replace(shown, real)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        config = str(self.directory / "config.toml")
        return typed(line), {**os.environ, "PATH": path, "DFUCTL_CONFIG": config, "PYTHONWARNINGS": ""}

    async def __call__(self, line: str, given: str = "") -> str:
        command, environment = self.command(line)
        run = await trio.run_process(
            command,
            env=environment,
            cwd=self.directory,
            stdin=given.encode(),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            start_new_session=True,  # no terminal to ask at
        )
        assert run.returncode == 0, f"{line}: {run.stdout.decode()} {run.stderr.decode()}"
        return run.stdout.decode().strip()


@pytest.fixture
async def shell(nursery: trio.Nursery, tmp_path: Path) -> Shell:
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    await nursery.start(daemon.run)
    return Shell(daemon, tmp_path)


def blocks(text: str) -> list[list[str]]:
    """Return the commands of each fenced block without a language, without their comments."""
    found = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [[line.partition("  #")[0].strip() for line in block.splitlines()] for block in found]


async def test_the_quick_start_of_the_readme(shell: Shell, nursery: trio.Nursery) -> None:
    require("micropython")
    require("riscv-gcc")
    section = (ROOT / "README.md").read_text().partition("## Use it")[2].partition("On the device:")[0]
    start, prepare, boards, update = blocks(section)
    assert start == ["make setup && . .venv/bin/activate", "dfud init", "dfud run"], "the fixture has done the latter two"
    activate, login, *rest = prepare
    assert activate == ". .venv/bin/activate"
    await shell(login, given=shell.daemon.token + "\n")
    for line in rest:
        await shell(line)
    assert boards[0] == activate
    places = f" --registry {shell.daemon.urls['registry']} --url {shell.daemon.urls['http']}"
    command, environment = shell.command(f"exec {boards[1]}{places}")
    simulator = await trio.lowlevel.open_process(command, env=environment, cwd=shell.directory, stdout=subprocess.PIPE)
    assert simulator.stdout is not None
    running = trio.Event()

    async def listen(stream: trio.abc.ReceiveStream) -> None:
        told = b""
        async with stream:
            while data := await stream.receive_some(65536):
                told += data
                if all(f"sim-{number}: app: confirmed 1.0".encode() in told for number in range(3)):
                    running.set()

    nursery.start_soon(listen, simulator.stdout)
    with trio.fail_after(250):
        await running.wait()
        told = await shell(update[0])
        assert told.splitlines()[-1] == "sim-0: 1.1 -> 1.1: in sync"
        listed = (await shell(update[1])).splitlines()
        assert [line.split()[0] for line in listed] == ["NAME", "sim-0", "sim-1", "sim-2"]
        assert "spring: finished" in await shell(update[2])
        assert "It runs what it should, 1.1." in await shell(update[3])
        simulator.terminate()
        assert await simulator.wait() == 0
    nursery.cancel_scope.cancel()


async def updated(shell: Shell, secret: str) -> None:
    """The device lamp1 does what it is told."""
    shell.daemon.secrets.add(secret)
    async with httpx.AsyncClient(
        base_url=shell.daemon.urls["http"], auth=httpx.BasicAuth("lamp1@lamps", secret), timeout=60
    ) as client:
        await HttpDevice(client, b"old", "1.0").update()


async def test_the_quick_start_of_the_help(shell: Shell, nursery: trio.Nursery) -> None:
    (shell.directory / "lamp.bin").write_bytes(build("print(1)\n", "1.1"))
    told = await shell("dfuctl --help")
    commands = [line.partition("  #")[0].strip() for line in told.splitlines() if line.startswith("  dfuctl ")]
    assert [shlex.split(line)[1] for line in commands] == ["login", "app", "context", "device", "firmware", "update", "status"]
    secret = ""
    for line in commands:
        if "status" in line:
            await updated(shell, secret)
        told = await shell(line, given=shell.daemon.token + "\n")
        secret = told if "device create" in line else secret
    assert "lamp1: 1.1 -> 1.1: in sync" in told
    nursery.cancel_scope.cancel()


async def test_the_quick_start_of_the_document(shell: Shell, nursery: trio.Nursery) -> None:
    (shell.directory / "lamp.bin").write_bytes(build("print(1)\n", "1.1"))
    text = (ROOT / "docs" / "cli.md").read_text()
    secret = ""
    given = {"login": shell.daemon.token, "key": f"{PASSPHRASE}\n{PASSPHRASE}", "sign": PASSPHRASE}
    for line in blocks(text)[0]:
        word = shlex.split(line)[1]
        if word == "status":
            await updated(shell, secret)
        told = await shell(line, given=given.get(word, "") + "\n")
        if word == "key":
            shell.put["PUBLIC_KEY"] = told
        if "device create" in line:
            secret = told
        if "device psk" in line:
            shell.daemon.secrets.add(told)
        if word == "status":
            assert "lamp1: 1.1 -> 1.1: in sync" in told
        if word == "explain":
            assert "It runs what it should, 1.1." in told
    nursery.cancel_scope.cancel()


def test_clean_keeps_the_state_of_a_dfud_that_runs_from_the_checkout(tmp_path: Path) -> None:
    for kept in ("var/dfud.sqlite3", "build/x", ".venv/x"):
        (tmp_path / kept).parent.mkdir(parents=True)
        (tmp_path / kept).touch()
    for target in ("clean", "distclean"):
        subprocess.run(["make", "-s", "-f", str(ROOT / "Makefile"), target], cwd=tmp_path, check=True)
        assert not (tmp_path / "build").exists()
        assert (tmp_path / "var" / "dfud.sqlite3").exists()
    assert not (tmp_path / ".venv").exists()


def test_what_the_documents_install_has_a_mode() -> None:
    lines = [line for path in (ROOT / "docs").glob("*.md") for line in path.read_text().splitlines()]
    installed = [line for line in lines if re.match(r"(sudo )?install ", line) and "[" not in line]
    assert installed
    assert not [line for line in installed if not re.search(r" -m [0-7]{3} ", line)]
