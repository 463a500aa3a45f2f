"""The hawkBit that the tests run against: what HAWKBIT_URL points at, a process of the jar that HAWKBIT_JAR names, or the model.

HAWKBIT_URL comes with HAWKBIT_USER, HAWKBIT_PASSWORD and HAWKBIT_GATEWAY; its tenant is written to, so give it an empty one.
HAWKBIT_VERSION says which version it is where the jar does not, HAWKBIT_LIMITS=1 that it limits clients to READS requests a second.
"""

from __future__ import annotations

import abc
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx

from dfud.testing.ports import KeptPort
from tests.plugins.hawkbit.model import HawkbitModel
from tests.real_parts import require

STILL_S = 120.0  # a start that logs nothing for so long has failed
ANSWER_S = 60.0
READS = 10  # requests a second that hawkBit takes from one client


class Hawkbit(abc.ABC):
    """url, tenant, user, password, gateway_token; `real` tells whether it is a hawkBit, `version` which one.

    kill() ends it at once and restart() brings it back on the same address with its state: `can_be_killed` tells whether that
    is possible (it is not for a server that HAWKBIT_URL names). `model` is the model, None for a real one.
    """

    real = False
    can_be_killed = True
    limits_clients = True  # to READS requests a second; not known of a server that HAWKBIT_URL names
    model: HawkbitModel | None = None

    def __init__(self) -> None:
        self.tenant = "DEFAULT"
        self.user = "admin"
        self.password = "admin"
        self.gateway_token = "gateway-" + secrets.token_hex(8)
        self.url = ""
        self.version = ""

    @property
    def described(self) -> str:
        return f"a real {self.version or 'one of unknown version'} at {self.url}"

    @abc.abstractmethod
    def start(self) -> None: ...

    @abc.abstractmethod
    def stop(self) -> None: ...

    def kill(self) -> None:
        raise RuntimeError(f"{self.url} is not ours to end: ask can_be_killed")

    def restart(self) -> None:
        raise RuntimeError(f"{self.url} is not ours to end: ask can_be_killed")

    def mgmt(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """One request of the Management API, to set up and to look; path behind /rest/v1."""
        if body is not None:
            options["json"] = body
        url = f"{self.url}/rest/v1{path}"
        return httpx.request(method, url, auth=(self.user, self.password), timeout=ANSWER_S, trust_env=False, **options)

    def ddi(self, method: str, cid: str, path: str = "", body: Any = None, **options: Any) -> httpx.Response:
        """One request of the device interface with the gateway's token."""
        if body is not None:
            options["json"] = body
        headers = {"authorization": f"GatewayToken {self.gateway_token}", **options.pop("headers", {})}
        url = f"{self.url}/{self.tenant}/controller/v1/{cid}{path}"
        return httpx.request(method, url, headers=headers, timeout=ANSWER_S, trust_env=False, **options)

    def configure(self) -> None:
        """Make the tenant accept the gateway's token and each target's own."""
        settings = {
            "authentication.gatewaytoken.enabled": True,
            "authentication.gatewaytoken.key": self.gateway_token,
            "authentication.targettoken.enabled": True,
        }
        answer = self.mgmt("PUT", "/system/configs", settings)
        if answer.status_code >= 300:
            raise RuntimeError(f"hawkBit at {self.url} refuses its settings: {answer.status_code} {answer.text[:300]}")


class ModelHawkbit(Hawkbit):
    described = "the model; no HAWKBIT_URL or HAWKBIT_JAR"

    def __init__(self) -> None:
        super().__init__()
        self.model = HawkbitModel(user=self.user, password=self.password)
        self.version = "model"

    def start(self) -> None:
        assert self.model is not None
        self.model.start()
        self.url = self.model.url
        self.configure()

    def stop(self) -> None:
        self.kill()

    def kill(self) -> None:
        assert self.model is not None
        self.model.kill()

    def restart(self) -> None:
        assert self.model is not None
        self.model.restart()


class RunningHawkbit(Hawkbit):
    """What HAWKBIT_URL points at: not ours to start or to kill."""

    real = True
    can_be_killed = False
    limits_clients = bool(os.environ.get("HAWKBIT_LIMITS"))

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url.rstrip("/")
        self.user = os.environ.get("HAWKBIT_USER", "admin")
        self.password = os.environ.get("HAWKBIT_PASSWORD", "admin")
        self.gateway_token = os.environ.get("HAWKBIT_GATEWAY", self.gateway_token)
        self.version = os.environ.get("HAWKBIT_VERSION", "")

    def start(self) -> None:
        self.configure()

    def stop(self) -> None:
        pass


class JarHawkbit(Hawkbit):
    """A process of the jar that HAWKBIT_JAR names: loopback, a free port, H2 in a file of its own."""

    real = True

    def __init__(self, jar: Path) -> None:
        super().__init__()
        self._jar = jar
        self._java = require("java")
        self._directory = Path(tempfile.mkdtemp(prefix="hawkbit-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._port = KeptPort()
        self.version = os.environ.get("HAWKBIT_VERSION") or jar_version(jar)

    def start(self) -> None:
        self.url = f"http://127.0.0.1:{self._port.number}"
        self.restart()
        self.configure()

    def restart(self) -> None:
        options = {
            "server.address": "127.0.0.1",
            "server.port": self._port.number,
            # Without WRITE_DELAY=0 a kill loses what was acknowledged just before.
            "spring.datasource.url": f"jdbc:h2:file:{self._directory}/db;MODE=LEGACY;WRITE_DELAY=0",
            "org.eclipse.hawkbit.artifact.fs.path": self._directory / "artifacts",
            "hawkbit.controller.minPollingTime": "00:00:01",
            "hawkbit.controller.pollingTime": "00:00:05",
            # Requests of the loopback are never limited, those that name another client (X-Forwarded-For) are.
            "hawkbit.server.security.dos.filter.maxRead": READS,
            "hawkbit.server.security.dos.filter.maxWrite": READS,
            "hawkbit.rollout.scheduler.fixedDelay": 500,
            "hawkbit.autoassign.scheduler.fixedDelay": 500,
            "hawkbit.server.repository.eagerPollPersistence": "true",
            "hawkbit.security.user.admin.tenant": "DEFAULT",
            "hawkbit.security.user.admin.password": "{noop}" + self.password,
            "hawkbit.security.user.admin.roles": "TENANT_ADMIN",
        }
        command = [
            self._java,
            "-Xmx768m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-jar",
            str(self._jar),
            *(f"--{k}={v}" for k, v in options.items()),
        ]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self._wait()

    def _wait(self) -> None:
        """Wait until it answers what every build answers: a login. It has as long as its log grows."""
        log, size, moved_s = self._directory / "log", 0, time.monotonic()
        while time.monotonic() < moved_s + STILL_S:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            try:
                if self.mgmt("GET", "/targets?limit=1").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            if (now := log.stat().st_size) != size:
                size, moved_s = now, time.monotonic()
            time.sleep(0.2)
        tail = log.read_text(errors="replace")[-3000:]
        self.kill()
        raise RuntimeError(f"hawkBit did not start from {self._jar.name}: ended, or silent for {STILL_S:.0f} s:\n{tail}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)


def jar_version(jar: Path) -> str:
    """Return the version that a jar's manifest or its name gives, or ""."""
    with zipfile.ZipFile(jar) as archive:
        manifest = archive.read("META-INF/MANIFEST.MF").decode(errors="replace")
    found = re.search(r"Implementation-Version: *(\d[\w.]*)", manifest)
    found = found if found and found[1] != "0" else re.search(r"(\d+\.\d+\.\d+)", jar.name)
    return found[1] if found else ""


def chosen() -> Hawkbit:
    """Return the hawkBit that the environment chooses, not started."""
    if url := os.environ.get("HAWKBIT_URL"):
        return RunningHawkbit(url)
    if jar := os.environ.get("HAWKBIT_JAR"):
        return JarHawkbit(Path(jar).resolve(strict=True))
    return ModelHawkbit()
