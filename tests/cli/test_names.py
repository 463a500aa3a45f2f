"""Names that lead elsewhere, and what was called so before there were rules."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest
import trio
from dfud_local.store import LocalStore
from hypothesis import given, settings
from hypothesis import strategies as st

from devicefw.sim.firmware import build
from dfud.api import Actual, Bus, PutActual, PutApp, PutDevice, PutDocument
from dfud.errors import PeerError
from dfud.model.names import Kind, check_name, path_of
from dfud.model.text import hidden
from dfud.testing.daemon import DaemonProcess
from dfud.testing.store import a_device, an_app
from tests.cli.test_dfuctl import Dfuctl, dfuctl

__all__ = ["dfuctl"]
CLIENT = httpx.Client(base_url="http://127.0.0.1:1/behind/a/proxy")


@settings(deadline=None)
@given(st.lists(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("./%?#")), min_size=1), min_size=1))
def test_every_name_keeps_its_place_in_a_path(names: list[str]) -> None:
    path = CLIENT.build_request("DELETE", path_of("/api/apps", *names)).url.raw_path.decode()
    parts = path.split("/")
    assert [unquote(part) for part in parts] == ["", "behind", "a", "proxy", "api", "apps", *names]
    assert not {".", ".."} & {*parts}


def test_an_empty_name_has_no_place() -> None:
    with pytest.raises(PeerError, match="a name is empty"):
        path_of("/api/apps", "lamps", "")


@settings(deadline=None)
@given(st.sampled_from(["device", "version"]), st.text(st.one_of(st.characters(), st.sampled_from("./")), max_size=20))
def test_an_accepted_name_survives_a_proxy_that_decodes_and_folds(kind: Kind, name: str) -> None:
    try:
        check_name(kind, name)
    except PeerError:
        return
    folded = httpx.URL("http://h" + unquote(path_of("/api/apps", name)).replace("?", "%3F").replace("#", "%23"))
    assert folded.path == "/api/apps/" + name


async def test_what_leads_elsewhere_deletes_nothing(dfuctl: Dfuctl) -> None:
    await dfuctl("app", "create", "lamps", "--unsigned")
    await dfuctl("context", "--app", "lamps")
    await dfuctl("device", "create", "lamp1")
    for name in ("..", ".", "../../lamps", "lamp1/..", "a/../lamp1", "%2e%2e", " lamp1"):
        told = await dfuctl("device", "delete", "--yes", name, fails=True)
        assert told.startswith("dfuctl: no device"), told
    assert "a name is empty" in await dfuctl("device", "delete", "--yes", "", fails=True)
    for kind in ("app", "firmware", "token"):
        await dfuctl(kind, "delete", "--yes", "..", fails=True)
    assert [one["metadata"]["name"] for one in json.loads(await dfuctl("-o", "json", "device", "list"))] == ["lamp1"]
    refused: tuple[tuple[str, ...], ...] = (
        ("device", "create", ".."),
        ("device", "create", "a\x1b[31m"),
        ("device", "create", "u\u0308"),
        ("claim", "create", "--device", ".."),
        ("token", "create", "--user", "a\u202eb"),
        ("device", "label", "lamp1", "site=\x9b1m"),
        ("app", "create", ".."),
        ("firmware", "publish", __file__, "--version", "1.1/..", "--hardware", "esp32c3"),
        ("sign", __file__, "--key", "x", "--version", "..", "--hardware", "c3", "--sequence", "1"),
    )
    for arguments in refused:
        told = await dfuctl(*arguments, fails=True)
        assert "expected" in told and len(told.splitlines()) == 1, told


@pytest.mark.parametrize("version", ["release/1.2", "a/image", "1.2 beta?#%2F"])
async def test_a_version_may_hold_what_paths_do_not(dfuctl: Dfuctl, version: str) -> None:
    await dfuctl("app", "create", "lamps", "--unsigned")
    await dfuctl("context", "--app", "lamps")
    await dfuctl("device", "create", "hall/3")
    image = build("print(1)\n", "1.2")
    dfuctl.config.with_name("lamp.bin").write_bytes(image)
    await dfuctl("firmware", "publish", str(dfuctl.config.with_name("lamp.bin")), "--version", version, "--hardware", "esp32c3")
    assert json.loads(await dfuctl("firmware", "show", version))["version"] == version
    copy = dfuctl.config.with_name("copy.bin")
    await dfuctl("firmware", "download", version, "-O", str(copy))
    assert copy.read_bytes() == image
    assert await dfuctl("update", "hall/3", version) == f"hall/3 should run {version}."
    assert f"hall/3: ? -> {version}: " in await dfuctl("status", "hall/3")
    await dfuctl("device", "delete", "--yes", "hall/3")
    await dfuctl("firmware", "delete", "--yes", version)
    assert json.loads(await dfuctl("-o", "json", "firmware", "list")) == []


async def test_a_deletion_is_asked_for(dfuctl: Dfuctl) -> None:
    await dfuctl("app", "create", "lamps", "--unsigned")
    await dfuctl("context", "--app", "lamps")
    await dfuctl("device", "create", "lamp1")
    for arguments in (
        ("device", "delete", "lamp1"),
        ("app", "delete", "lamps"),
        ("firmware", "delete", "1.1"),
        ("token", "delete", "drg_abcdef"),
        ("claim", "delete", "abcdef"),
    ):
        told = await dfuctl(*arguments, fails=True, given="y\n")
        assert "There is no terminal to ask at: give --yes to mean it" in told
    assert "lamp1" in await dfuctl("device", "list")
    await dfuctl("device", "delete", "-y", "lamp1")
    assert "lamp1" not in await dfuctl("device", "list")
    await dfuctl("app", "delete", "--yes", "lamps")
    assert "lamps" not in await dfuctl("app", "list")


OLD = ("..", ".", "a/../b", "u\u0308", "a\x1b]0;x\x07", "[/bold]", " x", "a/", "hall/3")
MANY = 1203
ENTRIES = 1300


async def test_what_was_called_so_before_is_shown_and_deleted(nursery: trio.Nursery, tmp_path: Path) -> None:
    """A store with names and labels of before; more devices and audit entries than a list gives at once."""
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    store = LocalStore(tmp_path / "dfud" / "state")
    async with trio.open_nursery() as writing:
        await writing.start(store.run, Bus())
        await store.commit([PutApp(an_app("lamps"))])
        devices = [*OLD, *(f"lamp{number:04}" for number in range(MANY - len(OLD)))]
        await store.commit([PutDevice(a_device(name, "lamps", site="a\x1bb")) for name in devices])
        actual = Actual("lamps", "hall/3", "[/bold]\x1b[31m\u202e", "00" * 32, "esp32c3", seen_s=1.0)
        await store.commit([PutActual(actual)])
        at = int((time.time() - 40 * 86400) * 1e6)
        entry = '{"atS": 1, "by": "somebody", "what": "old", "target": "%s"}'
        for first in range(0, ENTRIES, 100):
            await store.commit(
                [PutDocument("audit", f"{at + n:020d}-{n:08x}", (entry % n).encode()) for n in range(first, first + 100)]
            )
        writing.cancel_scope.cancel()
    await nursery.start(daemon.run)
    dfuctl = Dfuctl(tmp_path)
    await dfuctl("login", daemon.urls["registry"], "--token", "-", given=daemon.token)
    await dfuctl("context", "--app", "lamps")

    told = await dfuctl("device", "list")
    assert len(told.splitlines()) == MANY + 1, "all, not the first thousand"
    assert not [c for c in told if hidden(c) and c != "\n"]
    assert r"[/bold]\x1b[31m\u202e" in told and r"a\x1b]0;x\x07" in told
    assert len((await dfuctl("device", "list", "--limit", "1002", "--offset", "1")).splitlines()) == 1003
    assert len(json.loads(await dfuctl("-o", "json", "device", "list"))) == MANY

    entries = json.loads(await dfuctl("-o", "json", "audit", "--what", "old"))
    assert [e["target"] for e in entries] == [str(n) for n in range(ENTRIES - 200, ENTRIES)], "the newest, the newest last"
    after = await dfuctl("-o", "json", "audit", "--what", "old", "--after", entries[0]["key"], "--limit", "3")
    assert [e["target"] for e in json.loads(after)] == [str(ENTRIES - 200 + n) for n in (1, 2, 3)]

    for name in OLD:
        assert json.loads(await dfuctl("device", "show", name))["metadata"]["name"] == name
        await dfuctl("device", "label", name, "ring=1")
        await dfuctl("update", name, "1.1", fails=True)
        await dfuctl("status", name)
        await dfuctl("device", "delete", "--yes", name)
    left = json.loads(await dfuctl("-o", "json", "device", "list"))
    assert len(left) == MANY - len(OLD), "each was deleted, and nothing else"
    nursery.cancel_scope.cancel()
