"""Updates over CoAP: the real agent on real MicroPython, the real daemon, and a link that loses, repeats and reorders."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from devicefw.sim.board import Board
from devicefw.sim.flash import partition
from dfud.testing.link import FaultyUdpLink
from tests.e2e.fleet import APP, Fleet, firmware, fleet
from tests.e2e.test_agent import signed, trailer, write_keys
from tests.package.test_build import code
from tests.parts import require

OLD = firmware("good", "1.0")
NEW = firmware("good", "1.1", code=code(60_000, 5))
SECURITY = ["oscore", "plain"]


async def prepared(f: Fleet, security: str, *, link: FaultyUdpLink | None = None, **config: object) -> Board:
    """A board that talks CoAP and is behind: through `link`, if there is one."""
    await f.publish(OLD, "1.0")
    await f.publish(NEW, "1.1")
    port = f.daemon.ports["coap"] if link is None else await f.nursery.start(link.run)
    board = await f.board("lamp1", OLD, **{"url": f"coap://127.0.0.1:{port}", "transport": "coap", "ack_timeout_ms": 500, **config})
    if security == "oscore":
        board.config["psk"] = await f.add_psk("lamp1")
        del board.config["secret"]
    return board


def holds(board: Board, slot: int, image: bytes) -> bool:
    offset, _ = partition(f"ota_{slot}")
    return hashlib.sha256(board.flash.read(offset, len(image))).digest() == hashlib.sha256(image).digest()


@pytest.mark.parametrize("security", SECURITY)
async def test_an_update_over_coap(tmp_path: Path, security: str) -> None:
    require("micropython")
    async with fleet(tmp_path, coap="plain = true" if security == "plain" else "") as f:
        board = await prepared(f, security)
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        status = await f.wait("lamp1", "done", timeout_s=60)
        assert (status["current"], status["target"]) == ("1.1", "1.1")
        assert await f.history("lamp1") == ["pending", "notified", "fetching", "written", "trial", "done"]
        assert holds(board, 1, NEW)
        assert board.version_line() == "app: confirmed 1.1"
        assert not [line for line in board.console if line.startswith("dfu:")], "nothing had to be tried again"


async def test_a_signed_update_fits_into_the_same_heap(tmp_path: Path) -> None:
    """Client, OSCORE, decoder and Ed25519 at once: what takes the most RAM."""
    require("micropython")
    key = Ed25519PrivateKey.generate()
    async with fleet(tmp_path, coap="") as f:
        path = f"/api/registry/v1alpha1/apps/{APP}"
        app = (await f.request("GET", path)).json()
        app["spec"]["signing"] = {"mode": "optional", "keys": [base64.b64encode(key.public_key().public_bytes_raw()).decode()]}
        await f.request("PUT", path, json=app)
        board = await prepared(f, "oscore")
        write_keys(board, key.public_key().public_bytes_raw())
        trailer(board, signed(OLD, "1.0", 5, key))
        envelope = base64.b64encode(signed(NEW, "1.2", 6, key)).decode()
        parameters = {"version": "1.2", "hardware": "esp32c3"}
        path = f"/api/dfu/v1/apps/{APP}/firmware"
        await f.request("POST", path, params=parameters, content=NEW, headers={"dfud-manifest": envelope})
        await f.want("lamp1", "1.2")
        f.nursery.start_soon(board.run)
        status = await f.wait("lamp1", "done", timeout_s=60)
        assert status["current"] == "1.2"
        assert board.heap == "110K"
