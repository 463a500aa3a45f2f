"""The real daemon with [daemon] store = "hawkbit": its user routes, dfuctl, /metrics, kill -9, and no secret in its log."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import httpx
import trio
from dfud_hawkbit.names import target_id

from dfud.testing.daemon import DaemonProcess
from dfud.testing.device import HttpDevice
from tests.plugins.hawkbit.harness import Server, person_at, until, whole_way
from tests.plugins.hawkbit.server import Hawkbit

NEW = b"new image " * 3000


def daemon_at(server: Server, directory: Path) -> DaemonProcess:
    directory.mkdir(parents=True)
    (directory / "password").write_text(server.password)
    (directory / "token").write_text(server.gateway_token)
    extra = f"""
[store.hawkbit]
url = "{server.url}"
tenant = "{server.tenant}"
user = "{server.user}"
password_file = "{directory}/password"
gateway_token_file = "{directory}/token"
poll_s = 0.2
feedback_s = 0.0
retry_s = 0.1
"""
    return DaemonProcess(directory, extra=extra, plugins=("local", "http", "hawkbit"), store="hawkbit")


class Users:
    """The registry's API and dfuctl, with the admin's token."""

    def __init__(self, daemon: DaemonProcess, app: str) -> None:
        self.daemon = daemon
        self.app = app

    async def ask(self, method: str, path: str, **options: Any) -> Any:
        async with self.daemon.client() as client:
            answer = await client.request(method, path, **options)
        assert answer.is_success, answer.text
        return answer.json() if answer.content and "json" in answer.headers["content-type"] else answer.text

    async def dfuctl(self, *arguments: str, text: bool = False) -> str:
        config = self.daemon.directory / "dfuctl.toml"
        config.write_text(
            f'current = "t"\n[contexts.t]\nurl = "{self.daemon.urls["registry"]}"\n'
            f'token = "{self.daemon.token}"\napp = "{self.app}"\n'
        )
        form = [] if text else ["-o", "json"]
        command = [sys.executable, "-m", "dfud.cli", "--config", str(config), *form, *arguments]
        run = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
        assert run.returncode == 0, run.stdout.decode()
        return run.stdout.decode()


async def test_the_daemon_goes_the_whole_way_and_survives_being_killed(hawkbit: Hawkbit, tmp_path: Path) -> None:
    app = f"app-{uuid.uuid4().hex[:10]}"
    target = target_id(app, "d1")
    daemon = daemon_at(hawkbit, tmp_path / "dfud")
    await daemon.init()
    users = Users(daemon, app)
    async with person_at(hawkbit) as person:
        async with trio.open_nursery() as nursery:
            await nursery.start(daemon.run)
            spec = {"signing": {"mode": "optional"}}
            await users.ask("POST", "/api/registry/v1alpha1/apps", json={"metadata": {"name": app}, "spec": spec})
            body = {"metadata": {"name": "d1", "application": app}}
            await users.ask("POST", f"/api/registry/v1alpha1/apps/{app}/devices", json=body)
            secret = (await users.ask("POST", f"/api/dfu/v1/apps/{app}/secret/d1"))["secret"]

            async def known() -> bool:
                found = await person.ask("GET", "/targets", params={"q": f"controllerId=={target}"})
                return bool(found["content"])

            await until("hawkBit knows the device", known)
            action = await person.assign(await person.simple_set("2.0", NEW), target)

            async def wanted() -> bool:
                found = await users.ask("GET", f"/api/registry/v1alpha1/apps/{app}/devices/d1")
                return bool(found["spec"].get("firmware", {}).get("version") == "2.0")

            await until("the device should run it", wanted)
            report = json.loads(await users.dfuctl("hawkbit", "reconcile", "--dry-run"))
            assert (report["devices"], report["rows"]) == (1, [])
            daemon.signal(signal.SIGKILL)
        assert daemon.exit_code == -signal.SIGKILL
        async with trio.open_nursery() as nursery:
            await nursery.start(daemon.run)
            auth = (f"d1@{app}", secret)
            async with httpx.AsyncClient(base_url=daemon.urls["http"], auth=auth, timeout=60) as client:
                device = HttpDevice(client, b"old image" * 100, "1.0")
                await whole_way(device)
            assert device.image == NEW
            await until("the action is finished", lambda: person.finished(target, action))

            async def placed() -> bool:
                # What the model calls the address of whoever asks without naming a device's is the same; so ask what was sent.
                return bool((await person.ask("GET", f"/targets/{target}"))["address"] == "http://127.0.0.1")

            await until("it has the device's address", placed)
            if hawkbit.model is not None:
                assert "127.0.0.1" in hawkbit.model.forwarded
            metrics = await users.ask("GET", "/metrics")
            assert 'dfud_hawkbit_requests_total{kind="mgmt feed"}' in metrics
            assert "dfud_hawkbit_away 0" in metrics
            status = json.loads(await users.dfuctl("hawkbit", "status"))
            assert status["away"] == "" and status["requests"]["ddi feedback"] >= 1
            assert status["answered"].endswith("Z") and status["unansweredSince"] == "" and len(status["owner"]) == 16
            assert "dfud_hawkbit_unanswered_seconds 0" in metrics
            assert "answered last at 20" in await users.dfuctl("hawkbit", "status", text=True)
            assert "0 mended, 0 under way, 0 still differ" in await users.dfuctl("hawkbit", "reconcile", text=True)
            assert json.loads(await users.dfuctl("hawkbit", "take-over", "--yes"))["targets"] == []
            assert "confirm" in await users.dfuctl("hawkbit", "--help")
            nursery.cancel_scope.cancel()
    told = "\n".join(json.dumps(line) for line in daemon.lines)
    assert hawkbit.gateway_token not in told
    assert hawkbit.password == "admin" or hawkbit.password not in told


async def test_users_need_the_role_for_what_they_ask_of_hawkbit(hawkbit: Server, tmp_path: Path) -> None:
    daemon = daemon_at(hawkbit, tmp_path / "dfud")
    await daemon.init()
    users = Users(daemon, "a")
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        await users.ask("POST", "/api/registry/v1alpha1/apps", json={"metadata": {"name": "other"}})
        token = (await users.ask("POST", "/api/tokens/v1alpha1", json={"roles": {"other": "admin"}}))["token"]
        async with daemon.client() as client:
            headers = {"authorization": f"Bearer {token}"}
            for method, path in (
                ("GET", "/api/hawkbit/v1/status"),
                ("POST", "/api/hawkbit/v1/apps/a/reconcile"),
                ("POST", "/api/hawkbit/v1/apps/a/take-over"),
                ("POST", "/api/hawkbit/v1/apps/a/confirm/d1"),
            ):
                answer = await client.request(method, path, headers=headers)
                assert answer.status_code == 403, path
                answer = await client.request(method, path, headers={"authorization": ""})
                assert answer.status_code == 403, path
        nursery.cancel_scope.cancel()
