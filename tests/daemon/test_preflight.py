"""`check-config` and `run` agree, and tell everything that is wrong; the key and the tokens of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import trio
from click.testing import CliRunner, Result
from dfud_local.store import LocalStore

from dfud.api import Bus, DeleteDocument, PutApp
from dfud.daemon.main import main
from dfud.registry import audit
from dfud.testing.daemon import DaemonProcess
from dfud.testing.store import an_app


def dfud(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dfud.daemon", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def here(*arguments: str) -> Result:
    """Run a command in this process, which is ten times as fast."""
    return CliRunner().invoke(main, arguments)


@pytest.fixture(autouse=True)
def _in_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def configure(text: str = "") -> None:
    Path("dfud.toml").write_text("")
    assert here("init").exit_code == 0
    Path("dfud.toml").write_text(text)


def test_everything_that_is_wrong_is_told_at_once_by_both(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    configure(
        """
stray = 1
[daemon]
drain_s = -1
[registri]
port = 1
[registry]
certificate = "nothing.pem"
key = "nothing.key"
prot = 5
[transport.http]
host = "192.0.2.1"
[endpoint]
credential_key = "file"
[store.local]
path = "file/state"
""",
    )
    check = dfud("check-config")
    expected = [
        "dfud.toml: stray stands outside of any section",
        "dfud.toml: table [registri] is unknown, did you mean registry?",
        "dfud.toml: [daemon] drain_s -1, expected 0 to 600",
        "dfud.toml: [registry] prot is unknown, did you mean port?",
        "[transport.http] host 192.0.2.1 is not loopback and there is no certificate",
        "[endpoint] credential_key file has 0 bytes, expected 32",
        "[registry] certificate nothing.pem: ",
        "[store.local] path file/state: file is no directory",
    ]
    lines = check.stderr.splitlines()
    assert check.returncode == 2
    assert len(lines) == len(expected), check.stderr
    for wanted in expected:
        assert any(line.startswith(f"dfud: {wanted}") for line in lines), (wanted, lines)
    run = dfud("run")
    assert run.returncode == 2
    # All but the last, for which the store has to be opened.
    assert run.stderr.splitlines() == [line for line in lines if "[store.local]" not in line]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[registry]\nhost = "0.0.0.0"', "[registry] host 0.0.0.0 is not loopback and there is no certificate"),
        ('[registry]\ncertificate = "nothing.pem"', "[registry] certificate nothing.pem: "),
        ("[registry]\nredirect_port = 80", "[registry] key and redirect_port need a certificate"),
        ('[endpoint]\ncredential_key = "nothing"', "[endpoint] credential_key nothing: No such file"),
        ('[plugins]\nenabled = ["locl", "htp"]', "[plugins] enabled: plugin 'locl' is not installed, did you mean local?"),
        ('[plugins]\nenabled = ["locl", "htp"]', "[plugins] enabled: plugin 'htp' is not installed, did you mean http?"),
    ],
)
def test_what_run_refuses_check_config_refuses(tmp_path: Path, text: str, message: str) -> None:
    configure(text)
    for command in ("check-config", "run"):
        told = here(command)
        assert told.exit_code == 2, command
        assert message in told.stderr and "Traceback" not in told.stderr, told.stderr


def test_sections_of_misspelt_plugins_are_judged(tmp_path: Path) -> None:
    """One was told of the plugin, and of its sections only after the next try."""
    configure(
        """
[plugins]
enabled = ["local", "htpp", "quite-else"]
[transport.http]
host = "192.0.2.1"
prot = 1
[transport.coap]
port = 99999
[transport.none]
x = 1
"""
    )
    expected = [
        "[plugins] enabled: plugin 'htpp' is not installed, did you mean http?",
        "[plugins] enabled: plugin 'quite-else' is not installed, expected one of ",
        "dfud.toml: [transport.http] prot is unknown, did you mean port?",
        "dfud.toml: [transport.coap] port 99999, expected ",
        "[transport.http] host 192.0.2.1 is not loopback and there is no certificate",
    ]
    for command in ("check-config", "run"):
        told = here(command)
        lines = told.stderr.splitlines()
        assert told.exit_code == 2 and len(lines) == len(expected), told.stderr
        for wanted in expected:
            assert any(line.startswith(f"dfud: {wanted}") for line in lines), (wanted, lines)


def test_each_plugin_is_asked_whatever_another_says(tmp_path: Path) -> None:
    configure(
        """
