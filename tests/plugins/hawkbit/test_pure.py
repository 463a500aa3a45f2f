"""The plugin's pure parts: names, answers from outside, feedback within hawkBit's quotas, and the list of what is due."""

from __future__ import annotations

import string
from typing import Any

import msgspec
import pytest
import trio
from dfud_hawkbit import answers, desire, feedback
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.firmware import Unusable, choose, said_of
from dfud_hawkbit.names import TARGET_ID_MAX, app_of, quoted, target_id
from dfud_hawkbit.work import Work
from hypothesis import given
from hypothesis import strategies as st

from dfud.api import Actual, Deployment, Device, DeviceView, HistoryEntry, Metadata, PeerError, State

DEVICE = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60)
APP = st.text(string.ascii_lowercase + string.digits + "-.", min_size=1, max_size=63)


@given(APP, DEVICE, APP, DEVICE)
def test_different_devices_are_different_targets_even_where_case_is_ignored(
    app1: str, one: str, app2: str, two: str
) -> None:
    first, second = target_id(app1, one), target_id(app2, two)
    assert (first.lower() == second.lower()) == ((app1, one) == (app2, two))
    assert len(first) <= TARGET_ID_MAX
    assert app_of(first) == app1


@given(APP, st.text(min_size=1, max_size=255))
def test_a_target_is_made_of_what_a_url_and_a_query_take(app: str, device: str) -> None:
    assert set(target_id(app, device)) <= set(string.ascii_letters + string.digits + "_.-:")


@pytest.mark.parametrize(
    ("device", "target"),
    [("lamp1", "a:lamp1"), ("a/b c", "a:a_2fb_20c"), ("..", "a:_2e."), ("x_y", "a:x_5fy")],
)
def test_plain_names_stay_readable(device: str, target: str) -> None:
    assert target_id("a", device) == target


def test_capitals_and_long_names_end_in_a_digest() -> None:
    assert target_id("a", "Lamp1").startswith("a:Lamp1__")
    assert target_id("a", "Lamp1") != target_id("a", "lamp1")
    long = target_id("a" * 63, "ü" * 127)
    assert len(long) == TARGET_ID_MAX and "__" in long


def test_values_of_a_query_are_quoted() -> None:
    assert quoted('1.0 "x"\\;') == '"1.0 \\"x\\"\\\\;"'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["_links", "href", "config", "polling", "sleep", "deployment", "chunks", "content", "id"])
            | st.text(max_size=8),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(st.binary(max_size=200) | JSON.map(msgspec.json.encode))
def test_whatever_hawkbit_sends_is_read_or_refused(body: bytes) -> None:
    """No decoder raises anything but PeerError, and what it gives can be used."""
    for decode in (
        answers.decode_offer_untrusted,
        answers.decode_order_untrusted,
        answers.decode_error_untrusted,
        lambda data: answers.decode_rows_untrusted(data, answers.Action, "rows"),
        lambda data: answers.decode_untrusted(data, list[answers.StoredArtifact], "artifacts"),
        lambda data: answers.decode_untrusted(data, answers.Assigned, "assignment"),
    ):
        try:
            found: Any = decode(body)
        except PeerError:
            continue
        if isinstance(found, answers.Order):
            with pytest.raises(Unusable):
                choose(found, HawkbitConfig())


def offer(**links: str) -> bytes:
    body = {"config": {"polling": {"sleep": "00:05:00"}}, "_links": {k: {"href": v} for k, v in links.items()}}
    return msgspec.json.encode(body)


def test_an_offer_says_what_hawkbit_wants_of_a_device() -> None:
    base = "http://h:1/DEFAULT/controller/v1/a:d"
    update = answers.decode_offer_untrusted(offer(deploymentBase=f"{base}/deploymentBase/7?c=-12", configData=base))
    assert update == answers.Offer("update", 7, "/deploymentBase/7?c=-12", 300.0)
    both = offer(deploymentBase=f"{base}/deploymentBase/8", cancelAction=f"{base}/cancelAction/7")
    assert answers.decode_offer_untrusted(both).kind == "cancel"
    assert answers.decode_offer_untrusted(offer(confirmationBase=f"{base}/confirmationBase/9?c=1")).kind == "confirm"
    assert answers.decode_offer_untrusted(offer(deploymentBase="http://elsewhere/x")).kind == ""


def test_a_row_names_its_target_by_address_and_not_by_name() -> None:
    row = {"id": 3, "active": True, "_links": {"target": {"href": "http://h/rest/v1/targets/a:d%2Bx", "name": "other"}}}
    assert msgspec.convert(row, answers.Action).target == "a:d+x"


def an_order(*chunks: tuple[str, list[str]], **metadata: str) -> answers.Order:
    entries = [answers.Entry(k, v) for k, v in metadata.items()]
    made = [
        answers.Chunk(part, "m", "1.0", entries, [answers.Artifact(f, 1, answers.Hashes("", "ab")) for f in files])
        for part, files in chunks
    ]
    return answers.Order(chunks=made)


def test_our_artifact_is_chosen_by_type_and_file_name() -> None:
    config = HawkbitConfig()
    _, artifact = choose(an_order(("os", ["notes.txt", "lamp.bin"]), ("bApp", ["app.bin"])), config)
    assert artifact.filename == "lamp.bin"
    chunk, _ = choose(an_order(("os", ["a.bin"]), ("bApp", ["b.bin"])), HawkbitConfig(module_type="application"))
    assert chunk.part == "bApp"
    for none in (an_order(), an_order(("bApp", ["x.bin"])), an_order(("os", ["a.bin", "b.bin"]))):
        with pytest.raises(Unusable, match="expected one"):
            choose(none, config)


