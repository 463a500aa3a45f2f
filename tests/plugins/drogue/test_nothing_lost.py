"""What a device was told is taken is in the log, whatever ends the process."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import httpx
import trio

from dfud.testing.daemon import DaemonProcess

ANSWERED = 300
SENDERS = 24


async def test_no_event_that_was_answered_is_lost_over_a_kill(nursery: trio.Nursery, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    extra = f'[events.log]\npath = "{log}"\nmax_bytes = 16384\nkeep = 1000\n'
    daemon = DaemonProcess(tmp_path / "dfud", extra=extra, plugins=("local", "http", "drogue"))
    await daemon.init()
    await nursery.start(daemon.run)
    async with daemon.client() as client:
        base = "/api/registry/v1alpha1/apps"
        assert (await client.post(base, json={"metadata": {"name": "app1"}})).status_code == 201
        spec = {"authentication": {"credentials": [{"pass": "hey"}]}}
        device = {"metadata": {"name": "dev1", "application": "app1"}, "spec": spec}
        assert (await client.post(f"{base}/app1/devices", json=device)).status_code == 201
    answered: set[str] = set()
    sent: set[str] = set()

    async def publish(sender: int) -> None:
        async with httpx.AsyncClient(base_url=daemon.urls["http"], auth=("dev1@app1", "hey"), timeout=60) as client:
            for number in range(10_000):
                body = f'"{sender}-{number}"'
                sent.add(body)
                try:
                    answer = await client.post("/v1/t", content=body)
                except httpx.TransportError:
                    return
                assert answer.status_code == 202
                answered.add(body)
                if len(answered) == ANSWERED:
                    daemon.signal(signal.SIGKILL)

    async with trio.open_nursery() as senders:
        for sender in range(SENDERS):
            senders.start_soon(publish, sender)
    lines = [line for file in tmp_path.glob("events.jsonl*") for line in file.read_bytes().splitlines()]
    kept = [json.dumps(json.loads(line)["data"]) for line in lines]
    assert answered <= set(kept) <= sent
    assert len(answered) >= ANSWERED
    assert len(kept) == len(set(kept)), "none is there twice"
    assert len(list(tmp_path.glob("events.jsonl.*"))) > 1, "files were put aside meanwhile"

    # The power may go within a line; what comes after it is whole.
    torn = lines[0][:200]
    log.write_bytes(torn)
    await nursery.start(daemon.run)
    async with httpx.AsyncClient(base_url=daemon.urls["http"], auth=("dev1@app1", "hey"), timeout=60) as client:
        assert (await client.post("/v1/t", content=b'"after"')).status_code == 202
    first, last = log.read_bytes().splitlines()
    assert first == torn
    assert json.loads(last)["data"] == "after"
    nursery.cancel_scope.cancel()
