"""The command `dfud`."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import click
import trio

from dfud import __version__
from dfud.api import ConfigError, DfudError
from dfud.daemon import config as configuration
from dfud.daemon.components import SECTIONS, build, examine, load
from dfud.daemon.config import ConfigErrors, DaemonConfig
from dfud.daemon.plugins import Plugins, available

DEFAULT = "dfud.toml"
PATH_OPTION = click.option(
    "--config",
    "-c",
    "path",
    type=click.Path(path_type=Path),
    default=DEFAULT,
    show_default=True,
    help="The configuration.",
)


class _Group(click.Group):
    """Shows dfud's own errors as one sentence."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except DfudError as error:
            _tell(error)
            sys.exit(2)
        except BaseExceptionGroup as group:
            _, others = group.split(SystemExit)
            if others is None:
                sys.exit(1)  # asked twice to stop
            own = _own(group)
            if own is None:
                raise
            _tell(own)
            sys.exit(2)


def _tell(error: DfudError) -> None:
    """Show an error, and each of several on a line of its own."""
    for line in error.messages if isinstance(error, ConfigErrors) else (str(error),):
        click.echo(f"dfud: {line}", err=True)


def _own(group: BaseExceptionGroup[BaseException]) -> DfudError | None:
    """Return dfud's own error if it is all that the group holds."""
    ours, others = group.split(DfudError)
    if ours is None or others is not None:
        return None
    error: BaseException = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, DfudError) else None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dfud")
def main() -> None:
    """Firmware updates for fleets of small devices.

    \b
    First start:   dfud init && dfud run
    Then, as a user:   dfuctl login http://127.0.0.1:8881
    """


@main.command()
@PATH_OPTION
def run(path: Path) -> None:
    """Serve devices and users until SIGTERM; SIGHUP reloads certificates and the log level."""
    from dfud.daemon.logs import configure
    from dfud.daemon.service import Service

    parts = build(path)
    daemon = parts.config.section("daemon", DaemonConfig)
    configure(daemon.log_format, daemon.log_level, os.environ, daemon.log_per_minute)
    service = Service(parts, __version__, os.environ)
    trio.run(service.run, lambda: load(path)[0])
    _end(service.failure is not None)


def _end(code: int) -> NoReturn:
    """End the process here and now.

    A thread may still judge a slow password, and nobody waits for it. Compiled code that comes back while the interpreter is
    being taken apart has the process aborted: a clean stop would be a crash to whoever supervises it.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


@main.command()
@PATH_OPTION
@click.option("--user", default="admin", show_default=True, help="Name of the administrator.")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 3650), help="Life of the token.")
@click.option(
    "--new-admin", is_flag=True, help="Make one more admin token, for whoever has lost theirs; dfud is stopped."
)
@click.option(
    "--accept-key",
    is_flag=True,
    help="Take the credential key as this database's: devices with other secrets are lost.",
)
def init(path: Path, user: str, days: int, new_admin: bool, accept_key: bool) -> None:
    """Make the key of device secrets and the first admin token, which is shown once. Safe to repeat."""
    from dfud.daemon.init import initialise

    config, plugins = load(path)
    store = plugins.store(config, config.section("daemon", DaemonConfig).store)
    token = trio.run(partial(initialise, config, store, user, days, new_admin=new_admin, accept_key=accept_key))
    if token is None:
        click.echo("There is an admin token already; no new one was made. If it is lost: --new-admin.", err=True)
        return
    kind = "new" if new_admin else "first"
    click.echo(f"The token of the {kind} administrator; it is not shown again:", err=True)
    click.echo(token)


@main.command("check-config")
@PATH_OPTION
@click.option("--full", is_flag=True, help="Print every section and key of all installed plugins with its default.")
def check_config(path: Path, full: bool) -> None:
    """Do what `run` does before it opens anything, and say everything that is wrong. Exit code 2 if something is."""
    if full:
        names = sorted(available())
        click.echo(configuration.sample([*SECTIONS, *Plugins(names).sections()], enabled=names), nl=False)
        return
    note = trio.run(examine, path)
    if note:
        click.echo(f"dfud: note: {note}", err=True)
    click.echo(f"{path}: right")


@main.group()
def store() -> None:
    """What is done to a whole store."""


@store.command("copy")
@PATH_OPTION
@click.option("--from", "source", required=True, help="Store to read, by the name of its plugin.")
@click.option(
    "--to",
    "target",
    required=True,
    help="Store to write; empty, or a copy of the other that no dfud was started on yet.",
)
def copy_store(path: Path, source: str, target: str) -> None:
    """Copy every record and image from one store to another and compare them.

    Begun anew, it goes on where it was; what is there already is brought up to date. dfud is stopped for the last time.
    """
    from dfud.daemon.copying import copy_with_progress

    if source == target:
        raise ConfigError(f"--from and --to are both {source}, expected two stores")
    config, plugins = load(path)
    lines = trio.run(partial(copy_with_progress, plugins.store(config, source), plugins.store(config, target)))
    for line in lines:
        click.echo(line)


@main.command()
@PATH_OPTION
def plugins(path: Path) -> None:
    """List the installed plugins and which of them are enabled."""
    enabled = configuration.enabled_plugins(configuration.read_file(path), str(path)) if path.exists() else []
    for name, plugin in sorted(available().items()):
        mark = "enabled" if name in enabled else "-"
        click.echo(f"{name:12} {mark:8} {plugin.distribution:20} {plugin.where}")


if importlib.util.find_spec("devicefw") is not None and importlib.util.find_spec("devicefw.sim.cli") is not None:
    from devicefw.sim.cli import sim

    main.add_command(sim)
