"""Updates over IPv6, by an address in brackets; and what a url may not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from devicefw.sim.board import Board
from tests.e2e.fleet import APP, firmware, fleet
from tests.real_parts import ipv6, require


@pytest.mark.parametrize("transport", ["http", "coap"])
async def test_a_device_is_updated_over_ipv6(tmp_path: Path, transport: str) -> None:
    """Over HTTP with a path that says nothing, and a hardware as people write it."""
    require("micropython")
    require("riscv-gcc")
    ipv6()
    new = firmware("good", "1.1")
    host = 'host = "::1"\n'
    async with fleet(tmp_path, extra=host, coap=host) as f:
        url = f.daemon.urls[transport]
        assert url.startswith(f"{transport}://[::1]:"), url
        config: dict[str, Any] = {"url": f"{url}/" if transport == "http" else url, "transport": transport, "hardware": "ESP32-C3"}
        board = await f.board("lamp1", firmware("good", "1.0"), **config)
        if transport == "coap":
            board.config["psk"] = await f.add_psk("lamp1")
        f.nursery.start_soon(board.run)
        await f.publish(new, "1.1")
        await f.want("lamp1", "1.1")
        found = await f.wait("lamp1", "done")
        assert found["actual"]["hardware"] == "esp32c3"
        assert "app: confirmed 1.1" in board.console
        f.nursery.cancel_scope.cancel()


@pytest.mark.parametrize("path", ["/dfud", "//", "?a=b"])
async def test_a_path_in_a_url_is_refused_with_a_sentence(tmp_path: Path, path: str) -> None:
    """On the console, and as what the start failed of: nothing is asked of another place than the url says."""
    require("micropython")
    require("riscv-gcc")
    config = {"url": f"http://[::1]:1{path}", "app": APP, "device": "lamp1", "secret": "s"}
    board = Board(tmp_path, config, image=firmware("good", "1.0"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.run)
        with trio.fail_after(60):
            while not any("an IPv6 host in brackets, and no path" in line for line in board.console):
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
