"""The command `dfud`."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

import click
import trio

from dfud import __version__
from dfud.api import Config, DfudError
from dfud.controller.config import SECTION as CONTROLLER
from dfud.daemon import config as configuration
from dfud.daemon.config import DaemonConfig
from dfud.daemon.plugins import Plugins, available
from dfud.endpoint.config import SECTION as ENDPOINT
from dfud.registry.config import SECTION as REGISTRY
from dfud.registry.oidc import SECTION as OIDC
from dfud.registry.oidc import Oidc, OidcConfig

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
            click.echo(f"dfud: {error}", err=True)
            sys.exit(2)
        except BaseExceptionGroup as group:
            own = _own(group)
            if own is None:
                raise
            click.echo(f"dfud: {own}", err=True)
            sys.exit(2)


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


def load(path: Path) -> tuple[Config, Plugins]:
    """Read the configuration and load its plugins. Raises ConfigError, PluginError."""
    document = configuration.read_file(path)
    plugins = Plugins(configuration.enabled_plugins(document, str(path)))
    sections = [*configuration.CORE_SECTIONS, REGISTRY, OIDC, CONTROLLER, ENDPOINT, *plugins.sections()]
    return configuration.build(document, sections, str(path)), plugins


@main.command()
@PATH_OPTION
def run(path: Path) -> None:
    """Serve devices and users until SIGTERM; SIGHUP reloads certificates and the log level."""
    from dfud.daemon.logs import configure
    from dfud.daemon.service import Service

    config, plugins = load(path)
    daemon = config.section("daemon", DaemonConfig)
    configure(daemon.log_format, daemon.log_level, os.environ)
    service = Service(config, plugins, __version__, os.environ)
    trio.run(service.run, lambda: load(path)[0])


@main.command()
@PATH_OPTION
@click.option("--user", default="admin", show_default=True, help="Name of the first administrator.")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 3650), help="Life of the token.")
def init(path: Path, user: str, days: int) -> None:
    """Make the key of device secrets and the first admin token, which is shown once. Safe to repeat."""
    from dfud.daemon.service import initialise

    config, plugins = load(path)
    store = plugins.store(config, config.section("daemon", DaemonConfig).store)
    token = trio.run(initialise, config, store, user, days)
    if token is None:
        click.echo("There is an admin token already; nothing was changed.", err=True)
        return
    click.echo("The token of the first administrator; it is not shown again:", err=True)
    click.echo(token)


@main.command("check-config")
@PATH_OPTION
@click.option("--full", is_flag=True, help="Print every section and key of all installed plugins with its default.")
def check_config(path: Path, full: bool) -> None:
    """Read the configuration as `run` would, and say whether it is right."""
    if full:
        names = sorted(available())
        everything = [REGISTRY, OIDC, CONTROLLER, ENDPOINT, *Plugins(names).sections()]
        click.echo(configuration.sample([*configuration.CORE_SECTIONS, *everything], enabled=names), nl=False)
        return
    config, plugins = load(path)
    plugins.store(config, config.section("daemon", DaemonConfig).store)
    plugins.transports(config)
    plugins.dialects(config)
    plugins.event_sinks(config)
    plugins.user_routes(config)
    issuer = config.section("oidc", OidcConfig)
    if issuer.issuer:
        Oidc(issuer, time.time)
    click.echo(f"{path}: right")


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
