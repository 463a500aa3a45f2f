"""The service: unit file, full configuration, signals, start and stop; on the real process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import trio

from dfud.daemon.components import load
from dfud.daemon.notify import Notifier
from dfud.testing.daemon import DaemonProcess
from tests.real_parts import require

ROOT = Path(__file__).parents[2]


def dfud(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dfud.daemon", *arguments], capture_output=True, text=True, cwd=cwd)


def test_the_full_configuration_is_what_the_code_says(tmp_path: Path) -> None:
    run = dfud("check-config", "--full", "--config", str(ROOT / "dfud.toml"))
    assert run.stdout == (ROOT / "conf" / "dfud.full.toml").read_text()
    full, _ = load(ROOT / "conf" / "dfud.full.toml")
    for name, section in load(ROOT / "dfud.toml")[0].sections.items():
        assert name == "plugins" or full.sections[name] == section, "what it says is the default"


@pytest.mark.parametrize("name", ["dfud.toml", "conf/dfud.toml", "conf/dfud.full.toml"])
def test_the_configurations_that_come_along_are_right_once_init_was_run(tmp_path: Path, name: str) -> None:
    text = (ROOT / name).read_text().replace("/var/", f"{tmp_path}/var/")
    if "[registry]" not in text:
        text += "[registry]\nport = 8881\n[transport.http]\nport = 8880\n"  # the defaults
    for port in (8880, 8881):  # where a dfud may be at work
        assert f"\nport = {port}\n" in text
        text = text.replace(f"\nport = {port}\n", "\nport = 0\n")
    (tmp_path / "dfud.toml").write_text(text)
    before = dfud("check-config", cwd=tmp_path)
    assert before.returncode == 2
    assert [line.split(";")[1] for line in before.stderr.splitlines()] == [" `dfud init` makes it"]
    assert dfud("init", cwd=tmp_path).returncode == 0
    run = dfud("check-config", cwd=tmp_path)
    assert (run.returncode, run.stdout.strip()[-5:], run.stderr) == (0, "right", "")


def test_the_unit_file_is_clean(tmp_path: Path) -> None:
    analyze = require("systemd-analyze")
    unit = tmp_path / "dfud.service"
    # The binary's place is the installation's business; everything else is judged as it stands.
    unit.write_text((ROOT / "conf" / "dfud.service").read_text().replace("/opt/dfud/bin/dfud", "/bin/true"))
    run = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_the_unit_file_gives_the_service_next_to_nothing(tmp_path: Path) -> None:
    """Exposure in tenths, as systemd-analyze counts it: 1.3 of 10 when this was written, most of it the network."""
    analyze = require("systemd-analyze")
    unit = tmp_path / "dfud.service"
    unit.write_text((ROOT / "conf" / "dfud.service").read_text().replace("/opt/dfud/bin/dfud", "/bin/true"))
    command = [analyze, "security", "--offline=true", "--no-pager", "--threshold=15", str(unit)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-400:]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('[plugins]\nenabled = ["htpt"]', "plugin 'htpt' is not installed, did you mean http?"),
        ("[registri]\nport = 1", "table [registri] is unknown, did you mean registry?"),
        ("[transport.http]\nport = 70000", "[transport.http] port 70000, expected 0 to 65535"),
        ('[daemon]\nstore = "lokal"', "[daemon] store 'lokal' is offered by no enabled plugin, expected one of local"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "dfud.toml").write_text(config)
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "credential.key").write_bytes(bytes(32))
    run = dfud("run", cwd=tmp_path)
    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr


_JUDGING = """
import threading, bcrypt, trio
from dfud.daemon import service
from dfud.daemon.main import main
hashed = bcrypt.hashpw(b"x", bcrypt.gensalt(4))
def judge():
    while True:
        bcrypt.checkpw(b"y", hashed)
async def run(*given):
    for _ in range(8):
        threading.Thread(target=judge, daemon=True).start()
    await trio.sleep(0.2)
