"""The endpoint on a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.endpoint.world import World, start_world


@pytest.fixture
async def world(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[World]:
    yield await start_world(nursery, tmp_path)
    nursery.cancel_scope.cancel()
