"""device import, export and count, as a user runs them against the real daemon: no secret is lost, whatever interrupts."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from dfud.cli import bulk, bulk_secrets
from dfud.cli.bulk_files import read_lines
from dfud.cli.client import CliError, Contexts, Session
from dfud.testing.daemon import DaemonProcess
from tests.cli.test_dfuctl import Dfuctl, dfuctl
from tests.registry.served import prepared

__all__ = ["dfuctl"]
DEVICES = "/api/registry/v1alpha1/apps/lamps/devices"


def secrets_in(path: Path) -> dict[str, str]:
    """Return the secrets of a file, and have the logs searched for them."""
    with path.open(newline="") as file:
        found = {row["name"]: row["secret"] for row in csv.DictReader(file)}
    for daemon in DaemonProcess.started:
        daemon.secrets.update(found.values())
    return found


async def lets_in(dfuctl: Dfuctl, name: str, secret: str) -> bool:
    """Say whether the daemon takes this secret from a device."""
    async with httpx.AsyncClient(base_url=dfuctl.daemon.urls["http"], timeout=60) as client:
        answer = await client.post("/v1/telemetry", auth=(f"{name}@lamps", secret), content=b"{}")
    return answer.status_code != 403 and answer.status_code != 401


@pytest.fixture
async def lamps(dfuctl: Dfuctl) -> Dfuctl:
    await dfuctl("app", "create", "lamps", "--unsigned")
    await dfuctl("context", "--app", "lamps")
    return dfuctl


async def test_a_csv_is_imported_counted_and_exported(lamps: Dfuctl, tmp_path: Path) -> None:
    file, secrets = tmp_path / "fleet.csv", tmp_path / "secrets.csv"
    rows = [f"lamp{n},a{n},,{'attic' if n % 2 else 'cellar'},,{'' if n else 'my own secret'}" for n in range(1200)]
    file.write_text("\ufeffname,alias,alias,label.site,label.ring,secret\n" + "\n".join(rows) + '\n"two, of one",,,,7,\n')
    told = json.loads(await lamps("-o", "json", "device", "import", str(file), "--secrets", str(secrets), "-l", "batch=1"))
    assert (told["created"], told["exists"], told["refused"], told["secretsWritten"]) == (1201, 0, [], 1200)
    assert secrets.stat().st_mode & 0o777 == 0o600
    made = secrets_in(secrets)
    assert len(made) == 1200 and "lamp0" not in made and not secrets.with_name("secrets.csv.pending").exists()
    for name, secret in (("lamp1", made["lamp1"]), ("lamp0", "my own secret"), ("two, of one", made["two, of one"])):
        assert await lets_in(lamps, name, secret), name
    assert not await lets_in(lamps, "lamp2", made["lamp1"])
    assert await lamps("device", "count") == "1201"
    assert json.loads(await lamps("-o", "json", "device", "count", "-l", "site=attic,batch=1")) == {"count": 600}
    shown = json.loads(await lamps("device", "show", "lamp3"))
    assert shown["metadata"]["labels"] == {"site": "attic", "batch": "1"} and shown["spec"]["alias"] == ["a3"]
    lines = [json.loads(line) for line in (await lamps("device", "export")).splitlines()]
    assert len(lines) == 1201 and lines[0] == {
        "metadata": {"name": "lamp0", "labels": {"site": "cellar", "batch": "1"}},
        "spec": {"alias": ["a0"]},
    }
    await lamps("device", "export", "--format", "csv", "--selector", "ring", "-O", str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text() == 'name,label.batch,label.ring\n"two, of one",1,7\n'
    assert len(json.loads(await lamps("-o", "json", "device", "list"))) == 1201
    entries = json.loads(await lamps("-o", "json", "audit", "--what", "create-devices"))
    assert [entry["detail"].split()[0] for entry in entries] == ["500", "500", "201"]


async def test_what_is_exported_can_be_imported_elsewhere(lamps: Dfuctl, tmp_path: Path) -> None:
    spec = {"alias": ["x", "y"], "firmware": {"version": "1"}, "authentication": {"credentials": [{"pass": "pw"}]}}
    given = {"metadata": {"name": "hall/3 ü", "labels": {"a": "1,2"}, "annotations": {"n": "t"}}, "spec": spec}
    (tmp_path / "in.jsonl").write_text(json.dumps(given) + "\n\n" + json.dumps({"metadata": {"name": "bare"}}) + "\n")
    assert "1 of the new ones have no credentials" in await with_errors(lamps, "device", "import", str(tmp_path / "in.jsonl"))
    await lamps("app", "create", "copy", "--unsigned")
    exports = []
    for form in ("jsonl", "csv"):
        out = tmp_path / f"out.{form}"
        await lamps("device", "export", "--format", form, "-O", str(out))
        assert "pass" not in out.read_text() and "dfud" not in out.read_text()
        await lamps("--app", "copy", "device", "import", str(out))
        exports.append(await lamps("--app", "copy", "device", "export", "--format", form))
        assert exports[-1].strip() == out.read_text().strip()
        for name in ("hall/3 ü", "bare"):
            await lamps("--app", "copy", "device", "delete", "--yes", name)


async def with_errors(dfuctl: Dfuctl, *arguments: str) -> str:
    """Return what a command that succeeds says on standard error."""
    command = [sys.executable, "-m", "dfud.cli", "--config", str(dfuctl.config), *arguments]
    run = await trio.run_process(command, capture_stdout=True, capture_stderr=True)
    return run.stderr.decode()


async def test_lines_that_are_refused_are_named_and_the_others_are_made(lamps: Dfuctl, tmp_path: Path) -> None:
    file = tmp_path / "fleet.jsonl"
    secrets = tmp_path / "secrets"
    lines = [
        '{"metadata": {"name": "good"}}',
        "{",
        '{"metadata": {"name": "a//b"}}',
        '{"metadata": {"name": "good"}}',
        "",
        '{"metadata": {"name": "n"}, "spec": {"x": NaN}}',
        '{"metadata": {"name": "s"}, "spec": {"x": "\\ud800"}}',
        '{"spec": {}}',
        '{"metadata": {"name": "other"}, "spec": []}',
        json.dumps({"metadata": {"name": "large"}, "spec": {"x": "x" * 2_000_000}}),
        '{"metadata": {"name": "last"}}',
    ]
    file.write_text("\n".join(lines))
    dry = await lamps("device", "import", str(file), "--secrets", str(secrets), "--dry-run", fails=True)
    assert "2 devices would be created, 0 exist already, 8 refused." in dry
    assert not secrets.exists() and await lamps("device", "count") == "0"
    told = await lamps("-o", "json", "device", "import", str(file), "--secrets", str(secrets), code=1)
    found = json.loads(told[: told.rindex("}") + 1])
    assert found["created"] == 2
    refused = {one["line"]: one["error"] for one in found["refused"]}
    assert sorted(refused) == [2, 3, 4, 6, 7, 8, 9, 10]
    for line, message in (
        (2, "this is not JSON"),
        (3, "no empty part"),
        (4, "line 1 names it already"),
        (6, "NaN"),
        (7, "cannot be sent"),
        (8, "expected a device"),
        (9, "Expected `object`"),
        (10, "the body has"),
    ):
        assert message in refused[line], (line, refused[line])
    assert secrets_in(secrets).keys() == {"good", "last"}
    assert "line 3: a//b: " in await lamps("device", "import", str(file), fails=True)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("fleet.txt", "", "expected a name that ends in .csv or .jsonl"),
        ("fleet.csv", "nmae\nx\n", "column 'nmae', expected name, alias"),
        ("fleet.csv", "name,name\n", "column 'name' is there twice"),
        ("fleet.csv", "secret\n", "no column 'name'"),
        ("fleet.csv", 'name\n"x\n', "line 2: unexpected end of data"),
        ("fleet.csv", b"name\n\xff\n", "line 2 is not UTF-8"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_whole(tmp_path: Path, name: str, text: Any, message: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CliError) as caught:
        list(read_lines(tmp_path / name))
    assert message in str(caught.value)


def test_a_row_of_another_length_or_with_half_a_key_costs_itself_only(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(f"name,psk\nx,{'0' * 31}\ny\n\n\"z\",{'0f' * 16}\n")
    lines = list(read_lines(tmp_path / "f.csv"))
    assert [(line.number, line.name, bool(line.error)) for line in lines] == [(2, "x", True), (3, "", True), (5, "z", False)]
    assert "000" not in lines[0].error
    assert lines[2].device["spec"]["authentication"]["credentials"] == [{"psk": {"key": "Dw8PDw8PDw8PDw8PDw8PDw=="}}]
    assert lines[2].end == (tmp_path / "f.csv").stat().st_size


# Interruptions


async def test_running_it_again_after_an_interruption_at_any_step_has_the_right_secret_of_every_device(
    lamps: Dfuctl, tmp_path: Path
) -> None:
    """Killed before the request, after the registry has made them, and while the secrets move: each leaves FILE.pending."""
    file, secrets = tmp_path / "fleet.csv", tmp_path / "secrets"
    pending = tmp_path / "secrets.pending"
    names = [f"d{n}" for n in range(8)]
    file.write_text("name\n" + "\n".join(names) + "\n")
    waiting = {name: f"secret-of-{name}" for name in names[:6]}
    async with lamps.daemon.client() as admin:
        # d0, d1: made, the answer lost. d2: made, and in the file already. d3: somebody else made it. d4, d5: never sent.
        for name, secret in {**{n: waiting[n] for n in names[:3]}, "d3": "another"}.items():
            body = {"metadata": {"name": name}, "spec": {"authentication": {"credentials": [{"pass": secret}]}}}
            assert (await admin.post(DEVICES, json=body)).status_code == 201
    secrets.write_text("name,secret\nd2,secret-of-d2\nd1,sec")
    pending.write_text("".join(json.dumps(pair) + "\n" for pair in waiting.items()) + '["d6", "to')
    told = json.loads(await lamps("-o", "json", "device", "import", str(file), "--secrets", str(secrets)))
    assert (told["created"], told["exists"], told["refused"]) == (4, 4, [])
    found = secrets_in(secrets)
    assert found.keys() == {"d0", "d1", "d2", "d4", "d5", "d6", "d7"}
    for name, secret in found.items():
        assert await lets_in(lamps, name, secret), name
    assert not pending.exists()
    before = secrets.read_bytes()
    assert "0 devices created, 8 exist already, 0 refused." in await with_errors(
        lamps, "device", "import", str(file), "--secrets", str(secrets)
    )
    assert secrets.read_bytes() == before


async def test_an_import_that_is_killed_and_run_again_has_the_secret_of_every_device(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    daemon = await prepared(tmp_path / "dfud", "batch_max = 16")
    await nursery.start(daemon.run)
    dfuctl = Dfuctl(tmp_path)
    await dfuctl("login", daemon.urls["registry"], "--token", daemon.token)
    await dfuctl("app", "create", "lamps", "--unsigned")
    file, secrets = tmp_path / "fleet.csv", tmp_path / "secrets"
    names = [f"d{n}" for n in range(400)]
    file.write_text("name\n" + "\n".join(names) + "\n")
    arguments = ("-o", "json", "--app", "lamps", "device", "import", str(file), "--secrets", str(secrets))
    command = [sys.executable, "-m", "dfud.cli", "--config", str(dfuctl.config), *arguments]
    killed = 0
    for lines in (50, 200):
        process = await trio.lowlevel.open_process(command)
        while process.returncode is None and not (secrets.exists() and secrets.read_bytes().count(b"\n") > lines):
            await trio.sleep(0.002)
        process.kill()
        killed += await process.wait() != 0
    told = json.loads(await dfuctl(*arguments))
    assert killed and (told["created"] + told["exists"], told["refused"]) == (400, [])
    found = secrets_in(secrets)
    assert found.keys() == set(names) and not secrets.with_name("secrets.pending").exists()
    async with daemon.client() as admin:
        for first in range(0, 400, 16):
            devices = [
                {"metadata": {"name": n}, "spec": {"authentication": {"credentials": [{"pass": found[n]}]}}}
                for n in names[first : first + 16]
            ]
            answer = await admin.post(f"{DEVICES}:batch", json={"devices": devices, "dryRun": True})
            assert all(result.get("sameSecret") for result in answer.json()["results"]), answer.text
    nursery.cancel_scope.cancel()


@pytest.fixture
def importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[httpx.Response | Exception]], list[bytes]]:
    """Import one device, `x`, from a registry that answers so; return the bodies that were sent to it."""
    slept: list[float] = []
    monkeypatch.setattr("dfud.cli.bulk.time.sleep", slept.append)

    def run(answers: list[httpx.Response | Exception]) -> list[bytes]:
        sent: list[bytes] = []

        def answer(request: httpx.Request) -> httpx.Response:
            sent.append(request.content)
            found = answers.pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        (tmp_path / "x.csv").write_text("name\nx\n")
        session = Session(Contexts(tmp_path / "config.toml"), None, "a", "text")
        with (
            httpx.Client(base_url="http://registry", transport=httpx.MockTransport(answer)) as client,
            bulk_secrets.opened(tmp_path / "s") as secrets,
        ):
            bulk._Import(session, client, secrets, {}, False).run(tmp_path / "x.csv")
        return sent

    return run


def test_a_registry_that_is_away_is_asked_again_with_the_same_secret(importing: Any, tmp_path: Path) -> None:
    made = httpx.Response(200, json={"results": [{"name": "x", "result": "exists", "sameSecret": True}]})
    sent = importing([httpx.ReadTimeout("late"), httpx.Response(503), httpx.Response(429, headers={"retry-after": "7"}), made])
    assert len(sent) == 4 and len(set(sent)) == 1
    assert secrets_in(tmp_path / "s")["x"].encode() in sent[0], "the first answer was lost, and the device was made then"


def test_a_line_that_is_refused_stays_above_the_bar_of_a_terminal(tmp_path: Path) -> None:
    """The bar, which was drawn over it, erased it."""
    file = tmp_path / "fleet.csv"
    file.write_text("name\n" + "x,\n" * 3 + "".join(f"d{n}\n" for n in range(600)))
    program = f"""
