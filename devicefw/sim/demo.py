"""`make demo`: a daemon, a board, a good update and a bad one, in about a minute. Uses what a user would use: dfud and dfuctl."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click
import trio
from rich.console import Console

from devicefw.sim.board import Board
from devicefw.sim.cable import LINE, Cable
from devicefw.sim.firmware import build, program
from devicefw.sim.processes import until_signalled
from devicefw.sim.rv32 import Missing, machine_code
from dfud.model.text import visible
from dfud.testing.daemon import DaemonProcess

CODE_BYTES = 1_300_000
console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


@click.command()
@click.option("--transport", type=click.Choice(["http", "coap", "serial"]), default="http", show_default=True)
def main(transport: str) -> None:
    """Update a simulated ESP32-C3, then send it a firmware that crashes, and see it come back."""
    with tempfile.TemporaryDirectory() as directory:
        trio.run(until_signalled, lambda: _demo(Path(directory), transport))


def say(text: str) -> None:
    console.print(f"\n{text}", style="bold")


class Dfuctl:
    """Runs dfuctl as a user would, and shows the command line."""

    def __init__(self, directory: Path) -> None:
        self._config = directory / "dfuctl.toml"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "dfud.cli", "--config", str(self._config), *arguments]

    async def __call__(self, *arguments: str, show: bool = True, secret: bool = False, code: int = 0) -> str:
        if show:
            shown = " ".join("***" if secret and a == arguments[-1] else a for a in arguments)
            console.print(f"$ dfuctl {shown}", style="dim")
        run = await trio.run_process(self.command(*arguments), capture_stdout=True, capture_stderr=True, check=False)
        if run.returncode != code:
            raise SystemExit(f"dfuctl {' '.join(arguments)}: {run.stderr.decode()}")
        text = run.stdout.decode().strip()
        if show and text and not secret:
            console.print(text)
        return text


async def _demo(directory: Path, transport: str) -> None:
    say("Firmware: three images for an ESP32-C3, with 1.3 MB of real rv32 code each; compiled now, which takes a minute or more")
    try:
        code = await trio.to_thread.run_sync(machine_code, CODE_BYTES)
    except Missing as error:
        console.print(f"Without the code, the images are small: {error}")
        code = b""
    versions = {
        "1.0": ("good", code),
        "1.1": ("good", code[:40_000] + b"\x01\x00" * 50 + code[40_000:]),
        "1.2": ("crash", code),
    }
    images = {version: build(program(kind, version), version, text) for version, (kind, text) in versions.items()}
    for version, image in images.items():
        (directory / f"lamp-{version}.bin").write_bytes(image)
        console.print(f"lamp-{version}.bin: {len(image):,} bytes, {versions[version][0]}")

    say("dfud: the daemon, on the local store")
    daemon = DaemonProcess(directory / "dfud", plugins=("local", "http", *(["coap"] if transport == "coap" else [])))
    await daemon.init()
    dfuctl = Dfuctl(directory)
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        url = daemon.urls["http" if transport == "serial" else transport]
        console.print(f"users: {daemon.urls['registry']}   devices: {url}")
        await dfuctl("login", daemon.urls["registry"], "--token", daemon.token, secret=True)
        await dfuctl("app", "create", "lamps", "--unsigned")
        await dfuctl("context", "--app", "lamps")
        secret = await dfuctl("device", "create", "lamp1", secret=True)
        credential = {"secret": secret}
        if transport == "coap":
            # OSCORE takes a key in place of the secret, which CoAP would show to everybody on the way.
            credential = {"psk": await dfuctl("device", "psk", "lamp1", secret=True)}
        for version in images:
            path = str(directory / f"lamp-{version}.bin")
            await dfuctl("firmware", "publish", path, "--version", version, "--hardware", "esp32c3", show=False)
        await dfuctl("firmware", "list")

        say("A simulated board: flash, boot stage, and the real agent on real MicroPython, running 1.0")
        settings = {
            "url": url,
            "transport": transport,
            "app": "lamps",
            "device": "lamp1",
            **credential,
            "confirm_s": 5,
            "watchdog_s": 3,
            "backoff_ms": 500,
        }
        board = Board(directory / "lamp1", settings, image=images["1.0"], on_line=board_line)
        if transport == "serial":
            cable = Cable(directory / "ttyUSB0")
            board.config["line"], board.uart = LINE, cable.board
            nursery.start_soon(cable.run)
            nursery.start_soon(bridged, dfuctl.command("bridge", "--port", str(cable.port), "--server", url))
        nursery.start_soon(board.run)

        say("A good update: 1.1")
        await dfuctl("update", "lamp1", "1.1")
        await watch(dfuctl)
        await dfuctl("status", "lamp1")

        say("A bad update: 1.2 divides by zero before it confirms itself")
        await dfuctl("update", "lamp1", "1.2")
        await watch(dfuctl)
        await dfuctl("status", "lamp1")
        await dfuctl("history", "lamp1")

        say("It is not sent again by itself; the device goes on with 1.1")
        await dfuctl("device", "list")
        if not board.version_line().endswith("1.1"):
            raise SystemExit(f"the board ended on {board.version_line()!r}, expected 1.1")
        nursery.cancel_scope.cancel()
    say("Done: one update arrived, one bad one was left with its reason on record.")


def board_line(line: str) -> None:
    console.print(visible(f"lamp1 | {line}"), style="cyan")


async def bridged(command: list[str]) -> None:
    """Run `dfuctl bridge` until cancelled, and show what it says."""
    console.print(f"$ dfuctl bridge {' '.join(command[-4:])}", style="dim")
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with process.stdout:
            rest = b""
            while data := await process.stdout.receive_some(4096):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    console.print(f"bridge| {line.decode()}", style="magenta")
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def watch(dfuctl: Dfuctl) -> None:
    """Show `dfuctl status --watch` as it runs."""
    console.print("$ dfuctl status lamp1 --watch", style="dim")
    process = await trio.lowlevel.open_process(
        dfuctl.command("status", "lamp1", "--watch"), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        with trio.fail_after(180):
            async with process.stdout:
                rest = b""
                while data := await process.stdout.receive_some(4096):
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        console.print(f"dfud  | {line.decode()}")
            await process.wait()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


if __name__ == "__main__":
    main()
