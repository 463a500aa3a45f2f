"""Whether a conformance test catches what is broken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio

from dfud.api import DfudError


def faults_of(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from faults_of(one)
    else:
        yield error


async def catches(
    test: Callable[..., Awaitable[None]], *arguments: Any, also: tuple[type[BaseException], ...] = ()
) -> bool:
    """Run one test; say whether it failed, for a reason that what is tested can be at fault for. also: more such reasons."""
    try:
        await test(*arguments)
    except (Exception, BaseExceptionGroup, pytest.fail.Exception) as error:
        kinds: tuple[Any, ...] = (
            AssertionError,
            DfudError,
            trio.TooSlowError,
            IndexError,
            KeyError,
            pytest.fail.Exception,
        )
        assert any(isinstance(one, (*kinds, *also)) for one in faults_of(error)), repr(error)  # noqa: PT017
        return True
    return False
