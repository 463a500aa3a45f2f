"""The groups of `dfuctl`."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import io
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from dfud import __version__
from dfud.cli import output
from dfud.cli.client import CliError, Contexts, Session
from dfud.cli.show import show_json
from dfud.errors import DfudError
from dfud.model.text import visible

ENTRY_POINTS = "dfuctl"  # group of entry points whose objects are click commands; each gets a Session as ctx.obj


# Where each command is, loaded when it is asked for: what makes packages takes longer to import than most commands to run.
COMMANDS = {
    "resources": ("app", "command", "context", "login", "token"),
    "app_image": ("app-image",),
    "audit": ("audit",),
    "board": ("board",),
    "bridge": ("bridge",),
    "channels": ("channel",),
    "claims": ("claim",),
    "devices": ("device",),
    "events": ("events",),
    "fleet": ("attention", "fleet"),
    "jobs": ("job",),
    "keys": ("key", "sign"),
    "package": ("package",),
    "push": ("push",),
    "recalls": ("firmware",),  # the group of firmware.py, with the commands that join it
    "recover": ("recover",),
    "rollouts": ("rollout",),
    "updates": ("cancel", "drift", "explain", "follow", "history", "retry", "status", "update"),
}
_MODULES = {name: module for module, names in COMMANDS.items() for name in names}


class _Group(click.Group):
    """Shows dfud's own errors as one sentence. Its commands are dfud's own and those of plugins (docs/plugins.md)."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _MODULES:
            module = importlib.import_module(f"dfud.cli.{_MODULES[cmd_name]}")
            own: click.Command = getattr(module, cmd_name.replace("-", "_"))
            return own
        for entry in importlib.metadata.entry_points(group=ENTRY_POINTS, name=cmd_name):
            found = entry.load()
            if not isinstance(found, click.Command):
                raise CliError(f"{entry.value} is no command, expected one: the package {entry.dist} is at fault")
            return found
        return None

    def list_commands(self, ctx: click.Context) -> list[str]:
        plugins = {entry.name for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
        return sorted({*_MODULES, *plugins})

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            # click looks among commands that are loaded, and none is.
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not near:
                raise
            raise click.UsageError(f"No such command '{args[0]}'. Did you mean '{near[0]}'?", ctx) from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        def work() -> Any:
            return super(_Group, self).main(args, prog_name, complete_var, standalone_mode, **extra)

        return output.run(work) if standalone_mode else work()

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except DfudError as error:
            _tell_json(ctx, str(error))
            click.echo(f"dfuctl: {visible(str(error))}", err=True)
            sys.exit(error.exit_code if isinstance(error, CliError) else 1)
        except click.UsageError as error:
            _tell_json(ctx, error.format_message())
            raise
        except click.Abort:
            _tell_json(ctx, "aborted; nothing was done")
            raise
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)


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
    Exit codes: 0 done, 1 an error in one sentence, 2 a wrong command line, 3 to 5: see `dfuctl update --help`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows few characters is no error
    ctx.obj = Session(Contexts(config_path), context_name, app_name, output)
