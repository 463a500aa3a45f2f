"""The hawkBit store keeps what every store keeps, and says what it cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.store import HawkbitStore
from dfud_local.store import LocalStore

from dfud.api import (
    Capability,
    Change,
    ConfigError,
    DeleteFirmware,
    NotFoundError,
    PutApp,
    PutFirmware,
    RefusedError,
    Store,
    StoreError,
)
from dfud.testing.store import StoreConformance, a_blob, a_firmware, an_app
from tests.plugins.hawkbit.harness import Harness, Server, harness_at
from tests.plugins.local.test_local_store import damage_row


class TestHawkbitStore(StoreConformance):
    @pytest.fixture
    async def store(self, hawkbit: Server, nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Store]:
        harness = Harness(hawkbit, tmp_path, nursery)
        await harness.start()
        yield harness.store
        await harness.stop()

    def new_store(self, directory: Path) -> Store:
        """What was answered is in the records: hawkBit is away all the while."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "password").write_text("secret")
        (directory / "token").write_text("secret")
        config = HawkbitConfig(
            url="http://127.0.0.1:1",
            password_file=str(directory / "password"),
            gateway_token_file=str(directory / "token"),
        )
        store = HawkbitStore(config)
        store.keep_in(LocalStore(directory / "state"))
        return store

    def damage(self, directory: Path, kind: str, name: str) -> None:
        damage_row(directory / "state", kind, name)


async def test_the_name_of_a_deleted_firmware_stays_taken(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness:
        assert Capability.DELETE_FIRMWARE not in harness.store.capabilities
        await harness.publish("1.0", b"image")
        await harness.quiet()
        await harness.firmware.delete(harness.app, "1.0", "test")
        with pytest.raises(RefusedError, match="hawkBit keeps its name"):
            await harness.publish("1.0", b"another")
        await harness.publish("1.1", b"another")


async def test_a_store_without_records_says_so(hawkbit: Server) -> None:
    store = HawkbitStore(HawkbitConfig())
    with pytest.raises(StoreError, match="no records"):
        await store.commit([PutApp(an_app())])


def test_what_is_wrong_with_the_configuration_is_named(tmp_path: Path) -> None:
    for config, message in (
        (HawkbitConfig(url="hawkbit"), "url 'hawkbit': expected http"),
        (HawkbitConfig(password_file=str(tmp_path / "no")), "password_file .*: No such file"),
        (HawkbitConfig(password_file=str(tmp_path)), "password_file .*: Is a directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            HawkbitStore(config).keep_in(HawkbitStore(HawkbitConfig()))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        HawkbitStore(HawkbitConfig(password_file=str(tmp_path / "empty"))).keep_in(HawkbitStore(HawkbitConfig()))


async def test_a_refused_commit_leaves_no_note_for_hawkbit(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness:
        await harness.quiet()
        async with a_blob(harness.store, b"image") as sha256:
            refused: list[Change] = [PutFirmware(a_firmware(sha256, app=harness.app)), DeleteFirmware(harness.app, "9")]
            with pytest.raises(NotFoundError):
                await harness.store.commit(refused)
        assert await harness.records.documents("hawkbit.dirty-firmware") == []
        await harness.quiet()
        assert not harness.store.sync.known.problems
