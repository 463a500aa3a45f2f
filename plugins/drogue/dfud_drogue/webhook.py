"""Events to a URL. A device's publish is accepted when the other side has accepted it: there is no queue to lose. Changes of
deployments and rollouts wait in dfud's outbox, which tries them again.

Signed as the Standard Webhooks specification 1.0 says: HMAC-SHA256 over `id.timestamp.body`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import trio

from dfud.api import Bus, ChangeEvent, ConfigError, EventSink, StoreError, Telemetry, change_event
from dfud_drogue.cloudevents import cloud_event
from dfud_drogue.config import WebhookConfig

SECRET_MIN_BYTES = 16
# The event is at fault, not the receiver's state or its set-up, which may be mended: RFC 9110, section 15.5.
JUDGED = frozenset({400, 409, 410, 413, 414, 415, 422})
DRAIN_S = 1.0  # for the rest of an answer whose status is known


def signature(secret: bytes, identity: str, timestamp: int, body: bytes) -> str:
    """Return the value of the header webhook-signature."""
    signed = b"%s.%d.%s" % (identity.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


class WebhookSink(EventSink):
    """Raises ConfigError at construction for a URL or a secret that cannot be right."""

    name = "webhook"

    def __init__(self, config: WebhookConfig, instance: str, now: Callable[[], float] = time.time) -> None:
        if not config.url.startswith(("http://", "https://")):
            raise ConfigError(f"[events.webhook] url {config.url!r}: expected http:// or https://")
        try:
            self._secret = Path(config.secret_file).read_bytes().strip()
        except OSError as error:
            raise ConfigError(f"[events.webhook] secret_file {config.secret_file!r}: {error.strerror}") from error
        if len(self._secret) < SECRET_MIN_BYTES:
            raise ConfigError(f"[events.webhook] secret_file: {len(self._secret)} bytes, expected {SECRET_MIN_BYTES}")
        self._config = config
        self.telemetry, self.changes = config.telemetry, config.changes
        self._instance = instance
        self._now = now
        self._limiter = trio.CapacityLimiter(config.concurrent)
        self._client: httpx.AsyncClient | None = None

    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with httpx.AsyncClient(timeout=self._config.timeout_s, trust_env=False) as client:
            self._client = client
            task_status.started()
            await trio.sleep_forever()

    async def take(self, telemetry: Telemetry) -> None:
        if self._limiter.statistics().tasks_waiting >= self._config.waiting_max > 0:
            raise StoreError("too many events wait for the webhook", retryable=True)
        body = cloud_event(telemetry, self._instance)
        async with self._limiter:
            problem = ""
            for attempt in range(self._config.attempts):
                if attempt:
                    await trio.sleep(self._config.retry_s * 2 ** (attempt - 1))
                problem, _ = await self._deliver(telemetry.id, body)
                if not problem:
                    return
        raise StoreError(f"[events.webhook] {problem}", retryable=True)

    async def tell(self, event: ChangeEvent) -> None:
        """Send a change once. Raises StoreError: not retryable where the other side has judged the event itself."""
        problem, again = await self._deliver(event.id, change_event(event, self._instance))
        if problem:
            raise StoreError(f"[events.webhook] {problem}", retryable=again)

    async def _deliver(self, identity: str, body: bytes) -> tuple[str, bool]:
        """Send once; return "" or what went wrong, and whether it may go better later whatever the event is."""
        if self._client is None:
            return "not running", True
        timestamp = int(self._now())
        headers = {
            "content-type": "application/cloudevents+json; charset=utf-8",
            "webhook-id": identity,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._secret, identity, timestamp, body),
        }
        try:
            # httpx limits the time of each step; a server that drips would take any number of them.
            with trio.fail_after(self._config.timeout_s):
                status = await self._ask(self._client, body, headers)
        except trio.TooSlowError:
            return f"no answer in {self._config.timeout_s:g} s", True
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return type(error).__name__, True
        return ("", False) if 200 <= status < 300 else (f"answered {status}", status not in JUDGED)

    async def _ask(self, client: httpx.AsyncClient, body: bytes, headers: dict[str, str]) -> int:
        """Return the status. The rest of the answer is of no use: a short one is read, so that the connection can be kept."""
        async with client.stream("POST", self._config.url, content=body, headers=headers) as answer:
            read = 0
            with trio.move_on_after(DRAIN_S), contextlib.suppress(httpx.HTTPError, httpx.StreamError):
                async for data in answer.aiter_raw():
                    read += len(data)
                    if read > self._config.answer_max:
                        break
            return answer.status_code