import httpx, json, pathlib
from dfud.cli.bulk import _Import
from dfud.cli.client import Contexts, Session
def answer(request):
    count = len(json.loads(request.content)["devices"])
    return httpx.Response(200, json={{"results": [{{"result": "refused", "error": "because"}}] * count}})
session = Session(Contexts(pathlib.Path({str(tmp_path / "c")!r})), None, "a", "text")
client = httpx.Client(base_url="http://x", transport=httpx.MockTransport(answer))
_Import(session, client, None, {{}}, False).run(pathlib.Path({str(file)!r}))
"""
    main, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    run = subprocess.Popen([sys.executable, "-c", program], stderr=terminal, env=environment)
    os.close(terminal)
    told = b""
    while True:
        try:
            data = os.read(main, 1 << 16)
        except OSError:  # what Linux says at the end of a terminal
            break
        if not data:
            break
        told += data
    os.close(main)
    assert run.wait() == 0 and b"Registering" in told
    shown = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", told)
    lines = [line for line in re.split(rb"[\r\n]+", shown) if b"line " in line]
    assert len(lines) == 603 and all(line.startswith(b"line ") for line in lines), lines[:5]


def test_an_answer_that_does_not_come_leaves_the_secret_waiting(importing: Any, tmp_path: Path) -> None:
    with pytest.raises(CliError, match="run it again"):
        importing([httpx.ConnectError("away")] * 6)
    for nonsense in (httpx.Response(200), httpx.Response(200, json={"results": []}), httpx.Response(404)):
        with pytest.raises(CliError):
            importing([nonsense])
    assert len(set((tmp_path / "s.pending").read_text().splitlines())) == 1, "the same secret every time"


async def test_secrets_wait_for_devices_that_the_file_no_longer_holds(lamps: Dfuctl, tmp_path: Path) -> None:
    (tmp_path / "fleet.csv").write_text("name\nx\n")
    (tmp_path / "s.pending").write_text('["gone", "its secret"]\n')
    told = await with_errors(lamps, "device", "import", str(tmp_path / "fleet.csv"), "--secrets", str(tmp_path / "s"))
    assert "1 secrets of an earlier run wait in" in told
    assert '["gone", "its secret"]' in (tmp_path / "s.pending").read_text()
    secrets_in(tmp_path / "s")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bytes]]]:
    """Record what is written and synced, in order."""
    told: list[tuple[str, bytes]] = []
    write, sync = os.write, os.fsync

    def name(fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    def written(fd: int, data: Any) -> int:
        told.append((name(fd), bytes(data)))
        return write(fd, data)

    def synced(fd: int) -> None:
        told.append((name(fd), b"sync"))
        sync(fd)

    monkeypatch.setattr(os, "write", written)
    monkeypatch.setattr(os, "fsync", synced)
    yield told


def test_a_secret_is_durable_before_its_device_is_sent_and_before_it_is_no_longer_pending(
    tmp_path: Path, steps: list[tuple[str, bytes]]
) -> None:
    with bulk_secrets.opened(tmp_path / "s") as secrets:
        del steps[:]
        secrets.sending({"a": "1", "b": "2"})
        assert steps == [("s.pending", b'["a", "1"]\n["b", "2"]\n'), ("s.pending", b"sync")]
        del steps[:]
        secrets.answered({"a": "1", "b": "2"}, {"a": "1"})
        assert steps == [("s", b"a,1\n"), ("s", b"sync")]
        assert (tmp_path / "s.pending").read_bytes() == b""
    assert (tmp_path / "s").read_text() == "name,secret\na,1\n" and not (tmp_path / "s.pending").exists()


def test_no_other_file_is_taken_for_one_of_secrets(tmp_path: Path) -> None:
    path = tmp_path / "fleet.csv"
    for text in ("name,label.site\nx,1\n", "x", "name,secrets\n"):
        path.write_text(text)
        path.chmod(0o644)
        with pytest.raises(CliError, match="no file of secrets"), bulk_secrets.opened(path):
            pass
        assert (path.read_text(), path.stat().st_mode & 0o777) == (text, 0o644)
    path.write_text("name,se")
    with bulk_secrets.opened(path) as secrets:
        secrets.answered({}, {"a": "1"})
        with pytest.raises(CliError, match="being written by another import"), bulk_secrets.opened(path):
            pass
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("name,secret\na,1\n", 0o600)
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it was let go


async def test_a_registry_with_lower_limits_is_sent_less_at_once(lamps: Dfuctl, tmp_path: Path) -> None:
    (tmp_path / "fleet.csv").write_text("name\n" + "".join(f"d{n}\n" for n in range(100)))
    other = await prepared(tmp_path / "small", "batch_max = 9")
    async with trio.open_nursery() as nursery:
        await nursery.start(other.run)
        await lamps("login", other.urls["registry"], "--token", other.token, "--name", "small")
        await lamps("app", "create", "lamps", "--unsigned")
        secrets = tmp_path / "s"
        told = json.loads(
            await lamps("-o", "json", "--app", "lamps", "device", "import", str(tmp_path / "fleet.csv"), "--secrets", str(secrets))
        )
        assert (told["created"], told["refused"], len(secrets_in(secrets))) == (100, [], 100)
        nursery.cancel_scope.cancel()
