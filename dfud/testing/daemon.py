"""A real dfud process on free ports of the loopback, for end-to-end tests and demonstrations."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import httpx
import trio

from dfud.testing.ports import KeptPort

START_S = 120.0  # on a machine with much else to do
STOP_S = 60.0
SHOWN_LINES = 60
_TRUSTS_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
SHOWN_ONCE = ("secret", "token", "code", "psk")


class DaemonProcess:
    """Owns a directory with dfud.toml and the state. `lines` are its log lines (JSON), newest last.

    `secrets` is what its registry has given away to client()s, and what a test adds; `started` are all that were made, so
    that a test run can search their logs. extra: text behind the section [transport.http]; controller: for [controller];
    coap: for [transport.coap], which needs the plugin. store: by name; store_section: its section; where it is "" and the
    plugin `local` is enabled, [store.local] with a path here. credential_key, packages: files that several share; "": its
    own. may_fail: it may end by itself with an error; else run() raises then, with what dfud said.
    """

    started: ClassVar[list[DaemonProcess]] = []

    def __init__(
        self,
        directory: Path,
        *,
        extra: str = "",
        controller: str = "",
        plugins: tuple[str, ...] = ("local", "http"),
        coap: str = "",
        store: str = "local",
        store_section: str = "",
        credential_key: str = "",
        packages: str = "",
        may_fail: bool = False,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.config = directory / "dfud.toml"
        self._kept = {name: KeptPort() for name in ("http", "registry")}
        self.ports = {"http": self._kept["http"].number, "registry": self._kept["registry"].number, "coap": 0}
        self.urls: dict[str, str] = {}
        self.token = ""
        self.lines: list[dict[str, Any]] = []
        self.exit_code: int | None = None
        self.secrets: set[str] = set()
        self.started.append(self)
        self._plugins = plugins
        self._extra = extra
        self._controller = controller
        self._coap = coap
        self._store = store
        local = f'[store.local]\npath = "{directory}/state"' if "local" in plugins else ""
        self._store_section = store_section or local
        self._key = credential_key or f"{directory}/credential.key"
        self._packages = packages or f"{directory}/packages"
        self._may_fail = may_fail
        self._signalled = False
        self._ready = False
        self._process: trio.Process | None = None

    def write_config(self) -> None:
        """Write dfud.toml; it comes back on its ports after a restart."""
        coap = f"[transport.coap]\nport = {self.ports['coap']}\n{self._coap}" if "coap" in self._plugins else ""
        self.config.write_text(
            f"""
