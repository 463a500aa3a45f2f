"""The parts in their order: store, controller, endpoint, transports, user plane; and back."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import trio

from dfud.api import Bus, Config, ConfigError, DeploymentChanged, Store, Transport
from dfud.controller.config import ControllerConfig
from dfud.controller.controller import Controller
from dfud.controller.packages import Packages
from dfud.daemon.config import DaemonConfig
from dfud.daemon.metrics import Metrics
from dfud.daemon.notify import Notifier
from dfud.daemon.plugins import Plugins
from dfud.endpoint.auth import Authenticator
from dfud.endpoint.commands import Commands
from dfud.endpoint.config import EndpointConfig
from dfud.endpoint.endpoint import DeviceEndpoint
from dfud.registry.claims import Claims
from dfud.registry.config import RegistryConfig
from dfud.registry.firmware import FirmwareRegistry
from dfud.registry.oidc import Oidc, OidcConfig
from dfud.registry.registry import Registry
from dfud.registry.server import serve
from dfud.registry.services import Services
from dfud.registry.tls import Tls
from dfud.registry.users import Users
from dfud.registry.web import make_app

log = logging.getLogger("dfud")
KEY_BYTES = 32


def read_key(path: Path) -> bytes:
    """Return the key under which device secrets are hashed. Raises ConfigError."""
    try:
        key = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"[endpoint] credential_key {path}: {error.strerror}; `dfud init` makes it") from error
    if len(key) != KEY_BYTES:
        raise ConfigError(f"[endpoint] credential_key {path} has {len(key)} bytes, expected {KEY_BYTES}")
    return key


class Service:
    """One running dfud."""

    def __init__(self, config: Config, plugins: Plugins, version: str, environment: Mapping[str, str]) -> None:
        """Make every part; nothing runs yet. Raises ConfigError, PluginError."""
        self._config = config
        self._plugins = plugins
        self._version = version
        self._notifier = Notifier(environment)
        self._daemon = config.section("daemon", DaemonConfig)
        self._bus = Bus()
        self._store: Store = plugins.store(config, self._daemon.store)
        self._transports: list[Transport] = plugins.transports(config)
        self._dialects = plugins.dialects(config)
        self._sinks = plugins.event_sinks(config)
        self._routes = plugins.user_routes(config)
        self._key = read_key(Path(config.section("endpoint", EndpointConfig).credential_key))
        issuer = config.section("oidc", OidcConfig)
        self._oidc = Oidc(issuer, time.time) if issuer.issuer else None
        users = config.section("registry", RegistryConfig)
        self._tls = Tls(users) if users.certificate else None
        self._not_ready = "starting"
        self._stop = trio.Event()
        self._users_served = trio.Event()

    async def run(self, reread: Callable[[], Config]) -> None:
        """Serve until SIGTERM or SIGINT; on SIGHUP take up what can change, from `reread()`.

        Returns when everything that was accepted is answered and stored, or drain_s has passed.
        """
        async with trio.open_nursery() as outer:
            await outer.start(self._store.run, self._bus)
            async with trio.open_nursery() as nursery:
                await nursery.start(self._signals, reread)
                await self._start(nursery)
                await self._stop.wait()
                await self._drain()
                nursery.cancel_scope.cancel()
            outer.cancel_scope.cancel()
        log.info("stopped")

    async def _start(self, nursery: trio.Nursery) -> None:
        policy = self._config.section("controller", ControllerConfig)
        settings = self._config.section("endpoint", EndpointConfig)
        packages = Packages(
            self._store,
            Path(policy.packages_path),
            disk_bytes=policy.packages_max_bytes,
            memory_bytes=policy.packages_memory_bytes,
            workers=policy.workers,
            waiting_max=policy.packages_waiting,
        )
        await nursery.start(packages.run)
        controller = Controller(self._store, self._bus, packages, policy, time.time)
        await nursery.start(controller.run)
        self._bus.subscribe(DeploymentChanged, _log_deployment)
        for sink in self._sinks:
            await nursery.start(sink.run, self._bus)
        self._registry = Registry(self._store, self._bus, self._key, time.time)
        self._claims = Claims(self._registry, self._store, self._key, time.time)
        self._endpoint = DeviceEndpoint(
            self._store,
            self._bus,
            controller,
            Authenticator(self._store, self._bus, settings, self._key, time.time),
            Commands(settings.commands_queued, settings.commands_expire_s, time.time),
            settings,
            dialects=self._dialects,
            sinks=self._sinks,
            seen_s=policy.seen_s,
            now=time.time,
            enroller=self._claims,
        )
        await nursery.start(self._endpoint.run)
        for transport in self._transports:
            for url in await nursery.start(transport.run, self._endpoint):
                log.info("devices are served", extra={"transport": transport.name, "url": url})
        await self._start_user_plane(nursery, controller)
        self._not_ready = ""
        nursery.start_soon(self._notifier.keep_alive)
        self._notifier.tell("READY=1", f"STATUS=serving, version {self._version}")
        log.info("ready", extra={"version": self._version, "store": self._store.name})

    async def _start_user_plane(self, nursery: trio.Nursery, controller: Controller) -> None:
        config = self._config.section("registry", RegistryConfig)
        services = Services(
            self._registry,
            FirmwareRegistry(self._store, self._bus, time.time, config.firmware_max),
            Users(self._store),
            self._claims,
            self._store,
            self._bus,
            self._endpoint.commands,
            controller,
            config,
            time.time,
            lambda: self._not_ready,
            Metrics(self._bus, lambda: self._endpoint.parked, self._store.counters).text,
            self._version,
            self._oidc,
        )
        app = make_app(services, self._routes, self._stop)
        urls: list[str] = await nursery.start(self._serve_users, app, config)
        for url in urls:
            log.info("users are served", extra={"url": url})

    async def _serve_users(
        self, app: object, config: RegistryConfig, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            await serve(
                app,
                config,
                graceful_s=self._daemon.drain_s,
                shutdown=self._stop,
                tls=self._tls,
                task_status=task_status,
            )
        finally:
            self._users_served.set()

    async def _drain(self) -> None:
        self._not_ready = "stopping"
        self._notifier.tell("STOPPING=1")
        log.info("stopping")
        self._endpoint.drain()
        with trio.move_on_after(self._daemon.drain_s) as scope:
            async with trio.open_nursery() as draining:
                draining.start_soon(self._users_served.wait)
                for transport in self._transports:
                    draining.start_soon(transport.drain)
        if scope.cancelled_caught:
            log.warning("not everybody took the answer in time", extra={"drain_s": self._daemon.drain_s})

    async def _signals(
        self, reread: Callable[[], Config], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    self._reload(reread)
                elif self._stop.is_set():
                    raise SystemExit(1)  # asked twice
                else:
                    self._stop.set()

    def _reload(self, reread: Callable[[], Config]) -> None:
        """Take up certificates and the log level; say which other changes wait for a restart."""
        self._notifier.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            fresh = reread()
            for transport in self._transports:
                transport.reload()
            if self._tls is not None:
                self._tls.reload()
        except ConfigError as error:
            log.error("not reloaded", extra={"error": str(error)})
        else:
            logging.getLogger().setLevel(fresh.section("daemon", DaemonConfig).log_level.upper())
            waiting = [name for name, section in fresh.sections.items() if section != self._config.sections.get(name)]
            log.info("reloaded", extra={"needs_restart": ", ".join(f"[{n}]" for n in waiting) or "nothing"})
        self._notifier.tell("READY=1")


def _log_deployment(event: DeploymentChanged) -> None:
    d = event.deployment
    log.info(
        "deployment",
        extra={"app": d.app, "device": d.device, "firmware": d.version, "state": str(d.state), "code": d.code},
    )


async def initialise(config: Config, store: Store, user: str, days: int) -> str | None:
    """Make what a first start needs; return the first admin token, or None if there is one already."""
    path = Path(config.section("endpoint", EndpointConfig).credential_key)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        read_key(path)
    else:
        with os.fdopen(fd, "wb") as file:
            file.write(os.urandom(KEY_BYTES))
            file.flush()
            os.fsync(fd)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        users = Users(store)
        existing = [t for t in await users.tokens() if t.roles.get("*") == "admin" and t.expires_s > time.time()]
        text: str | None = None
        if not existing:
            _, text = await users.create(
                user, {"*": "admin"}, by="dfud init", now_s=time.time(), days=days, description="made by dfud init"
            )
        nursery.cancel_scope.cancel()
    return text
