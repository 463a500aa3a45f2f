"""`dfuctl bridge`: devices on serial lines reach dfud through this machine. docs/serial.md."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import click

from dfud.cli.client import CliError, Session
from dfud.cli.output import OutputError
from dfud.cli.resources import pass_session
from dfud.cli.show import say, show_json

BAUD = 115200
PORTS_MAX = 64
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--port", "ports", required=True, multiple=True, help="Serial line of a board; several: repeat it.")
@click.option("--server", required=True, help="Where devices reach dfud: https://host:port, or http://host:port.")
@click.option(
    "--baud",
    type=click.IntRange(300, 4000000),
    default=BAUD,
    show_default=True,
    help="Rate, as the board's UART has it.",
)
@click.option("--ca", type=_FILE, help="https: certificate of the CA, PEM or DER; default: the public ones.")
@click.option("--pin", type=_FILE, help="https: the server's own self-signed certificate, PEM or DER.")
@click.option("--server-name", help="Name in the server's certificate, if it is not the host of --server.")
@click.option("--plain", is_flag=True, help="Allow http to another machine: secrets cross the network in clear.")
@click.option("--console", is_flag=True, help="Show what the boards print between frames.")
@pass_session
def bridge(
    session: Session,
    ports: tuple[str, ...],
    server: str,
    baud: int,
    ca: Path | None,
    pin: Path | None,
    server_name: str | None,
    plain: bool,
    console: bool,
) -> None:
    """Carry boards without a network to dfud: each --port has one, whose agent has "transport": "serial".

    It runs until Ctrl-C or SIGTERM (exit code 0). It needs no login: a board shows its own secret or claim code, and nothing of it is
    kept or printed. A port may vanish and come back. With -o json each line is an object.

    \b
    dfuctl bridge --port /dev/ttyUSB0 --server http://127.0.0.1:8880
    dfuctl bridge --port /dev/ttyUSB0 --port /dev/ttyUSB1 --server https://dfud.example --console
    dfuctl bridge --port /dev/ttyUSB0 --server https://192.168.1.2:8443 --pin server.pem --server-name dfud
    """
    if ca is not None and pin is not None:
        raise CliError("--ca and --pin: give one of them")
    if len(set(ports)) < len(ports):
        raise CliError("--port: the same one twice")
    if "" in ports:
        raise CliError("--port: an empty name, expected a serial line such as /dev/ttyUSB0; see ls /dev/serial/by-id")
    if len(ports) > PORTS_MAX:
        raise CliError(f"--port: {len(ports)} of them, expected at most {PORTS_MAX}; start a second bridge")
    if sys.platform == "win32":
        raise CliError("dfuctl bridge needs a POSIX system")
    import trio

    from dfud.cli.bridge_ports import Port
    from dfud.cli.bridge_relay import Relay, judged_server, trust

    found = judged_server(server, ca or pin, plain)
    context = trust(ca or pin)

    def tell(port: str, text: str, **values: Any) -> None:
        if session.json:
            show_json({"port": port, "text": text, **values}, indent=None)
        else:
            say(f"{port}: {text}")
        sys.stdout.flush()

    async def run() -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery, Relay(found, context, server_name) as relay:
                for port in ports:
                    nursery.start_soon(Port(port, baud, relay, tell, console=console).run)
                async for _ in signals:
                    nursery.cancel_scope.cancel()
                    return

    try:
        trio.run(run)
    except BaseExceptionGroup as group:
        wrong, rest = group.split((CliError, OutputError))
        if rest is not None:
            raise
        assert wrong is not None
        raise _first(wrong) from None


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
