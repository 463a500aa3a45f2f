"""The groups of `dfuctl`."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import click

from dfud import __version__
from dfud.cli.claims import claim
from dfud.cli.client import CliError, Contexts, Session
from dfud.cli.firmware import cancel, firmware, history, retry, status, update
from dfud.cli.keys import key, sign_image
from dfud.cli.package import package
from dfud.cli.recover import recover
from dfud.cli.resources import app, audit, command, context, device, login, token
from dfud.errors import DfudError

ENTRY_POINTS = "dfuctl"  # group of entry points whose objects are click commands; each gets a Session as ctx.obj


class _Group(click.Group):
    """Shows dfud's own errors as one sentence. Its commands are dfud's own and those of plugins (docs/plugins.md)."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for entry in importlib.metadata.entry_points(group=ENTRY_POINTS, name=cmd_name):
            found = entry.load()
            if not isinstance(found, click.Command):
                raise CliError(f"{entry.value} is no command, expected one: the package {entry.dist} is at fault")
            return found
        return None

    def list_commands(self, ctx: click.Context) -> list[str]:
        plugins = {entry.name for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
        return sorted({*super().list_commands(ctx), *plugins})

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except DfudError as error:
            click.echo(f"dfuctl: {error}", err=True)
            sys.exit(1)
        except BrokenPipeError:
            sys.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dfuctl")
@click.option("--context", "context_name", envvar="DFUCTL_CONTEXT", help="Which registry, if you use several.")
@click.option(
    "--app", "app_name", envvar="DFUCTL_APP", help="Which app; `dfuctl context --app NAME` sets one for good."
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print what is found.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    envvar="DFUCTL_CONFIG",
    default=lambda: Path(click.get_app_dir("dfuctl")) / "config.toml",
    help="Where contexts and their tokens are kept.",
)
@click.pass_context
def main(ctx: click.Context, context_name: str | None, app_name: str | None, output: str, config_path: Path) -> None:
    """Publish firmware, say which device should run it, and see what happens.

    \b
    dfuctl login http://127.0.0.1:8881           # with the token of `dfud init`
    dfuctl app create lamps
    dfuctl context --app lamps
    dfuctl device create lamp1                   # shows the device's secret, once
    dfuctl firmware publish lamp.bin --version 1.1 --hardware esp32c3
    dfuctl update lamp1 1.1                      # or: dfuctl update -l site=attic 1.1
    dfuctl status lamp1 --watch
    """
    ctx.obj = Session(Contexts(config_path), context_name, app_name, output)


_RESOURCES = (login, context, app, device, claim, command, token, audit)
_FIRMWARE = (firmware, update, status, retry, cancel, history, key, sign_image, recover, package)
for _command in (*_RESOURCES, *_FIRMWARE):
    main.add_command(_command)
