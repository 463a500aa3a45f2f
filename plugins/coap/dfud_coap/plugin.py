"""The hooks of the CoAP transport."""

from __future__ import annotations

from collections.abc import Iterable

from dfud.api import Config, Section, Transport, hookimpl
from dfud_coap.config import CoapConfig
from dfud_coap.transport import CoapTransport


@hookimpl
def dfud_config_sections() -> Iterable[Section]:
    return [Section("transport.coap", CoapConfig, "Devices over CoAP.")]


@hookimpl
def dfud_transports(config: Config) -> Iterable[Transport]:
    return [CoapTransport(config.section("transport.coap", CoapConfig))]
