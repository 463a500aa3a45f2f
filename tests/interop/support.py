"""One real dfud for a whole file of tests that run clients one after the other, and what those tests share."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import trio

from dfud.testing.daemon import DaemonProcess

TOOLS = Path(__file__).parents[2] / "build" / "tools" / "bin"
REGISTRY = "/api/registry/v1alpha1/apps"
PLUGINS = ("local", "http", "drogue")
CLIENT_S = 120.0


def tool(name: str) -> str:
    """Return the path of a client that `make interop` builds; without it the test fails."""
    path = TOOLS / name
    assert path.exists(), f"{name} is not here: make interop builds it"
    return str(path)


class Dfud:
    """A running daemon, seen from outside of trio. `user` is a client of the registry as admin."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.daemon = daemon
        self.registry = daemon.urls["registry"]
        self.http = daemon.urls["http"]
        self.token = daemon.token
        headers = {"authorization": f"Bearer {self.token}"}
        self.user = httpx.Client(base_url=self.registry, headers=headers, timeout=60)

    def app(self, name: str, **spec: Any) -> None:
        body = {"metadata": {"name": name}, "spec": {"signing": {"mode": "optional"}, **spec}}
        answer = self.user.post(REGISTRY, json=body)
        assert answer.status_code == 201, answer.text

    def device(self, app: str, name: str, **spec: Any) -> None:
        spec = {"authentication": {"credentials": [{"pass": "hey"}]}, **spec}
        body = {"metadata": {"name": name, "application": app}, "spec": spec}
        answer = self.user.post(f"{REGISTRY}/{app}/devices", json=body)
        assert answer.status_code == 201, answer.text

    def read(self, app: str, device: str = "") -> dict[str, Any]:
        answer = self.user.get(f"{REGISTRY}/{app}" + (f"/devices/{device}" if device else ""))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def publish(self, app: str, version: str, image: bytes) -> None:
        parameters = {"version": version, "hardware": "board", "kind": "raw"}
        answer = self.user.post(f"/api/dfu/v1/apps/{app}/firmware", params=parameters, content=image)
        assert answer.status_code == 201, answer.text

    def want(self, app: str, device: str, firmware: dict[str, Any]) -> None:
        found = self.read(app, device)
        found["spec"]["firmware"] = firmware
        answer = self.user.put(f"{REGISTRY}/{app}/devices/{device}", json=found)
        assert answer.status_code == 204, answer.text

    def firmware(self, app: str, device: str) -> dict[str, Any]:
        """Return status.firmware."""
        found: dict[str, Any] = self.read(app, device)["status"]["firmware"]
        return found


@contextmanager
def running(directory: Path, extra: str = "") -> Iterator[Dfud]:
    """Run a dfud with the Drogue plugin in a thread of its own trio; its state and configuration are in `directory`."""
    daemon = DaemonProcess(directory, extra=extra, plugins=PLUGINS)
    ready, problem = threading.Event(), []
    token: list[trio.lowlevel.TrioToken] = []
    scope = trio.CancelScope()

    async def serve() -> None:
        token.append(trio.lowlevel.current_trio_token())
        with scope:
            await daemon.init()
            async with trio.open_nursery() as nursery:
                await nursery.start(daemon.run)
                ready.set()

    def thread() -> None:
        try:
            trio.run(serve)
        except BaseException as error:
            problem.append(error)
        finally:
            ready.set()

    worker = threading.Thread(target=thread)
    worker.start()
    try:
        ready.wait()
        assert not problem, problem
        found = Dfud(daemon)
        with found.user:
            yield found
    finally:
        if worker.is_alive():
            token[0].run_sync_soon(scope.cancel)
        worker.join()


class Drg:
    """drg with its own configuration file, logged in unless `login` is False."""

    def __init__(self, dfud: Dfud, directory: Path, *, user: str = "admin", login: bool = True) -> None:
        self._directory = directory
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("DRG")}
        self._environment["DRGCFG"] = str(directory / "drg.yaml")
        if login:
            self("login", dfud.registry, "--access-token", f"{user}:{dfud.token}")

    def __call__(self, *arguments: str, code: int | None = 0, editor: str = "") -> str:
        """Run it and return all it printed; `code` is what it must end with (None: anything but 0)."""
        run = subprocess.run(
            [tool("drg"), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**self._environment, "EDITOR": editor, "VISUAL": editor}, cwd=self._directory, timeout=CLIENT_S,
        )  # fmt: skip
        text = run.stdout.decode()
        assert run.returncode != 0 if code is None else run.returncode == code, f"{arguments}: {run.returncode} {text}"
        return text