[plugins]
enabled = ["local", "http", "coap"]
[transport.http]
host = "192.0.2.1"
[transport.coap]
certificate = "nothing.pem"
"""
    )
    for command in ("check-config", "run"):
        told = here(command).stderr
        assert "[transport.http] host 192.0.2.1" in told and "[transport.coap] certificate nothing.pem" in told, told


def taken(kind: socket.SocketKind) -> tuple[socket.socket, int]:
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", 0))
    if kind is socket.SOCK_STREAM:
        sock.listen()
    return sock, sock.getsockname()[1]


@pytest.mark.parametrize(
    ("section", "kind"),
    [("registry", socket.SOCK_STREAM), ("transport.http", socket.SOCK_STREAM), ("transport.coap", socket.SOCK_DGRAM)],
)
def test_a_port_that_is_taken_is_told_by_both(tmp_path: Path, section: str, kind: socket.SocketKind) -> None:
    sock, port = taken(kind)
    ports = {name: 0 for name in ("registry", "transport.http", "transport.coap")} | {section: port}
    text = '[plugins]\nenabled = ["local", "http", "coap"]\n'
    configure(text + "".join(f"[{name}]\nport = {number}\n" for name, number in ports.items()))
    with sock:
        for command in ("check-config", "run"):
            told = dfud(command)
            assert told.returncode == 2, told.stderr
            assert f"[{section}] cannot listen on 127.0.0.1:{port}: Address already in use" in told.stderr
            assert "Traceback" not in told.stderr
    assert here("check-config").exit_code == 0, "it is free again"


@pytest.mark.skipif(os.getuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("name", ["var/credential.key", "var/dfud", "var/dfud/dfud.sqlite3"])
def test_what_may_not_be_read_or_written_is_told_by_both(tmp_path: Path, name: str) -> None:
    configure()
    (tmp_path / name).chmod(0)
    try:
        for command in ("check-config", "run"):
            told = here(command)
            assert told.exit_code == 2 and name.rpartition("/")[2] in told.stderr, told.stderr
    finally:
        (tmp_path / name).chmod(0o700)


def test_another_databases_key_is_told_by_both(tmp_path: Path) -> None:
    configure("[registry]\nport = 0\n[transport.http]\nport = 0\n")
    assert here("check-config").exit_code == 0
    (tmp_path / "var" / "credential.key").write_bytes(os.urandom(32))
    before = sorted(path.name for path in (tmp_path / "var" / "dfud").iterdir())
    told = here("check-config")
    assert told.exit_code == 2 and "is not the key of this database" in told.stderr
    assert sorted(path.name for path in (tmp_path / "var" / "dfud").iterdir()) == before


def test_check_config_changes_nothing(tmp_path: Path) -> None:
    Path("dfud.toml").write_text("")
    assert here("check-config").exit_code == 2
    assert os.listdir(tmp_path) == ["dfud.toml"]


def test_another_key_than_the_databases_is_refused_until_somebody_says_so(tmp_path: Path) -> None:
    configure()
    key = tmp_path / "var" / "credential.key"
    right = key.read_bytes()
    key.write_bytes(os.urandom(32))
    for command in ("run", "init"):
        told = here(command)
        assert told.exit_code == 2
        assert "is not the key of this database" in told.stderr and "Traceback" not in told.stderr
    key.write_bytes(right)
    assert here("init").exit_code == 0
    key.write_bytes(os.urandom(32))
    assert here("init", "--accept-key").exit_code == 0
    assert here("init").exit_code == 0
    assert ("dfud init", "accept-key", "credential-key") in trio.run(audited, tmp_path)
    stored = b"".join(p.read_bytes() for p in (tmp_path / "var" / "dfud").glob("dfud.sqlite3*"))
    assert right not in stored and key.read_bytes() not in stored


def test_a_database_from_before_takes_the_key_that_it_is_started_with(tmp_path: Path) -> None:
    configure()

    async def forget() -> None:
        async with trio.open_nursery() as nursery:
            store = LocalStore(tmp_path / "var" / "dfud")
            await nursery.start(store.run, Bus())
            await store.commit([PutApp(an_app()), DeleteDocument("daemon", "credential-key")])
            nursery.cancel_scope.cancel()

    trio.run(forget)
    assert here("init").exit_code == 0
    (tmp_path / "var" / "credential.key").write_bytes(os.urandom(32))
    assert "is not the key of this database" in here("init").stderr


def test_a_lost_admin_token_has_a_way_back_on_the_machine(tmp_path: Path) -> None:
    configure()
    again = here("init")
    assert (again.stdout, again.exit_code) == ("", 0)
    assert "If it is lost: --new-admin" in again.stderr
    new = here("init", "--new-admin", "--user", "eve")
    assert new.stdout.startswith("drg_") and new.exit_code == 0
    prefix = new.stdout[:10]
    assert ("dfud init --new-admin", "create-token", prefix) in trio.run(audited, tmp_path)


async def audited(directory: Path) -> list[tuple[str, str, str]]:
    async with trio.open_nursery() as nursery:
        store = LocalStore(directory / "var" / "dfud")
        await nursery.start(store.run, Bus())
        found = [(e.by, e.what, e.target) for _, e in await audit.read(store)]
        nursery.cancel_scope.cancel()
    return found


async def test_the_audit_log_is_bounded(tmp_path: Path) -> None:
    """By number, the oldest first; a start already keeps to it."""
    daemon = DaemonProcess(tmp_path)
    await daemon.init()
    text = daemon.config.read_text() + "\n[retention]\naudit_max = 1000\n"
    daemon.write_config = lambda: daemon.config.write_text(text)  # type: ignore[assignment,method-assign]
    async with trio.open_nursery() as nursery:
        store = LocalStore(tmp_path / "state")
        await nursery.start(store.run, Bus())
        await store.commit([audit.entry(time.time() - 2000 + n, "x", "create", str(n)) for n in range(1200)])
        stored = [entry.target for _, entry in await audit.read(store, limit=2000)]
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with daemon.client() as client:
            with trio.fail_after(120):
                while await oldest(client) == stored[0]:
                    await trio.sleep(0.05)
            assert len(stored) == 1201, "with the entry of init's token"
            assert await oldest(client) == stored[201]
        nursery.cancel_scope.cancel()


async def oldest(client: httpx.AsyncClient) -> str:
    answer = await client.get("/api/dfu/v1/audit?limit=1")
    return str(answer.json()[0]["target"])
