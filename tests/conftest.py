"""After each test: its connections are closed, and no secret stands in what the daemons that it started have logged."""

from __future__ import annotations

import base64
import functools
import gc
import json
import os
import re
import signal
import ssl
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

import httpx
import httpx._config
import httpx._transports.default
import pytest
import trio
from hypothesis import HealthCheck, settings

from dfud.api import guard
from dfud.testing.daemon import DaemonProcess
from tests import order, warm

# What is started in the background is born deaf to Ctrl-C, and so are its children; tests send it to processes of theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long making an example takes is no property of the code on a machine that does other things, too.
settings.register_profile("loaded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded")

# What every secret of dfud's own making looks like, wherever it came from: access tokens, claim codes, JWTs, whole headers.
SHAPES = re.compile(
    r"drg_[0-9A-Za-z]{6}_[0-9A-Za-z]{20,}"
    r"|dfc_[0-9A-Za-z]{6}_[0-9A-Za-z]{20,}"
    r"|eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]*"
    r"|(?:Basic|Bearer) +[0-9A-Za-z+/=_.-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


def forms(secret: str) -> set[str]:
    """Return the forms in which a secret travels and lies around."""
    raw = secret.encode()
    encoded = {base64.b64encode(raw).decode().rstrip("="), base64.urlsafe_b64encode(raw).decode().rstrip("=")}
    return {secret, raw.hex(), *encoded}


def leaks(daemon: DaemonProcess) -> list[str]:
    """Return what is secret in a daemon's log, shortened so that it is none any more."""
    told = "\n".join(json.dumps(line, ensure_ascii=False) for line in daemon.lines)
    found = [match[0][:14] + "..." for match in SHAPES.finditer(told)]
    for secret in filter(None, daemon.secrets):
        found += [f"{secret[:3]}... in {len(form)} characters" for form in forms(secret) if form in told]
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cold", action="store_true", help="Start each dfud and dfuctl as a new interpreter (tests/warm.py).")
    parser.addoption("--longest", action="store_true", help="Write tests/longest.txt anew (tests/order.py).")


def _trust_of_all() -> Callable[..., ssl.SSLContext]:
    """Return httpx.create_ssl_context, but with one context for all clients that trust the public authorities.

    Reading those costs 25 ms of CPU for each client, which most tests make for each request, without TLS.
    """
    make = httpx.create_ssl_context

    @functools.cache
    def public(*environment: str | None) -> ssl.SSLContext:
        return make(trust_env=any(environment))

    def create(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
        if verify is True and not cert:
            return public(*(os.environ.get(name) if trust_env else None for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")))
        return make(verify=verify, cert=cert, trust_env=trust_env)

    return create


MEMORY = "/dev/shm"
ROOM_BYTES = 4 << 30  # many times what the tests leave there at one time


def _temporary_in_memory() -> None:
    """Have temporary directories in memory where there is room: a commit costs a tenth there, and nobody waits for the disk. No test
    ends the machine; what is stored survives the ends of processes, which is what they see, in memory as well."""
    if "PYTEST_DEBUG_TEMPROOT" in os.environ or not os.access(MEMORY, os.W_OK | os.X_OK):
        return
    found = os.statvfs(MEMORY)
    if found.f_bavail * found.f_frsize >= ROOM_BYTES and not found.f_flag & os.ST_NOEXEC:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = MEMORY


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(order)
    _temporary_in_memory()
    # Five seconds are not enough on a loaded machine; what a test does not say otherwise ends with the test's own limit.
    for part in ("connect", "read", "write", "pool"):
        setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, part, 120.0)
    httpx._transports.default.create_ssl_context = _trust_of_all()  # type: ignore[attr-defined]  # what its clients call
    if sys.platform == "linux" and not config.getoption("--cold"):
        warm.install()


def pytest_unconfigure() -> None:
    warm.remove()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the collector from what is imported and made here: it is there to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _nothing_contained_by_others() -> None:
    """Let each test count what it has contained itself: the process counts over all of them."""
    guard._faults.clear()


@pytest.fixture(autouse=True)
def _no_secret_in_any_log() -> Iterator[None]:
    DaemonProcess.started.clear()
    yield
    found = {str(daemon.directory): leaks(daemon) for daemon in DaemonProcess.started}
    DaemonProcess.started.clear()
    assert not any(found.values()), f"secrets in a log: {found}"


@pytest.fixture(autouse=True)
def _connections_end_with_their_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a test has left open of the connections that it made: a peer that stays is part of many of them."""
    opened: list[trio.SocketStream] = []
    connect = trio.open_tcp_stream

    async def open_tcp_stream(*given: Any, **options: Any) -> trio.SocketStream:
        stream = await connect(*given, **options)
        opened.append(stream)
        return stream

    monkeypatch.setattr(trio, "open_tcp_stream", open_tcp_stream)
    yield
    for stream in opened:
        if (number := stream.socket.detach()) >= 0:
            os.close(number)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make what a test has logged sayable: workers send it as UTF-8, and odd texts are part of many tests."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    if isinstance(report.longrepr, str):
        report.longrepr = report.longrepr.encode("utf-8", "backslashreplace").decode()
    return report
