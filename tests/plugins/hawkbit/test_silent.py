"""A hawkBit that takes requests and does not answer them, as a process that is stopped: noticed, told, and got over."""

from __future__ import annotations

from pathlib import Path

import pytest
from dfud_hawkbit.http import Answering
from dfud_hawkbit.routes import silence

from tests.plugins.hawkbit.harness import harness_at, person_at, until, whole_way
from tests.plugins.hawkbit.server import Hawkbit

NEW = b"new image " * 3000


async def test_a_frozen_hawkbit_is_told_with_since_when(hawkbit: Hawkbit, tmp_path: Path) -> None:
    model = hawkbit.model
    if model is None:
        pytest.skip("a real hawkBit does not freeze on request")
    async with harness_at(hawkbit, tmp_path, timeout_s=600.0) as harness, person_at(hawkbit) as person:
        device = await harness.device()
        action = await person.assign(await person.simple_set("2.0", NEW), harness.target())
        await until("it is wanted", lambda: harness.is_wanted("2.0"))
        await harness.quiet()
        answering = harness.store.sync.client.answering
        assert silence(answering) == "" and answering.answered_s > 0
        model.frozen = True
        try:
            # Long before any time-out: what is not answered is not called answered.
            async def told() -> bool:
                return silence(answering).startswith("has not answered for ")

            await until("it is told", told)
            assert harness.store.counters()["dfud_hawkbit_unanswered_seconds"] > 2.0
            assert not harness.store.sync.worker.health.problem
            await whole_way(device)
            assert device.image == NEW, "the device is served"
        finally:
            model.frozen = False
        await until("the action is finished", lambda: person.finished(harness.target(), action))
        assert silence(answering) == ""


async def test_a_request_has_its_time_however_slowly_it_is_answered(hawkbit: Hawkbit, tmp_path: Path) -> None:
    model = hawkbit.model
    if model is None:
        pytest.skip("a real hawkBit does not freeze on request")
    async with harness_at(hawkbit, tmp_path, timeout_s=0.3) as harness:
        await harness.device()
        await harness.quiet()
        health, answering = harness.store.sync.worker.health, harness.store.sync.client.answering
        model.frozen = True
        try:

            async def away() -> bool:
                return "did not answer mgmt feed within 0.3 s" in health.problem

            await until("dfud notices", away)
            asked_s = answering.since_s

            async def longer() -> bool:
                return answering.silent_s() > 2.0

            await until("it lasts", longer)
            assert answering.since_s == asked_s, "each new request does not make it answer anew"
        finally:
            model.frozen = False

        async def here() -> bool:
            return not health.problem and not answering.silent_s()

        await until("it is back", here)


def test_answers_are_counted_from_the_first_question_that_has_none() -> None:
    now_s = 100.0
    answering = Answering(lambda: now_s)
    with answering.asked() as first:
        now_s = 110.0
        assert answering.silent_s() == 10.0
        with answering.asked() as second:
            now_s = 111.0
            second()
        assert (answering.answered_s, answering.silent_s()) == (111.0, 0.0)
        now_s = 120.0
        assert answering.silent_s() == 9.0, "it answered others, and then nobody"
        first()
    assert answering.silent_s() == 0.0
    with answering.asked():
        pass  # the connection is refused
    now_s = 130.0
    assert answering.silent_s() == 10.0