def test_metadata_says_what_an_image_is_and_a_manifest_alone_counts() -> None:
    config = HawkbitConfig(hardware="esp32s3")
    plain = an_order(("os", ["a.bin"])).chunks[0]
    assert said_of(plain, config) == {"version": "1.0", "hardware": "esp32s3", "sequence": None, "kind": "esp-image"}
    signed = an_order(("os", ["a.bin"]), **{"dfud.manifest": "AAEC", "dfud.hardware": "x"}).chunks[0]
    assert said_of(signed, config)["envelope"] == b"\x00\x01\x02"
    for wrong in ({"dfud.manifest": "%%"}, {"dfud.sequence": "-1"}, {"dfud.sequence": "99999999999"}):
        with pytest.raises(Unusable):
            said_of(an_order(("os", ["a.bin"]), **wrong).chunks[0], config)


@given(st.lists(st.text(max_size=3000), max_size=80))
def test_details_stay_within_hawkbits_quotas(lines: list[str]) -> None:
    found = feedback.details(lines)
    assert len(found) <= 50
    assert all(0 < len(text) <= 512 for text in found)
    if sum(1 + len(line) // 512 for line in lines) <= 50:
        assert "".join("".join(found).split()).replace("-", "") == "".join("".join(lines).split()).replace("-", "")


def a_deployment(state: State, **more: Any) -> Deployment:
    return Deployment("d1", "a", "d", "2.0", "00" * 32, state, 1.0, 1.0, "1.0", chunks_total=10, **more)


def entries(*states: State) -> list[HistoryEntry]:
    return [HistoryEntry("d1", "a", "d", float(n), state, "2.0", "event") for n, state in enumerate(states)]


def test_an_action_is_closed_only_by_the_end_of_its_deployment() -> None:
    for state in State:
        told = feedback.of_deployment(a_deployment(state), entries(state))
        closed = told is not None and told["status"]["execution"] == "closed"
        assert closed == (state in (State.DONE, State.ROLLED_BACK, State.FAILED)), state
        if told is not None:
            finished = told["status"]["result"]["finished"]
            expected = {State.DONE: "success", State.ROLLED_BACK: "failure", State.FAILED: "failure"}
            assert finished == expected.get(state, "none")
            assert "timestamp" not in told


def test_a_rollback_carries_code_and_diagnostics() -> None:
    record = bytes(range(256)) * 3
    d = a_deployment(State.ROLLED_BACK, code=1, text="it crashed", crashes=3, reset_reason=12, record=record)
    told = feedback.of_deployment(d, entries(State.TRIAL, State.ROLLED_BACK))
    assert told["status"]["code"] == 1
    text = "".join(told["status"]["details"])
    assert "it crashed" in text and "crashes: 3, reset reason 12" in text and record.hex() in text
    assert max(len(line) for line in told["status"]["details"]) == 512


def test_attributes_are_cut_to_what_hawkbit_takes() -> None:
    actual = Actual("a", "d", "1.0", "00" * 32, "esp32c3", attributes={f"k{n}": "v" * 200 for n in range(120)})
    found = desire.attributes_of(DeviceView(Device(Metadata("d", "a", labels={"site": "attic"})), actual))
    assert len(found) == 100
    assert found["dfud.version"] == "1.0"
    assert max(len(v) for v in found.values()) == 128
    few = desire.attributes_of(DeviceView(Device(Metadata("d", "a", labels={"site": "attic"})), None))
    assert few == {"label.site": "attic"}


def test_modes_read_as_what_dfud_does() -> None:
    spec = {"firmware": {"version": "1"}, "other": 1}
    assert desire.with_mode(spec, None, "") == {"other": 1}
    assert desire.with_mode(spec, "2", "") == {"other": 1, "firmware": {"version": "2"}}
    assert desire.with_mode(spec, "2", "window")["firmware"]["downloadOnly"] is True
    assert desire.with_mode(spec, "2", "confirm")["firmware"]["hold"] is True


async def test_work_that_changed_under_way_is_not_finished() -> None:
    work = Work()
    work.poke("a", 5.0)
    work.poke("b", 1.0)
    assert work.take(0.0, 9) == []
    assert [key for key, _ in work.take(9.0, 9)] == ["b", "a"]
    ((_, generation),) = work.take(1.0, 9)
    work.hold(["b"])
    assert work.take(9.0, 9) == work.take(9.0, 9) and [k for k, _ in work.take(9.0, 9)] == ["a"]
    work.finish("b", generation)
    work.release({"b": 2.0})
    assert [k for k, _ in work.take(2.0, 9)] == ["b"]
    for _ in range(3):
        work.failed("b", 100.0, 1.0, 3.0)
    assert work.take(102.9, 9) == [(k, g) for k, g in work.take(102.9, 9) if k == "a"]
    assert "b" in [k for k, _ in work.take(103.0, 9)]


async def test_waiting_ends_when_something_is_due(autojump_clock: trio.testing.MockClock) -> None:
    work = Work()
    work.poke("a", 7.0)
    before = trio.current_time()
    await work.wait(0.0)
    assert trio.current_time() - before == 7.0
