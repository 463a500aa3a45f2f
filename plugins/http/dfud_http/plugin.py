"""The hooks of the HTTP transport."""

from __future__ import annotations

from collections.abc import Iterable

from dfud.api import Config, Section, Transport, hookimpl
from dfud_http.config import HttpConfig
from dfud_http.transport import HttpTransport


@hookimpl
def dfud_config_sections() -> Iterable[Section]:
    return [Section("transport.http", HttpConfig, "Devices over HTTP.")]


@hookimpl
def dfud_transports(config: Config) -> Iterable[Transport]:
    return [HttpTransport(config.section("transport.http", HttpConfig))]
