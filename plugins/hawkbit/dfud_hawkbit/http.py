"""HTTP to one hawkBit, by httpx under trio: deadlines, what each answer amounts to, and when it answered last.

Knows nothing of what hawkBit's calls mean; that is client.py's.
"""

from __future__ import annotations

import email.utils
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import httpx
import msgspec
import trio

from dfud.api import UNDECODABLE, ConfigError, PeerError, StoreError
from dfud_hawkbit.answers import address_untrusted, decode_error_untrusted, decode_untrusted
from dfud_hawkbit.config import HawkbitConfig

T = TypeVar("T")
QUOTA = "hawkbit.server.error.quota."
ANSWER_MAX_BYTES = 16 << 20
SILENT_S = 2.0  # a request that waits longer than this is shown as not answered
EXPECTED = {"GET": (200,), "POST": (200, 201), "PUT": (200, 201, 204), "DELETE": (200, 204)}
# What says of an action or a target that it is over or gone: a proxy's page must not be taken for that.
_GONE = (404, 405, 410)


class Away(StoreError):
    """hawkBit cannot be asked now; asking again later is right. retry_after_s: what it said itself, or 0.

    everywhere: nothing else can be asked either; else it may be this one request that it stumbles over.
    """

    def __init__(self, message: str, retry_after_s: float = 0.0, *, everywhere: bool = True) -> None:
        super().__init__(message, retryable=True)
        self.retry_after_s = retry_after_s
        self.everywhere = everywhere


class Refused(StoreError):
    """hawkBit understood and said no; the same request would be refused again."""

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    @property
    def quota(self) -> bool:
        return self.code.startswith(QUOTA)


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes
    date_s: float  # hawkBit's own clock, 0 if it did not say

    def read(self, kind: type[T], what: str) -> T:
        found: T = peer(decode_untrusted, self.body, kind, what)
        return found


def peer(decode: Any, *arguments: Any) -> Any:
    """Call a decoder; what hawkBit says wrongly is hawkBit being away: it may be a proxy's page."""
    try:
        return decode(*arguments)
    except PeerError as error:
        raise Away(str(error), everywhere=False) from None


