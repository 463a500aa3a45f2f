"""Drogue's Ajour protocol through a whole dfud over CoAP: recorded bytes of its clients, its option numbers, its one Uri-Query."""

from __future__ import annotations

import json
from pathlib import Path

import aiocoap
import cbor2
import trio

from dfud.testing.daemon import DaemonProcess
from tests.plugins.coap.peers import COMMAND, AioClient, dotted, option, request

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "drogue.json").read_text())
AUTH = b"Basic ZGV2MUBhcHAxOmhleS1yb2RuZXk="  # dev1@app1:hey-rodney


async def test_a_drogue_client_is_told_what_it_should_run(nursery: trio.Nursery, tmp_path: Path) -> None:
    daemon = DaemonProcess(
        tmp_path / "dfud",
        plugins=("local", "http", "drogue", "coap"),
        coap="plain = true\n",
    )
    await daemon.init()
    await nursery.start(daemon.run)
    async with daemon.client() as client:
        (await client.post("/api/registry/v1alpha1/apps", json={"metadata": {"name": "app1"}})).raise_for_status()
        body = {
            "metadata": {"name": "dev1", "application": "app1"},
            "spec": {"authentication": {"credentials": [{"pass": "hey-rodney"}]}},
        }
        (await client.post("/api/registry/v1alpha1/apps/app1/devices", json=body)).raise_for_status()
    device = AioClient()
    await device.open()
    status = next(s for s in VECTORS["statuses"] if s["name"] == "first packed")
    message = request(aiocoap.POST, daemon.urls["coap"], ["v1", "dfu"], bytes.fromhex(status["hex"]), auth=AUTH)
    message.opt.content_format = 60
    message.opt.accept = 60
    message.opt.uri_query = ("ct=0&data_schema=urn%3Ax",)
    with trio.fail_after(60):
        answer = await device.ask(message)
    assert (dotted(answer), option(answer, COMMAND)) == ("2.05", b"dfu")
    assert isinstance(cbor2.loads(answer.payload), dict)
    async with daemon.client() as client:
        seen = (await client.get("/api/registry/v1alpha1/apps/app1/devices/dev1")).json()["status"]["firmware"]
    assert status["version"] in json.dumps(seen)
    await device.close()
    nursery.cancel_scope.cancel()
