"""Answers that say nothing of who asked."""

from __future__ import annotations

from dfud.api import Code, Reply

DENIED = Reply(Code.DENIED, error="AuthenticationError", message="Authentication failed")
TOO_MANY = Reply(Code.TOO_MANY, error="TooManyRequests", message="Too many failed attempts", retry_after_s=60)
NOT_FOUND = Reply(Code.NOT_FOUND, error="NotFound", message="No such package or chunk for this device")
FAILED = Reply(Code.FAILED, error="InternalError", message="The request failed; the log of dfud says why")
AWAY = Reply(Code.AWAY, error="ServiceUnavailable", message="Try again later", retry_after_s=10)
