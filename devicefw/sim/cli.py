"""`dfud sim`: many simulated boards against any dfud."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
import trio

from dfud.errors import DfudError
from dfud.model.names import check_name, path_of
from dfud.model.text import visible

URLS = {"http": "http://127.0.0.1:8880", "coap": "coap://127.0.0.1:5683", "serial": ""}
CREDENTIALS = {"http": "secret", "coap": "psk", "serial": "secret"}  # CoAP is secured by OSCORE, which takes a key
COMPILER = "riscv64-unknown-elf-gcc"
ROOT = Path(__file__).parents[2]


class Boards(msgspec.Struct, frozen=True):
    """What to run, and where. url: where devices talk to dfud."""

    devices: int
    registry: str
    transport: str
    url: str
    token: str
    app: str
    prefix: str
    version: str
    directory: Path
    elf: Path | None = None


@click.command()
@click.option("--devices", default=1, show_default=True, type=click.IntRange(1, 200), help="How many boards.")
@click.option("--registry", default="http://127.0.0.1:8881", show_default=True, help="Where users talk to dfud.")
@click.option(
    "--transport", type=click.Choice(["http", "coap", "serial"]), default="http", show_default=True, help="What boards speak."
)
@click.option("--url", help="Where devices talk to dfud; default: http://127.0.0.1:8880, or coap://127.0.0.1:5683.")
@click.option(
    "--token", envvar="DFUCTL_TOKEN", show_envvar=True, required=True, help="Access token with the role manager for the app."
)
@click.option("--app", default="sim", show_default=True, help="App of the devices; it must exist.")
@click.option("--prefix", default="sim-", show_default=True, help="Beginning of the devices' names.")
@click.option("--firmware-version", default="1.0", show_default=True, help="What the boards run at first.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    help="Where flash files are kept. If not given, boards forget theirs at the end and begin anew with --firmware-version, "
    "which dfud takes for a way back from what they ran.",
)
@click.option(
    "--bootloader",
    "elf",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="ELF to boot through; default: build/bootloader/bootloader.elf, which is built if it is not there.",
)
def sim(
    devices: int,
    registry: str,
    transport: str,
    url: str | None,
    token: str,
    app: str,
    prefix: str,
    firmware_version: str,
    directory: Path | None,
    elf: Path | None,
) -> None:
    """Run simulated ESP32-C3 boards: the real agent on real MicroPython, each with its own flash.

    Ctrl-C, SIGTERM and SIGHUP switch them off, exit code 0. Devices that are not there yet are created. Build firmware for them
    with `python -m devicefw.sim.make`.
    """
    try:
        from devicefw.sim.board import micropython
        from devicefw.sim.processes import until_signalled

        micropython()
    except ImportError as error:
        raise click.ClickException(f"the simulator lacks {error.name}: python -m pip install 'dfud[sim]'") from None
    except FileNotFoundError as error:
        raise click.ClickException(str(error)) from None
    if elf is None:
        from bootloader.sim.boot import ELF

        build_bootloader(ELF)
    with tempfile.TemporaryDirectory() as temporary:
        boards = Boards(
            devices=devices,
            registry=registry,
            transport=transport,
            url=url or URLS[transport],
            token=token,
            app=app,
            prefix=prefix,
            version=firmware_version,
            directory=directory or Path(temporary),
            elf=elf,
        )
        try:
            trio.run(until_signalled, lambda: _run(boards))
        except BrokenPipeError:
            sys.exit(1)  # nobody reads what the boards say
        except DfudError as error:
            raise click.ClickException(visible(str(error))) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise click.ClickException(f"{visible(registry)} cannot be reached: {visible(str(error))}") from None


def build_bootloader(elf: Path) -> None:
    """Build the bootloader's ELF if it is not there. Raises ClickException that says what is missing."""
    if elf.exists():
        return
    if shutil.which(COMPILER) is None or shutil.which("make") is None:
        raise click.ClickException(
            f"{elf} is not there, and {COMPILER} neither: install gcc-riscv64-unknown-elf, picolibc-riscv64-unknown-elf and "
            "make, or give --bootloader"
        )
    command = ["make", "-s", "-C", str(ROOT / "bootloader"), f"B={elf.parent}", str(elf)]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if run.returncode:
        raise click.ClickException(f"{elf} cannot be built: {visible(run.stdout[-500:])}")


async def _run(boards: Boards) -> None:
    from devicefw.sim.board import Board
    from devicefw.sim.cable import Cable
    from devicefw.sim.firmware import build, program

    image = build(program("good", boards.version), boards.version)
    headers = {"authorization": f"Bearer {boards.token}"}
    async with httpx.AsyncClient(base_url=boards.registry, headers=headers, timeout=60) as client:
        async with trio.open_nursery() as nursery:
            for number in range(boards.devices):
                name = check_name("device", f"{boards.prefix}{number}")
                directory = boards.directory / name
                settings = await _settings(client, boards, name, directory)

                def told(line: str, name: str = name) -> None:
                    click.echo(visible(f"{name}: {line}"))

                board = Board(directory, settings, image=image, on_line=told, elf=boards.elf)
                if settings["transport"] == "serial":
                    cable = Cable(directory / "tty")
                    board.uart = cable.board
                    told(f"serial line: dfuctl bridge --port {cable.port} --server http://127.0.0.1:8880")
                    nursery.start_soon(cable.run)
                nursery.start_soon(board.run)


async def _settings(client: httpx.AsyncClient, boards: Boards, name: str, directory: Path) -> dict[str, Any]:
    """Return the board's configuration; a board that was here before keeps its credential, and its transport."""
    kept = directory / "settings.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    app = boards.app
    body = {"metadata": {"name": name, "application": app, "labels": {"simulated": "yes"}}}
    answer = await client.post(path_of("/api/registry/v1alpha1/apps", app, "devices"), json=body)
    if answer.status_code == 404:
        raise DfudError(f"there is no app {app}, or the token may not see it: see `dfuctl app create` and --app")
    if answer.status_code not in (201, 409):
        raise DfudError(f"device {name} of app {app} cannot be created: {_message(answer)}")
    kind = CREDENTIALS[boards.transport]
    answer = await client.post(path_of("/api/dfu/v1/apps", app, kind, name))
    if not answer.is_success:
        raise DfudError(f"device {name} of app {app} gets no {kind}: {_message(answer)}")
    credential = answer.json()[kind]
    settings = {
        "url": boards.url,
        "transport": boards.transport,
        "app": app,
        "device": name,
        kind: credential,
        "wait_s": 30,
    }
    if boards.transport == "serial":
        from devicefw.sim.cable import LINE

        settings["line"] = LINE
    directory.mkdir(parents=True, exist_ok=True)
    kept.touch(0o600)
    kept.write_text(json.dumps(settings))
    return settings


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
