"""From dfud.toml to the objects that a running dfud is made of; what is wrong with it is told whole, not one by one.

`run` and `check-config` both come here, so they cannot disagree.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dfud.api import (
    BugError,
    Config,
    DfudError,
    Dialect,
    EventSink,
    PluginError,
    Section,
    Store,
    StoreError,
    Transport,
    UserRoutes,
)
from dfud.controller.config import SECTION as CONTROLLER
from dfud.controller.outbox import SECTION as OUTBOX
from dfud.daemon import config as configuration
from dfud.daemon.config import CORE_SECTIONS, ConfigErrors, DaemonConfig
from dfud.daemon.key import COLLECTION, NAME, compare_key, read_key
from dfud.daemon.plugins import Plugins, UnknownPlugin, available
from dfud.daemon.retention import SECTION as RETENTION
from dfud.endpoint.config import SECTION as ENDPOINT
from dfud.endpoint.config import EndpointConfig
from dfud.registry.config import SECTION as REGISTRY
from dfud.registry.config import RegistryConfig
from dfud.registry.oidc import SECTION as OIDC
from dfud.registry.oidc import Oidc, OidcConfig
from dfud.registry.server import check_listening, hypercorn_config
from dfud.registry.tls import Tls

T = TypeVar("T")
SECTIONS = (*CORE_SECTIONS, REGISTRY, OIDC, CONTROLLER, OUTBOX, ENDPOINT, RETENTION)


class Components(msgspec.Struct, frozen=True):
    """What was made of a configuration. Nothing runs yet, nothing is open. key: of device secrets."""

    config: Config
    store: Store
    transports: Sequence[Transport]
    dialects: Sequence[Dialect]
    sinks: Sequence[EventSink]
    routes: Sequence[UserRoutes]
    key: bytes
    oidc: Oidc | None
    tls: Tls | None


def load(path: Path) -> tuple[Config, Plugins]:
    """Read the configuration and load its plugins. Raises ConfigError that holds everything that is wrong."""
    config, plugins, problems = _load(path)
    if problems:
        raise ConfigErrors(problems)
    return config, plugins


def _load(path: Path) -> tuple[Config, Plugins, list[str]]:
    document = configuration.read_file(path)
    plugins = Plugins(())
    problems = []
    meant: list[str] = []
    for name in configuration.enabled_plugins(document, str(path)):
        try:
            plugins.load(name)
        except PluginError as error:
            problems.append(str(error))
            meant += [error.close] if isinstance(error, UnknownPlugin) and error.close else []
    for name in meant:  # so that the rest of what it is configured to be is judged, too
        if not plugins.has(name):
            with suppress(PluginError):
                plugins.load(name)
    sections: list[Section] = [*SECTIONS, *plugins.sections()]
    strangers = _strangers(document, plugins, {section.name for section in sections}) if problems else []
    config, wrong = configuration.read(document, [*sections, *strangers], str(path), strangers=bool(problems))
    return config, plugins, problems + wrong


def _strangers(document: dict[str, Any], plugins: Plugins, known: set[str]) -> list[Section]:
    """Return the sections that the file has of plugins which are installed and not loaded: perhaps they were meant."""
    found: list[Section] = []
    for name in available():
        if not plugins.has(name):
            with suppress(PluginError):
                found += Plugins([name]).sections()
    return [section for section in found if section.name not in known and _stands_in(document, section.name)]


def _stands_in(document: dict[str, Any], name: str) -> bool:
    table: Any = document
    for part in name.split("."):
        table = table.get(part) if isinstance(table, dict) else None
    return isinstance(table, dict)


def build(path: Path) -> Components:
    """Make every part. Raises ConfigErrors with one sentence for each thing that is wrong.

    Where a key of a section is wrong, its default stands in for it while the rest is looked at.
    """
    config, plugins, problems = _load(path)
    broken = bool(problems)

    def made(what: Callable[[], T]) -> T | None:
        try:
            return what()
        except BugError:
            if not broken:  # else a section that could not be read at all is missing, which is told already
                raise
        except ConfigErrors as error:
            problems.extend(error.messages)
        except DfudError as error:
            problems.append(str(error))
        return None

    daemon = made(lambda: config.section("daemon", DaemonConfig))
    users = made(lambda: config.section("registry", RegistryConfig))
    endpoint = made(lambda: config.section("endpoint", EndpointConfig))
    issuer = made(lambda: config.section("oidc", OidcConfig))
    store = made(lambda: plugins.store(config, daemon.store)) if daemon else None
    transports = made(lambda: plugins.transports(config))
    dialects = made(lambda: plugins.dialects(config))
    sinks = made(lambda: plugins.event_sinks(config))
    routes = made(lambda: plugins.user_routes(config))
    key = made(lambda: read_key(Path(endpoint.credential_key))) if endpoint else None
    oidc = made(lambda: Oidc(issuer, time.time)) if issuer and issuer.issuer else None
    tls = made(lambda: Tls(users)) if users and users.certificate else None
    if users and (tls or not users.certificate):
        made(lambda: hypercorn_config(users, 0.0, tls))
    if problems:
        raise ConfigErrors(problems)
    if store is None or transports is None or dialects is None or sinks is None or routes is None or key is None:
        raise BugError(f"{path}: a part is missing, and nothing said why")
    return Components(
        config=config,
        store=store,
        transports=transports,
        dialects=dialects,
        sinks=sinks,
        routes=routes,
        key=key,
        oidc=oidc,
        tls=tls,
    )


async def examine(path: Path) -> str:
    """Look whether `run` would start with this file; raise ConfigErrors with everything that is in its way.

    Return what is no mistake of the file, or "": a running dfud has the store, and `run` would refuse to start beside it.
    """
    problems: list[str] = []
    parts: Components | None = None
    try:
        parts = build(path)
    except ConfigErrors as error:
        problems += error.messages
    store = parts.store if parts else _store_of(path)
    note = ""

    async def checked(check: Awaitable[None]) -> None:
        nonlocal note
        try:
            await check
        except StoreError as error:
            if not error.retryable:
                problems.append(str(error))
            note = note or (str(error) if error.retryable else "")
        except DfudError as error:
            problems.append(str(error))

    if store is not None:
        await checked(store.check())
    if parts is not None and not note:  # else the running dfud has the ports, too
        await checked(check_known_key(parts))
        for transport in parts.transports:
            await checked(transport.check())
        await checked(check_listening(parts.config.section("registry", RegistryConfig)))
    if problems:
        raise ConfigErrors(problems)
    return note


async def check_known_key(parts: Components) -> None:
    """Raise ConfigError for a key that is not the database's, as far as that can be told without opening it."""
    settings = parts.config.section("endpoint", EndpointConfig)
    stored = await parts.store.peek(COLLECTION, NAME)
    if stored is not None:
        compare_key(stored, parts.key, settings.credential_key)


def _store_of(path: Path) -> Store | None:
    """Return the store of a configuration that is wrong elsewhere, if it can be made."""
    try:
        config, plugins, _ = _load(path)
        return plugins.store(config, config.section("daemon", DaemonConfig).store)
    except DfudError:
        return None
