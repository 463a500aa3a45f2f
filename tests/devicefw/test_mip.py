"""What `make mip` writes is installed by MicroPython's own mip, from a server on loopback, and runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import tty
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from devicefw.sim.mip import KINDS, write
from tests.real_parts import require

ROOT = Path(__file__).parents[2]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mip")
    write(directory, ("x64", "bytecode"))
    return directory


@pytest.fixture(scope="module")
def server(packages: Path) -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(packages)))
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def run(program: str) -> str:
    done = subprocess.run([require("micropython"), "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


LOADED = """
import sys
sys.path.insert(0, {target!r})
from dfu.zstd import VIPER, Decoder
import dfu.coap, dfu.mapped, dfu.transfer
Decoder()
print("loaded", VIPER)
"""


@pytest.mark.parametrize(("kind", "viper"), [("x64", True), ("bytecode", False)])
@pytest.mark.parametrize("way", ["index", "address"])
def test_mip_installs_the_agent_and_it_is_imported(server: str, tmp_path: Path, kind: str, viper: bool, way: str) -> None:
    target = str(tmp_path / "lib")
    where = f"'dfu-{kind}', index={server!r}" if way == "index" else f"{server + '/' + kind + '/package.json'!r}"
    install = f"import mip\nmip.install({where}, target={target!r})\n"
    said = run(install)
    assert "Done" in said, said
    assert all(path.suffix == ".mpy" for path in (tmp_path / "lib" / "dfu").iterdir())
    assert run(LOADED.format(target=target)) == f"loaded {viper}\n"
    if way == "index":
        again = run(install)
        assert "Exists" in again and "Installing:" not in again, "what is there is not fetched again"


@pytest.fixture
def plugged_in(tmp_path: Path) -> Iterator[str]:
    """A device's console on a pty: MicroPython with a raw REPL, its file system in tmp_path/device."""
    (tmp_path / "device").mkdir()
    master, slave = os.openpty()
    tty.setraw(slave)
    command = [require("micropython"), str(Path(__file__).with_name("replcheck.py")), str(tmp_path / "device")]
    with subprocess.Popen(command, stdin=master, stdout=master, stderr=subprocess.DEVNULL) as device:
        try:
            yield os.ttyname(slave)
        finally:
            device.kill()
    os.close(master)
    os.close(slave)


def test_mpremote_installs_the_agent_with_the_printed_command(server: str, tmp_path: Path, plugged_in: str) -> None:
    """The command of docs/agent.md with this server, and this machine's kind: what it puts there is imported by the device."""
    mpremote = require("mpremote")
    (shown,) = re.findall(r"^mpremote (mip install .*?) +#", (ROOT / "docs" / "agent.md").read_text("utf-8"), re.MULTILINE)
    options = shown.replace("http://192.168.1.2:8000", server).replace("dfu-rv32imc", "dfu-x64").split()
    assert server in options and "dfu-x64" in options
    done = subprocess.run([mpremote, "connect", f"port:{plugged_in}", *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Done" in done.stdout, done.stdout + done.stderr
    target = tmp_path / "device" / "lib"
    assert (target / "dfu" / "serial.mpy").exists() and "loaded True" in run(LOADED.format(target=str(target)))
    command = [mpremote, "connect", f"port:{plugged_in}", "exec", "import dfu.zstd; print(dfu.zstd.VIPER)"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "True", done.stdout + done.stderr


def test_the_kinds_of_the_chips_are_made_and_each_file_is_named_by_its_hash(tmp_path: Path) -> None:
    write(tmp_path)
    for kind in KINDS:
        listed = json.loads((tmp_path / "package" / "6" / f"dfu-{kind}" / "latest.json").read_text())
        by_address = json.loads((tmp_path / kind / "package.json").read_text())
        assert [path for path, _ in listed["hashes"]] == [path for path, _ in by_address["urls"]]
        for path, name in listed["hashes"]:
            assert (tmp_path / "file" / name[:2] / name).read_bytes() == (tmp_path / kind / path).read_bytes()
    native = {kind: (tmp_path / kind / "dfu").joinpath("zviper.mpy") for kind in KINDS[:2]}
    assert native["rv32imc"].read_bytes() != native["xtensawin"].read_bytes()
    assert not (tmp_path / "bytecode" / "dfu" / "zviper.mpy").exists()
