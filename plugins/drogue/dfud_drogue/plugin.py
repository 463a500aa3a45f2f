"""The hooks of the Drogue plugin."""

from __future__ import annotations

from collections.abc import Iterable

from dfud.api import Config, Dialect, EventSink, Section, UserRoutes, hookimpl
from dfud_drogue.config import DrogueConfig, EventLogConfig, WebhookConfig
from dfud_drogue.dialect import AjourDialect
from dfud_drogue.log_sink import LogSink
from dfud_drogue.routes import DrogueRoutes
from dfud_drogue.webhook import WebhookSink


@hookimpl
def dfud_config_sections() -> Iterable[Section]:
    return [
        Section("drogue", DrogueConfig, "Clients of Drogue IoT."),
        Section("events.log", EventLogConfig, "Events into a file."),
        Section("events.webhook", WebhookConfig, "Events to a URL."),
    ]


@hookimpl
def dfud_dialects(config: Config) -> Iterable[Dialect]:
    return [AjourDialect(config.section("drogue", DrogueConfig))]


@hookimpl
def dfud_user_routes(config: Config) -> Iterable[UserRoutes]:
    return [DrogueRoutes()]


@hookimpl
def dfud_event_sinks(config: Config) -> Iterable[EventSink]:
    instance = config.section("drogue", DrogueConfig).instance
    log = config.section("events.log", EventLogConfig)
    webhook = config.section("events.webhook", WebhookConfig)
    sinks: list[EventSink] = []
    if log.path:
        sinks.append(LogSink(log, instance))
    if webhook.url:
        sinks.append(WebhookSink(webhook, instance))
    return sinks
