"""The parts in their order: store, controller, endpoint, transports, user plane; and back."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trio

from dfud.api import (
    Aged,
    Bus,
    Capability,
    Config,
    ConfigError,
    DeploymentChanged,
    StoreError,
    Transport,
    contained,
    forever,
)
from dfud.controller.config import ControllerConfig
from dfud.controller.controller import Controller
from dfud.controller.delivery import Deliveries
from dfud.controller.outbox import Outbox, OutboxConfig
from dfud.controller.packages import Packages
from dfud.daemon.components import Components
from dfud.daemon.config import ClusterConfig, DaemonConfig
from dfud.daemon.copied import settle
from dfud.daemon.fleet_metrics import fleet_lines, outbox_lines
from dfud.daemon.key import check_key
from dfud.daemon.metrics import Metrics
from dfud.daemon.notify import Notifier
from dfud.daemon.pauses import Pauses
from dfud.daemon.retention import Retention, RetentionConfig
from dfud.daemon.tasks import keep
from dfud.endpoint.auth import Authenticator
from dfud.endpoint.commands import Commands
from dfud.endpoint.config import EndpointConfig, password_limits
from dfud.endpoint.endpoint import DeviceEndpoint
from dfud.registry import audit
from dfud.registry.application import ADMISSION, make_app
from dfud.registry.claims import Claims
from dfud.registry.config import RegistryConfig
from dfud.registry.firmware import FirmwareRegistry
from dfud.registry.registry import Registry
from dfud.registry.rules import limits_of
from dfud.registry.server import serve
from dfud.registry.services import Services
from dfud.registry.users import Users

log = logging.getLogger("dfud")


class Service:
    """One running dfud. `failure` is why it has ended by itself, or None."""

    def __init__(self, parts: Components, version: str, environment: Mapping[str, str]) -> None:
        """Take the parts; nothing runs yet."""
        self._parts = parts
        self._config = parts.config
        self._version = version
        self._notifier = Notifier(environment)
        self._daemon = parts.config.section("daemon", DaemonConfig)
        self._bus = Bus()
        self._store = parts.store
        self._transports = parts.transports
        self._not_ready = "starting"
        self._pauses = Pauses()
        self._stop = trio.Event()
        self._users_served = trio.Event()
        self.failure: Exception | None = None

    async def run(self, reread: Callable[[], Config]) -> None:
        """Serve until SIGTERM or SIGINT, or until the store has failed; on SIGHUP take up what can change, from `reread()`.

        Returns when everything that was accepted is answered and stored, or drain_s has passed.
        """
        self._pauses.watch()
        try:
            await self._run(reread)
        finally:
            self._pauses.end()
        log.info("stopped")

    async def _run(self, reread: Callable[[], Config]) -> None:
        async with trio.open_nursery() as outer:
            await outer.start(self._run_store)
            settings = self._config.section("endpoint", EndpointConfig)
            await check_key(self._store, self._parts.key, settings.credential_key)
            await settle(self._store)
            async with trio.open_nursery() as nursery:
                await nursery.start(self._signals, reread)
                await self._start(nursery)
                await self._stop.wait()
                await self._drain()
                nursery.cancel_scope.cancel()
            outer.cancel_scope.cancel()

    def _counters(self) -> Mapping[str, float]:
        turned_away = {"dfud_requests_turned_away_total": float(self._endpoint.pressure.turned_away)}
        return {**self._store.counters(), **self._pauses.counters(), **turned_away}

    async def _run_store(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the store. Without one nothing can be answered, so its end is dfud's, with what is parked answered first."""
        started = False

        def report() -> None:
            nonlocal started
            started = True
            task_status.started()

        try:
            await self._store.run(self._bus, task_status=_Reporting(report))
            raise StoreError(f"store {self._store.name} has ended by itself")
        except Exception as error:
            if not started:
                raise
            self.failure = error
            self._not_ready = "the store has failed"
            log.critical("the store has failed, dfud ends", exc_info=error)
            self._stop.set()

    def _ready(self) -> str:
        return self._not_ready or self._store.problem()

    async def _start(self, nursery: trio.Nursery) -> None:
        await audit.follow(self._store)
        policy = self._config.section("controller", ControllerConfig)
        settings = self._config.section("endpoint", EndpointConfig)
        packages = Packages(
            self._store,
            Path(policy.packages_path),
            disk_bytes=policy.packages_max_bytes,
            memory_bytes=policy.packages_memory_bytes,
            workers=policy.workers,
            waiting_max=policy.packages_waiting,
            per_hour=policy.packages_per_hour,
            known_max=policy.packages_known,
            devices_max=policy.cache_devices,
        )
        await keep(nursery, "packages.run", packages.run)
        wanted = [sink for sink in self._parts.sinks if sink.changes]
        outbox = Outbox(self._store, [sink.name for sink in wanted], self._config.section("outbox", OutboxConfig))
        await outbox.load()
        self._deliveries = Deliveries(self._store, self._bus, outbox, wanted, time.time)
        controller = Controller(
            store=self._store,
            bus=self._bus,
            packages=packages,
            config=policy,
            now=time.time,
            promote=self._promote,
            outbox=outbox,
        )
        await keep(nursery, "controller.run", controller.run)
        self._bus.subscribe(DeploymentChanged, _log_deployment)
        for sink in self._parts.sinks:
            await keep(nursery, "sink.run", sink.run, self._bus, sink=sink.name)
        for name, delivery in self._deliveries.all.items():
            nursery.start_soon(partial(forever, "outbox.run", delivery.run, sink=name))
        key = self._parts.key
        users = self._config.section("registry", RegistryConfig)
        limits = limits_of(users, password_limits(settings))
        wants, leaving = controller.rollouts.desired, controller.leaving
        self._registry = Registry(
            store=self._store,
            bus=self._bus,
            credential_key=key,
            now=time.time,
            limits=limits,
            wants=wants,
            leaving=leaving,
        )
        await keep(nursery, "registry.groups", self._registry.groups.run)
        self._claims = Claims(self._registry, self._store, key, time.time, limits)
        authenticator = Authenticator(self._store, self._bus, settings, key, time.time, view=controller.view)
        nursery.start_soon(forever, "endpoint.failures", authenticator.run)
        self._endpoint = DeviceEndpoint(
            self._store,
            self._bus,
            controller,
            authenticator,
            Commands(
                self._store,
                self._bus,
                settings.commands_queued,
                settings.commands_expire_s,
                trio.current_time,
                most=settings.commands_max,
                most_bytes=settings.commands_max_bytes,
            ),
            settings,
            dialects=self._parts.dialects,
            sinks=[sink for sink in self._parts.sinks if sink.telemetry],
            seen_s=policy.seen_s,
            now=time.time,
            enroller=self._claims,
        )
        await keep(nursery, "endpoint.run", self._endpoint.run)
        for transport in self._transports:
            told = partial(_log_devices_served, transport.name)
            await keep(nursery, "transport.run", transport.run, self._endpoint, told=told, transport=transport.name)
        await self._start_user_plane(nursery, controller)
        kept = self._config.section("retention", RetentionConfig)
        await keep(nursery, "daemon.retention", Retention(self._store, kept, claims=self._claims.forget).run)
        if Capability.SHARED in self._store.capabilities:
            nursery.start_soon(forever, "daemon.cluster", self._age)
        nursery.start_soon(forever, "daemon.watchdog", partial(self._notifier.keep_alive, lambda: self.failure is None))
        self._pauses.freeze()
        if not self._stop.is_set():
            self._not_ready = ""
            self._notifier.tell("READY=1", f"STATUS=serving, version {self._version}")
            log.info("ready", extra={"version": self._version, "store": self._store.name})

    async def _age(self) -> None:
        """Bound for how long anything is remembered of a store that others write, too: it does not rest on being told."""
        cluster = self._config.section("cluster", ClusterConfig)
        while True:
            await trio.sleep(cluster.remembered_s)
            self._bus.publish(Aged())

    async def _promote(self, app: str, firmware: dict[str, Any] | None, by: str) -> None:
        await self._registry.set_firmware(app, None, firmware, by)

    async def _start_user_plane(self, nursery: trio.Nursery, controller: Controller) -> None:
        config = self._config.section("registry", RegistryConfig)
        services = Services(
            registry=self._registry,
            firmware=FirmwareRegistry(self._store, self._bus, time.time, config.firmware_max),
            users=Users(self._store),
            claims=self._claims,
            store=self._store,
            bus=self._bus,
            commands=self._endpoint.commands,
            updates=controller,
            insight=controller.insight,
            fleet=controller.fleet,
            outbox=self._deliveries,
            planner=controller.planner,
            rollouts=controller.rollouts,
            config=config,
            now=time.time,
            ready=self._ready,
            metrics=self._metrics(controller).text,
            version=self._version,
            oidc=self._parts.oidc,
        )
        app = make_app(services, self._parts.routes, self._stop)
        nursery.start_soon(forever, "users.failures", app.extensions[ADMISSION].shared.run)
        await keep(nursery, "users.run", self._serve_users, app, config, told=_log_users_served)

    def _metrics(self, controller: Controller) -> Metrics:
        def fleets() -> str:
            return fleet_lines(controller.fleet.counted(), controller.insight.needs(), time.time())

        def outbox() -> str:
            return outbox_lines(self._deliveries.status())

        return Metrics(self._bus, lambda: self._endpoint.parked, self._counters, [fleets, outbox])

    async def _serve_users(
        self, app: object, config: RegistryConfig, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            await serve(
                app,
                config,
                graceful_s=self._daemon.drain_s,
                shutdown=self._stop,
                tls=self._parts.tls,
                task_status=task_status,
            )
        finally:
            if self._stop.is_set():
                self._users_served.set()
        if self._stop.is_set():
            await trio.sleep_forever()  # it has not ended by itself

    async def _drain(self) -> None:
        self._not_ready = "stopping"
        self._notifier.tell("STOPPING=1")
        log.info("stopping")
        self._endpoint.drain()
        with trio.move_on_after(self._daemon.drain_s) as scope:
            async with trio.open_nursery() as draining:
                draining.start_soon(self._users_served.wait)
                for transport in self._transports:
                    draining.start_soon(self._drain_one, transport)
            if self.failure is None:
                await self._endpoint.commands.kept.settled()
        if scope.cancelled_caught:
            log.warning("not everybody took the answer in time", extra={"drain_s": self._daemon.drain_s})

    async def _drain_one(self, transport: Transport) -> None:
        with contained("transport.drain", transport=transport.name):
            await transport.drain()

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
        with contained("daemon.reload"):
            try:
                fresh = reread()
                for transport in self._transports:
                    transport.reload()
                if self._parts.tls is not None:
                    self._parts.tls.reload()
            except ConfigError as error:
                log.error("not reloaded", extra={"error": str(error)})
            else:
                logging.getLogger().setLevel(fresh.section("daemon", DaemonConfig).log_level.upper())
                waiting = [n for n, section in fresh.sections.items() if section != self._config.sections.get(n)]
                log.info("reloaded", extra={"needs_restart": ", ".join(f"[{n}]" for n in waiting) or "nothing"})
        self._notifier.tell("READY=1")


class _Reporting:
    """Stands in for trio's TaskStatus, to hear when a task has started."""

    def __init__(self, report: Callable[[], None]) -> None:
        self._report = report

    def started(self, value: object = None) -> None:
        self._report()


def _log_devices_served(transport: str, urls: Iterable[str]) -> None:
    for url in urls:
        log.info("devices are served", extra={"transport": transport, "url": url})


def _log_users_served(urls: Iterable[str]) -> None:
    for url in urls:
        log.info("users are served", extra={"url": url})


def _log_deployment(event: DeploymentChanged) -> None:
    # One line an update, which says how it ended; its steps are in the device's history.
    d = event.deployment
    level = logging.INFO if d.final else logging.DEBUG
    if not log.isEnabledFor(level):
        return
    log.log(
        level,
        "deployment",
        extra={"app": d.app, "device": d.device, "firmware": d.version, "state": str(d.state), "code": d.code},
    )
