"""DaemonProcess runs dfud on any store, and says what it said when it fails."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import httpx
import pytest
import trio

from dfud.testing.daemon import DaemonProcess
from tests.plugins.documents import blocks, install


def on_the_documents_store(directory: Path, monkeypatch: pytest.MonkeyPatch, code: str = "") -> DaemonProcess:
    install(directory / "site", "dfud_journal", code or blocks("stores.md", "python")[0], "journal = dfud_journal")
    monkeypatch.setenv("PYTHONPATH", str(directory / "site") + os.pathsep + os.environ.get("PYTHONPATH", ""))
    section = f'[store.journal]\npath = "{directory}/journal"'
    return DaemonProcess(directory / "dfud", plugins=("journal", "http"), store="journal", store_section=section)


async def test_without_the_local_store_nothing_of_it_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = on_the_documents_store(tmp_path, monkeypatch)
    await daemon.init()
    assert "[store.local]" not in daemon.config.read_text()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with daemon.client() as user:
            assert (await user.get("/api/registry/v1alpha1/apps")).status_code == 200
        nursery.cancel_scope.cancel()
    assert daemon.exit_code == 0 and not (tmp_path / "dfud" / "state").exists()


async def test_who_does_not_start_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = on_the_documents_store(tmp_path, monkeypatch)
    await daemon.init()
    (tmp_path / "journal" / "journal.jsonl").write_text("not a line of a journal\n[]\n")
    with pytest.raises(RuntimeError, match=r"journal\.jsonl line 1 cannot be read: restore a backup"):
        await daemon.run()


async def test_who_ends_with_an_error_that_nobody_asked_for_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = "os.fsync(self._journal.fileno())\n        except"
    code = blocks("stores.md", "python")[0].replace(written, "raise OSError(5, 'bad disk')\n        except")
    code = code.replace("os.ftruncate(self._journal.fileno(), end)", "raise OSError(5, 'bad disk')")
    assert code.count("bad disk") == 2
    whole = on_the_documents_store(tmp_path, monkeypatch)
    await whole.init()
    (tmp_path / "site" / "dfud_journal.py").write_text(code)
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(whole.run)
            with trio.fail_after(60):
                async with whole.client() as user:
                    with contextlib.suppress(httpx.TransportError):
                        while True:
                            await user.post("/api/registry/v1alpha1/apps", json={"metadata": {"name": "a"}})
                await trio.sleep_forever()
    (error,) = caught.value.exceptions
    assert "ended with exit code 1; it said:" in str(error)
    assert "the journal could not be written, nor taken back" in str(error)


async def test_a_test_that_fails_for_want_of_an_answer_shows_what_dfud_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = on_the_documents_store(tmp_path, monkeypatch)
    await daemon.init()
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(daemon.run)
            assert daemon._process is not None
            daemon._process.kill()  # nobody who asks the kit for it
            await daemon._process.wait()
            raise AssertionError("no answer")
    assert "ended with exit code -9; it said:" in "".join(map(str, caught.value.exceptions))
