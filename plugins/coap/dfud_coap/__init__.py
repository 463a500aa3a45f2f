"""The device plane over CoAP: docs/coap.md. Uses nothing of dfud but dfud.api."""

from dfud_coap import plugin

__all__ = ["plugin"]
