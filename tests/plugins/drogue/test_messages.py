"""Ajour's messages: the bytes that real clients sent and accepted, and that nothing malformed gets through as anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dfud_drogue import messages
from dfud_drogue.cbor import SKIPPED, decode_untrusted, encode
from dfud_drogue.messages import Status, Update, decode_status_untrusted
from hypothesis import given
from hypothesis import strategies as st

from dfud.api import PeerError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "drogue.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["statuses"], ids=lambda v: v["name"])
def test_statuses_of_real_clients_are_read(vector: dict[str, Any]) -> None:
    status = decode_status_untrusted(bytes.fromhex(vector["hex"]))
    update = Update(vector["update"].encode(), vector["offset"]) if "update" in vector else None
    assert status == Status(vector["version"].encode(), vector["mtu"], None, update)


@pytest.mark.parametrize("vector", VECTORS["statuses"], ids=lambda v: v["name"])
def test_a_status_that_is_cut_or_has_a_tail_is_refused(vector: dict[str, Any]) -> None:
    whole = bytes.fromhex(vector["hex"])
    for cut in range(len(whole)):
        with pytest.raises(PeerError):
            decode_status_untrusted(whole[:cut])
    with pytest.raises(PeerError, match="behind"):
        decode_status_untrusted(whole + b"\xf6")


def test_commands_are_what_ajour_sent() -> None:
    want = {v["name"]: v["hex"] for v in VECTORS["commands"]}
    assert messages.wait(None, 300).hex() == want["wait 300"]
    assert messages.wait(None, None).hex() == want["wait"]
    assert messages.sync(b"0.1.0", None, None).hex() == want["sync"]
    assert messages.sync(b"0.1.0", 7, 300).hex() == want["sync 300 7"]
    assert messages.write(b"0.1.1", None, 0, b"hello").hex() == want["write"]
    assert messages.swap(b"0.1.1", None, b"\xaa\xbb").hex() == want["swap"]


def test_names_and_numbers_may_be_mixed_in_any_order_and_unknown_keys_are_skipped() -> None:
    body = bytes.fromhex("bf 69736f6d657468696e67 f93c00 03 a201190200 6776657273696f6e4131 00 4130 ff")
    assert decode_status_untrusted(body) == Status(b"0", None, None, Update(b"1", 512))


@pytest.mark.parametrize(
    "body",
    [
        "", "f6", "80", "a0", "a10065302e312e30", "a1005f4130ff", "a20041300041 30", "a2004130676776657273696f6e4130",
        "a20041300120", "a2004130011b0000000100000000", "a2004130 03a10041 31", "a100581e", "ff", "bfff", "a1ff", "1f",
        "a100 4130 03", "9bffffffffffffffff", "bbffffffffffffffff", "5bffffffffffffffff", "81" * 40,
    ],
)  # fmt: skip
def test_what_is_no_status_is_refused(body: str) -> None:
    with pytest.raises(PeerError):
        decode_status_untrusted(bytes.fromhex(body))


@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    for decode in (decode_untrusted, decode_status_untrusted):
        try:
            decode(body)
        except PeerError:
            continue


VALUES = st.recursive(
    st.none() | st.integers(0, (1 << 64) - 1) | st.binary(max_size=300),
    lambda inner: st.dictionaries(st.integers(0, 70_000), inner, max_size=5),
    max_leaves=8,
)


@given(VALUES)
def test_what_is_written_is_read_again(value: Any) -> None:
    assert decode_untrusted(encode(value)) == value


def test_tags_floats_and_indefinite_strings_are_skipped() -> None:
    assert decode_untrusted(bytes.fromhex("84c11a514b67b0fb3ff199999999999a5f4161ff7f6161ff")) == [SKIPPED] * 4