[daemon]
store = "{self._store}"
log_format = "json"
log_level = "debug"
drain_s = 5.0
[plugins]
enabled = {json.dumps(list(self._plugins))}
{self._store_section}
[controller]
packages_path = "{self._packages}"
progress_s = 0.2
{self._controller}
[endpoint]
credential_key = "{self._key}"
[registry]
port = {self.ports["registry"]}
{coap}
[transport.http]
port = {self.ports["http"]}
{self._extra}
"""
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "dfud.daemon", *arguments, "--config", str(self.config)]

    async def init(self) -> str:
        """Run `dfud init` and return the first admin token."""
        self.write_config()
        run = await trio.run_process(self.command("init"), capture_stdout=True, capture_stderr=True, check=False)
        if run.returncode:
            raise RuntimeError(f"dfud init ended with {run.returncode}: {run.stderr.decode('utf-8', 'replace')}")
        self.token = run.stdout.decode().strip() or self.token
        self.secrets.add(self.token)
        return self.token

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start dfud, report started when it is ready, run until it ends or this is cancelled (then SIGTERM).

        Raises RuntimeError with what it said if it does not become ready, or ends with an error that nobody asked for.
        """
        self.write_config()
        self.exit_code, self._signalled, self._ready = None, False, False
        before = len(self.lines)  # what an earlier process said does not count
        process = await trio.lowlevel.open_process(
            self.command("run"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._process = process
        try:
            await self._read(process, task_status, before)
            self.exit_code = await process.wait()
        finally:
            by_itself = process.returncode is not None and not self._signalled
            with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_S):
                if process.returncode is None:
                    process.terminate()
                    await process.wait()
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
            self.exit_code = process.returncode
            # Also where the test was cancelled, or has failed since nobody answered: this is why.
            if by_itself and self.exit_code and not self._may_fail and self._ready:
                how = f"ended with exit code {self.exit_code}"
                raise RuntimeError(f"dfud in {self.directory} {how}; it said:\n{self.said(before)}")

    async def _read(self, process: trio.Process, task_status: trio.TaskStatus[None], before: int) -> None:
        assert process.stderr is not None
        rest = b""
        with trio.CancelScope(deadline=trio.current_time() + START_S) as starting:
            async with process.stderr:
                while data := await process.stderr.receive_some(65536):
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self._hear(line)
                    if not self._ready and any(told.get("event") == "ready" for told in self.lines[before:]):
                        self._ready = True
                        starting.deadline = float("inf")
                        task_status.started()
        if rest:
            self._hear(rest)
        if not self._ready:
            with trio.move_on_after(5):
                await process.wait()
            raise RuntimeError(self._no_start(process.returncode, before, starting.cancelled_caught))

    def _no_start(self, code: int | None, before: int, late: bool) -> str:
        """Say why it did not start, in its own words."""
        how = f"was not ready within {START_S:.0f} s" if late else f"ended with exit code {code} before it was ready"
        return f"dfud in {self.directory} {how}; it said:\n{self.said(before)}"

    def said(self, since: int = 0) -> str:
        """Return the last SHOWN_LINES of its log for people, from line number `since` on."""
        return "\n".join(_shown(line) for line in self.lines[since:][-SHOWN_LINES:]) or "nothing"

    def _hear(self, line: bytes) -> None:
        try:
            told = json.loads(line)
        except ValueError:
            told = {"event": line.decode("utf-8", "replace")}
        self.lines.append(told)
        url = told.get("url", "")
        if url:
            name = told.get("transport", "registry")
            self.urls[name] = url
            if name in self.ports:
                self.ports[name] = int(url.rpartition(":")[2])

    def kill(self) -> None:
        """End the process as `kill -9` does."""
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self._process is not None
        self._signalled = True
        self._process.send_signal(number)

    def client(self) -> httpx.AsyncClient:
        """Return a client of the registry with the admin token."""
        headers = {"authorization": f"Bearer {self.token}"}
        hooks = {"response": [self._remember]}
        # Without the public authorities, which take 25 ms to read: it serves plain HTTP, on the loopback.
        return httpx.AsyncClient(
            base_url=self.urls["registry"], headers=headers, timeout=60, event_hooks=hooks, verify=_TRUSTS_NOBODY
        )

    async def _remember(self, answer: httpx.Response) -> None:
        """Keep the secrets of an answer: those that the registry shows once."""
        if answer.request.method != "POST" or answer.headers.get("content-type") != "application/json":
            return
        await answer.aread()
        found = answer.json()
        if isinstance(found, dict) and answer.is_success:
            shown = [found, *(one for one in found.get("results", ()) if isinstance(one, dict))]
            self.secrets |= {str(one[key]) for one in shown for key in SHOWN_ONCE if key in one}


def _shown(line: dict[str, Any]) -> str:
    """Return a log line for people: its event, the fields that are not on every line, a traceback below."""
    rest = {key: value for key, value in line.items() if key not in ("time", "level", "part", "event", "traceback")}
    head = " ".join(str(line[key]) for key in ("level", "part", "event") if key in line)
    fields = " ".join(f"{key}={value}" for key, value in rest.items())
    return "\n".join(filter(None, (f"  {head} {fields}".rstrip(), line.get("traceback", ""))))
