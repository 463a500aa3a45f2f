"""`python -m devicefw.sim.make KIND VERSION FILE`: a firmware for simulated boards; KIND is one of devicefw/sim/programs."""

from __future__ import annotations

from pathlib import Path

import click

from devicefw.sim.firmware import PROGRAMS, build, program
from devicefw.sim.rv32 import Missing, machine_code

KINDS = sorted(p.stem for p in PROGRAMS.glob("*.py"))


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("version")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--code", default=0, help="Bytes of real rv32 code to pad it with, as a real application has (1 to 1.6 million)."
)
def main(kind: str, version: str, file: Path, code: int) -> None:
    """Write a valid ESP32-C3 image that behaves as KIND says.

    good confirms itself; crash divides by zero before it does; noimport lacks a module; hang never lets go; memory keeps
    everything; nostart waits before it starts anything; selftest finds a fault; unconfirmed never confirms; busy puts
    updates off. nowifi is for boards that run what stands in their file system (devicefw.sim.run): a MicroPython without Wi-Fi.
    """
    try:
        padding = machine_code(code) if code else b""
    except Missing as error:
        raise click.ClickException(str(error)) from None
    file.write_bytes(build(program(kind, version), version, padding))


if __name__ == "__main__":
    main()
