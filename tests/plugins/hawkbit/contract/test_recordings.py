"""The model against what a real hawkBit answered: every recorded request again, every answer the same."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.hawkbit.contract.api import Api, Exchange
from tests.plugins.hawkbit.contract.conftest import RECORDED
from tests.plugins.hawkbit.server import ModelHawkbit

FILES = sorted(RECORDED.glob("*.json"))
# Scenarios that no real hawkBit has been recorded with yet; what the model does there was read in hawkBit's source at 1.0.4.
# They run against a real one as all the others do (HAWKBIT_URL, HAWKBIT_JAR), and HAWKBIT_RECORD=1 takes them off this list.
READ_IN_SOURCE = {
    "test_a_message_that_holds_a_tag_is_refused_with_all_of_its_feedback": "ValidStringValidator, RestConfiguration",
    "test_a_cancel_is_answered_without_tags_too": "ValidStringValidator, JpaControllerManagement",
    "test_a_poll_tells_the_address_of_the_device_that_it_is_for": "IpUtil",
    "test_attributes_that_the_management_asks_for_are_asked_of_the_device": "MgmtTargetResource, DataConversionHelper",
    "test_a_target_keeps_the_description_that_it_is_given": "MgmtTargetResource",
}
WAIT_S = 60.0
LIMIT_BYTES = 300_000


@pytest.mark.parametrize("path", FILES, ids=[path.stem.removeprefix("test_") for path in FILES])
def test_the_model_answers_as_was_recorded(path: Path) -> None:
    recorded = json.loads(path.read_text())
    server = ModelHawkbit()
    server.start()
    api = Api(server)
    try:
        for number, kept in enumerate(recorded["exchanges"]):
            said = _again(api, kept)
            assert server.model is not None
            assert not server.model.unknown, server.model.unknown
            assert not server.model.errors, server.model.errors
            where = f"{path.name} [{number}] {kept['request']['method']} {kept['request']['path']}"
            assert not (found := differences(kept, said.as_json())), f"{where}:\n" + "\n".join(found)
    finally:
        api.client.close()
        server.stop()


def _again(api: Api, kept: dict[str, Any]) -> Exchange:
    limit = time.monotonic() + WAIT_S
    while True:
        said = api.replay(kept)
        if not kept.get("until") or not differences(kept, said.as_json()) or time.monotonic() > limit:
            return said
        api.exchanges.pop()
        time.sleep(0.01)


def differences(wanted: Any, found: Any, where: str = "") -> list[str]:
    """Return where two answers differ. Of an error its code is compared, not what it tells people and Java."""
    if where.endswith(".by") and (f"{wanted} {found}".count("system")):
        return []  # when hawkBit's scheduler came last differs from run to run
    if isinstance(wanted, dict) and isinstance(found, dict):
        out = []
        if "errorCode" in wanted and "errorCode" in found:
            wanted, found = {"errorCode": wanted["errorCode"]}, {"errorCode": found["errorCode"]}
        for key in sorted({*wanted, *found} - {"until", "request", "times"}):
            if key not in wanted or key not in found:
                who = "the model" if key in found else "hawkBit"
                out.append(f"{where}.{key}: only {who} has it: {(found if key in found else wanted)[key]}")
            else:
                out += differences(wanted[key], found[key], f"{where}.{key}")
        return out
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [
            line
            for n, pair in enumerate(zip(wanted, found, strict=True))
            for line in differences(*pair, f"{where}[{n}]")
        ]
    return [] if wanted == found else [f"{where}: hawkBit {wanted!r}, the model {found!r}"]


def test_every_scenario_of_the_suite_is_recorded_and_nothing_else() -> None:
    scenarios = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        if path.name != Path(__file__).name:
            text = path.read_text()
            scenarios |= set(re.findall(r"^def (test_\w+)\(", text, re.MULTILINE))
    recorded = {path.stem for path in FILES}
    assert recorded.isdisjoint(READ_IN_SOURCE), "recorded by now: take it off the list"
    assert recorded | set(READ_IN_SOURCE) == scenarios


def test_recordings_are_small_and_say_nothing_of_where_they_were_made() -> None:
    texts = {path.name: path.read_text() for path in FILES}
    assert sum(len(text) for text in texts.values()) < LIMIT_BYTES
    for name, text in texts.items():
        assert re.match(r'\{"server":"hawkBit \d+\.\d+\.\d+"', text), name
        assert not re.search(
            r"127\.0\.0\.1:\d|localhost|GatewayToken \w|gateway-[0-9a-f]{16}|[^0-9a-f][0-9a-f]{32}\"",
            re.sub(r'"(?:md5|sha1|sha256)":"\w+"|"etag":"[^,}]*"', "", text),
        ), name
