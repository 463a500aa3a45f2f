"""`dfud sim`: many simulated boards against any dfud."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import httpx
import trio

from devicefw.sim.board import Board
from devicefw.sim.firmware import build, program

URLS = {"http": "http://127.0.0.1:8880", "coap": "coap://127.0.0.1:5683"}
CREDENTIALS = {"http": "secret", "coap": "psk"}  # CoAP is secured by OSCORE, which takes a key


@click.command()
@click.option("--devices", default=1, show_default=True, type=click.IntRange(1, 200), help="How many boards.")
@click.option("--registry", default="http://127.0.0.1:8881", show_default=True, help="Where users talk to dfud.")
@click.option(
    "--transport", type=click.Choice(["http", "coap"]), default="http", show_default=True, help="What boards speak."
)
@click.option("--url", help="Where devices talk to dfud; default: http://127.0.0.1:8880, or coap://127.0.0.1:5683.")
@click.option("--token", envvar="DFUCTL_TOKEN", required=True, help="Access token with the role manager for the app.")
@click.option("--app", default="sim", show_default=True, help="App of the devices; it must exist.")
@click.option("--prefix", default="sim-", show_default=True, help="Beginning of the devices' names.")
@click.option("--firmware-version", default="1.0", show_default=True, help="What the boards run at first.")
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Where flash files are kept; a temporary place if not given."
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
) -> None:
    """Run simulated ESP32-C3 boards: the real agent on real MicroPython, each with its own flash. Ctrl-C ends them.

    Devices that are not there yet are created. Build firmware for them with `python -m devicefw.sim.make`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        at = url or URLS[transport]
        place = directory or Path(temporary)
        trio.run(_run, devices, registry, transport, at, token, app, prefix, firmware_version, place)


async def _run(
    devices: int,
    registry: str,
    transport: str,
    url: str,
    token: str,
    app: str,
    prefix: str,
    version: str,
    directory: Path,
) -> None:
    image = build(program("good", version), version)
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=registry, headers=headers) as client, trio.open_nursery() as nursery:
        for number in range(devices):
            name = f"{prefix}{number}"
            settings = await _settings(client, app, name, transport, url, directory / name)

            def told(line: str, name: str = name) -> None:
                click.echo(f"{name}: {line}")

            nursery.start_soon(Board(directory / name, settings, image=image, on_line=told).run)


async def _settings(
    client: httpx.AsyncClient, app: str, name: str, transport: str, url: str, directory: Path
) -> dict[str, Any]:
    """Return the board's configuration; a board that was here before keeps its credential, and its transport."""
    kept = directory / "settings.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    body = {"metadata": {"name": name, "application": app, "labels": {"simulated": "yes"}}}
    answer = await client.post(f"/api/registry/v1alpha1/apps/{app}/devices", json=body)
    if answer.status_code not in (201, 409):
        raise click.ClickException(f"device {name} cannot be created: {answer.text}")
    kind = CREDENTIALS[transport]
    answer = await client.post(f"/api/dfu/v1/apps/{app}/{kind}/{name}")
    if not answer.is_success:
        raise click.ClickException(f"device {name} gets no {kind}: {answer.text}")
    settings = {"url": url, "transport": transport, "app": app, "device": name, kind: answer.json()[kind], "wait_s": 30}
    directory.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(settings))
    kept.chmod(0o600)
    return settings