service.Service.run = run
main()
"""


def test_a_stop_while_passwords_are_judged_is_a_clean_one(tmp_path: Path) -> None:
    """Compiled code that comes back into an interpreter that is being taken apart would abort the process."""
    (tmp_path / "dfud.toml").write_text("")
    assert dfud("init", cwd=tmp_path).returncode == 0
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", _JUDGING, "run"], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


def test_without_init_the_way_is_shown(tmp_path: Path) -> None:
    (tmp_path / "dfud.toml").write_text("")
    run = dfud("run", cwd=tmp_path)
    assert run.returncode == 2
    assert "`dfud init` makes it" in run.stderr


def test_init_shows_one_token_once_and_keeps_its_key_to_itself(tmp_path: Path) -> None:
    (tmp_path / "dfud.toml").write_text("")
    first, second = dfud("init", cwd=tmp_path), dfud("init", cwd=tmp_path)
    assert first.stdout.startswith("drg_")
    assert (second.returncode, second.stdout) == (0, "")
    key = tmp_path / "var" / "credential.key"
    assert (key.stat().st_mode & 0o777, key.stat().st_size) == (0o600, 32)
    database = b"".join(p.read_bytes() for p in (tmp_path / "var" / "dfud").glob("dfud.sqlite3*"))
    assert first.stdout.strip().encode() not in database


async def test_it_tells_systemd_and_stops_on_sigterm_with_what_is_parked_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(tmp_path / "notify"))
    notify.settimeout(10)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        assert await trio.to_thread.run_sync(notify.recv, 1000) == b"READY=1\nSTATUS=serving, version 0.1.0"
        assert await trio.to_thread.run_sync(notify.recv, 1000) == b"WATCHDOG=1"
        answers: list[int] = []
        async with daemon.client() as client:
            await client.post("/api/registry/v1alpha1/apps", json={"metadata": {"name": "a"}})
            await client.post("/api/registry/v1alpha1/apps/a/devices", json={"metadata": {"name": "d", "application": "a"}})
            secret = (await client.post("/api/dfu/v1/apps/a/secret/d")).json()["secret"]

        async def park() -> None:
            async with httpx.AsyncClient(base_url=daemon.urls["http"], auth=("d@a", secret), timeout=30) as device:
                answers.append((await device.post("/v1/telemetry?ct=60", content=b"x")).status_code)

        nursery.start_soon(park)
        await trio.sleep(0.5)
        daemon.signal(signal.SIGHUP)
        told = b""
        while not told.startswith(b"RELOADING=1\nMONOTONIC_USEC="):
            told = await trio.to_thread.run_sync(notify.recv, 1000)
        daemon.signal(signal.SIGTERM)
        while told != b"STOPPING=1":
            told = await trio.to_thread.run_sync(notify.recv, 1000)
        with trio.fail_after(120):
            while daemon.exit_code is None:
                await trio.sleep(0.02)
    assert daemon.exit_code == 0
    assert answers == [202]
    assert any(line.get("event") == "reloaded" and line["needs_restart"] == "nothing" for line in daemon.lines)
    notify.close()


async def test_a_reload_says_what_waits_for_a_restart_and_survives_a_broken_file(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        daemon.config.write_text(daemon.config.read_text().replace("progress_s = 0.2", "progress_s = 9.0"))
        daemon.signal(signal.SIGHUP)
        await heard(daemon, "reloaded", needs_restart="[controller]")
        daemon.config.write_text("nonsense")
        daemon.signal(signal.SIGHUP)
        await heard(daemon, "not reloaded")
        async with daemon.client() as client:
            assert (await client.get("/healthz")).status_code == 200
        daemon.signal(signal.SIGTERM)


async def heard(daemon: DaemonProcess, event: str, **fields: str) -> None:
    with trio.fail_after(120):
        while not any(
            line.get("event") == event and all(fields[k] in line[k] for k in fields) for line in daemon.lines
        ):
            await trio.sleep(0.02)


def test_the_commands_explain_themselves() -> None:
    assert "dfud init && dfud run" in dfud("--help").stdout
    assert dfud("--version").stdout.startswith("dfud, version ")
    listed = dfud("plugins", cwd=ROOT).stdout
    assert "local" in listed and "enabled" in listed
    assert os.linesep.join(listed.splitlines()).count("dfud_http:plugin") == 1


def test_a_supervisor_that_is_behind_holds_nothing_up_and_is_told_later(tmp_path: Path) -> None:
    """Its socket takes a few datagrams; more must not stop the thread that serves everybody."""
    supervisor = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for _ in range(2000):
            notifier.tell("WATCHDOG=1")
        notifier.tell("READY=1")
        supervisor.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                assert b"READY" not in supervisor.recv(1000)
        notifier.tell("WATCHDOG=1")
        assert supervisor.recv(1000) == b"READY=1\nWATCHDOG=1"
