"""The groups of `dfuctl`."""

from __future__ import annotations

import importlib.metadata
import io
import signal
import sys
from pathlib import Path

import click

from dfud import __version__
from dfud.cli.app_image import app_image
from dfud.cli.audit import audit
from dfud.cli.board import board
from dfud.cli.bridge import bridge
from dfud.cli.channels import channel
from dfud.cli.claims import claim
from dfud.cli.client import CliError, Contexts, Session
from dfud.cli.devices import device
from dfud.cli.events import events
from dfud.cli.firmware import firmware
from dfud.cli.fleet import attention, fleet
from dfud.cli.jobs import job
from dfud.cli.keys import key, sign_image
from dfud.cli.package import package
from dfud.cli.push import push
from dfud.cli.recalls import firmware_recall  # noqa: F401  # it and its like join the group firmware
from dfud.cli.recover import recover
from dfud.cli.resources import app, command, context, login, token
from dfud.cli.rollouts import rollout
from dfud.cli.show import show_json
from dfud.cli.updates import cancel, drift, explain, follow, history, retry, status, update
from dfud.errors import DfudError
from dfud.model.text import visible

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
            _tell_json(ctx, str(error))
            click.echo(f"dfuctl: {visible(str(error))}", err=True)
            sys.exit(1)
        except click.UsageError as error:
            _tell_json(ctx, error.format_message())
            raise
        except click.Abort:
            _tell_json(ctx, "aborted; nothing was done")
            raise
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            sys.exit(1)


def _tell_json(ctx: click.Context, message: str) -> None:
    """With `-o json` standard output holds JSON on errors, too."""
    # Before a command is found there is no session yet.
    if ctx.obj.json if isinstance(ctx.obj, Session) else ctx.params.get("output") == "json":
        show_json({"error": message})


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
    dfuctl app create lamps --unsigned           # for trying out; with signatures: dfuctl key, dfuctl sign
    dfuctl context --app lamps
    dfuctl device create lamp1                   # shows the device's secret, once
    dfuctl firmware publish lamp.bin --version 1.1 --hardware esp32c3
    dfuctl update lamp1 1.1                      # or: dfuctl update -l site=attic 1.1
    dfuctl status lamp1 --watch

    \b
    Exit codes: 0 done, 1 an error in one sentence, 2 a wrong command line, 3 and 4 of --watch: see `dfuctl update --help`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows few characters is no error
    ctx.obj = Session(Contexts(config_path), context_name, app_name, output)


_RESOURCES = (login, context, app, device, claim, command, token, audit)
_FIRMWARE = (
    firmware,
    rollout,
    channel,
    update,
    follow,
    status,
    explain,
    drift,
    fleet,
    attention,
    events,
    job,
    retry,
    cancel,
    history,
    key,
    sign_image,
    recover,
    package,
    board,
    bridge,
    app_image,
    push,
)
for _command in (*_RESOURCES, *_FIRMWARE):
    main.add_command(_command)
