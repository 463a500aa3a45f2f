"""Updates over CoAP: the real agent on real MicroPython, the real daemon, and a link that loses, repeats and reorders."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import trio

from devicefw.sim.board import Board
from devicefw.sim.flash import partition
from dfud.testing.link import FaultyUdpLink, UdpFaults
from tests.e2e.fleet import Fleet, firmware, fleet
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