class Answering:
    """When hawkBit answered last, and since when it has not. Any answer counts, also one that says no."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._waiting = 0
        self.answered_s = 0.0
        self.since_s = 0.0  # when the first request was sent that has had no answer; 0: none

    @contextmanager
    def asked(self) -> Iterator[Callable[[], None]]:
        """Wrap one request; call what is yielded when its answer begins."""
        self._waiting += 1
        self.since_s = self.since_s or self._now()

        def answered() -> None:
            self.answered_s = self._now()
            self.since_s = self.answered_s if self._waiting > 1 else 0.0

        try:
            yield answered
        finally:
            self._waiting -= 1

    def silent_s(self) -> float:
        """Return for how long hawkBit has not answered; 0 for less than SILENT_S."""
        found = self._now() - self.since_s if self.since_s else 0.0
        return found if found > SILENT_S else 0.0


class Http:
    """Raises Away and Refused, nothing else but cancellation. `requests` counts by kind of call."""

    def __init__(self, config: HawkbitConfig, now: Callable[[], float]) -> None:
        self._config = config
        self._limiter = trio.CapacityLimiter(config.connections)
        self._client: httpx.AsyncClient | None = None
        self.answering = Answering(now)
        self.requests: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Be usable within. Raises ConfigError for a CA file that cannot be read."""
        config = self._config
        verify: ssl.SSLContext | bool = True
        if config.ca_file:
            try:
                verify = ssl.create_default_context(cafile=config.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(f"[store.hawkbit] ca_file {config.ca_file}: {error}") from error
        # Downloads have connections of their own, so that they keep nothing else waiting.
        limits = httpx.Limits(max_connections=2 * config.connections, max_keepalive_connections=config.connections)
        async with httpx.AsyncClient(
            base_url=config.url.rstrip("/"), timeout=config.timeout_s, verify=verify, limits=limits, trust_env=False
        ) as client:
            self._client = client
            yield

    async def send(
        self,
        kind: str,
        method: str,
        path: str,
        headers: dict[str, str],
        *,
        expect: Collection[int] = (),
        unhurried: bool = False,
        **options: Any,
    ) -> Answer:
        """Send one request; only the statuses that are expected count as done.

        It has `timeout_s` for all of it, however slowly the answer trickles. unhurried: that for each part of it.
        """
        headers = {"accept": "application/hal+json, application/json", **headers}
        timeout_s = self._config.timeout_s
        async with self._limiter:
            self.requests[kind] += 1
            with trio.move_on_after(float("inf") if unhurried else timeout_s):
                async with self._stream(kind, method, path, headers=headers, **options) as answer:
                    body = await self._body(answer)
                    self._check(kind, method, answer, body, expect)
                    return Answer(answer.status_code, body, _date(answer.headers))
        self.failures["unreachable"] += 1
        raise Away(f"hawkBit at {self._config.url} did not answer {kind} within {timeout_s:g} s")

    async def load(self, kind: str, path: str, **options: Any) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of what a GET gives, as they come."""
        self.requests[kind] += 1
        async with self._stream(kind, "GET", path, **options) as answer:
            if answer.status_code != 200:
                self._check(kind, "GET", answer, await self._body(answer), ())
            async for data in answer.aiter_bytes(1 << 16):
                yield data

    @asynccontextmanager
    async def _stream(self, kind: str, method: str, path: str, **options: Any) -> AsyncIterator[httpx.Response]:
        if self._client is None:
            raise Away("hawkBit is not being talked to yet")
        try:
            with self.answering.asked() as answered:
                async with self._client.stream(method, path, **options) as answer:
                    answered()
                    yield answer
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self.failures["unreachable"] += 1
            name = type(error).__name__
            raise Away(f"hawkBit at {self._config.url} cannot be reached for {kind}: {name}") from None

    async def _body(self, answer: httpx.Response) -> bytes:
        found = bytearray()
        async for data in answer.aiter_bytes():
            found += data
            if len(found) > ANSWER_MAX_BYTES:
                raise Away(f"hawkBit answers more than {ANSWER_MAX_BYTES} bytes", everywhere=False)
        return bytes(found)

    def _check(self, kind: str, method: str, answer: httpx.Response, body: bytes, expect: Collection[int]) -> None:
        """Raise for every status that is not expected."""
        status, headers = answer.status_code, answer.headers
        if status in (expect or EXPECTED[method]):
            return
        code, message = decode_error_untrusted(body) if status >= 400 else ("", "")
        self.failures[code or str(status)] += 1
        if status < 400:
            raise self._stranger(kind, method, status, headers, expect)
        if status == 401 or (status == 403 and not code):
            which = "gateway_token_file" if kind.startswith("ddi") else "user or password_file"
            raise Away(f"hawkBit does not accept [store.hawkbit] {which} (HTTP {status})")
        if status in _GONE and not code and body and not _is_object(body):
            what = headers.get("content-type", "no content type")[:60]
            raise Away(
                f"{status} to {kind} came with {what}, expected hawkBit's JSON: not its answer", everywhere=False
            )
        # A quota says so by its code and stays; without one it is the limiter of requests, and passes.
        if status in (408, 409, 423, 425) and not code:
            raise Away(f"hawkBit answered {status} to {kind}", everywhere=False)
        limited = status == 429 and not code.startswith(QUOTA)
        if status >= 500 or limited or code.endswith(".concurrentModification"):
            said = f"hawkBit answered {status} {code} to {kind}".replace("  ", " ")
            raise Away(said, _retry_after(headers), everywhere=limited or status in (502, 503, 504))
        raise Refused(f"hawkBit refused {kind}: {message or code or f'HTTP {status}'}", status, code)

    def _stranger(self, kind: str, method: str, status: int, headers: httpx.Headers, expect: Collection[int]) -> Away:
        """Return what an answer amounts to that hawkBit never gives: something in front of it gave it."""
        wanted = " or ".join(str(one) for one in (expect or EXPECTED[method]))
        place = address_untrusted(headers.get("location", ""))
        to = f" to {place.scheme}://{place.hostname or ''}{place.path[:80]}" if place.hostname else ""
        return Away(
            f"{kind} was answered {status}{to}, expected {wanted}: something else answers at {self._config.url} "
            "(a proxy, a login page); check [store.hawkbit] url",
            everywhere=status >= 300,
        )


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(body), dict)
    except UNDECODABLE:
        return False


def _date(headers: httpx.Headers) -> float:
    try:
        return email.utils.parsedate_to_datetime(headers.get("date", "")).timestamp()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _retry_after(headers: httpx.Headers) -> float:
    text = headers.get("retry-after", "")
    return min(float(text[:9]), 3600.0) if text.isascii() and text.isdigit() else 0.0
