"""The wire code agrees with the vectors that every implementation reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dfud.errors import PeerError
from dfud.wire.manifest import decode_envelope_untrusted, encode_manifest, verify
from dfud.wire.messages import (
    decode_command_untrusted,
    decode_status_untrusted,
    encode_command,
    encode_status,
)

VECTORS = Path(__file__).parent.parent / "vectors"
MESSAGES = json.loads((VECTORS / "messages.json").read_text())
MANIFESTS = json.loads((VECTORS / "manifests.json").read_text())


def plain(value: Any) -> Any:
    """The value as the vectors write it."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if hasattr(value, "__struct_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value


@pytest.mark.parametrize("vector", MESSAGES["status"], ids=lambda v: v["name"])
def test_a_status_is_read_and_written_as_its_vector(vector: dict[str, Any]) -> None:
    status = decode_status_untrusted(bytes.fromhex(vector["hex"]))
    assert plain(status) == vector["value"]
    assert encode_status(status).hex() == vector["hex"]


@pytest.mark.parametrize("vector", MESSAGES["command"], ids=lambda v: v["name"])
def test_a_command_is_read_and_written_as_its_vector(vector: dict[str, Any]) -> None:
    command = decode_command_untrusted(bytes.fromhex(vector["hex"]))
    assert plain(command) == vector["value"]
    assert encode_command(command).hex() == vector["hex"]


@pytest.mark.parametrize("vector", MESSAGES["refused_status"], ids=lambda v: v["name"])
def test_a_bad_status_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(PeerError):
        decode_status_untrusted(bytes.fromhex(vector["hex"]))


@pytest.mark.parametrize("vector", MESSAGES["status"] + MESSAGES["command"], ids=lambda v: v["name"])
def test_no_message_is_read_when_it_is_cut_or_has_a_tail(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    decode = decode_status_untrusted if vector in MESSAGES["status"] else decode_command_untrusted
    for length in range(len(data)):
        with pytest.raises(PeerError):
            decode(data[:length])
    with pytest.raises(PeerError):
        decode(data + b"\0")


@pytest.mark.parametrize("vector", MANIFESTS["manifests"], ids=lambda v: v["name"])
def test_a_manifest_and_its_signature_are_read_as_their_vector(vector: dict[str, Any]) -> None:
    key = bytes.fromhex(MANIFESTS["public_key"])
    envelope, manifest = decode_envelope_untrusted(bytes.fromhex(vector["envelope"]))
    assert encode_manifest(manifest).hex() == vector["manifest"]
    assert verify(envelope, [key]) == key
    value = vector["value"]
    assert (manifest.version, manifest.flags) == (value["version"], value["flags"])
    assert manifest.beside == (tuple(value["with"]) if value["with"] else None)
    bare, same = decode_envelope_untrusted(bytes.fromhex(vector["unsigned"]))
    assert same == manifest
    with pytest.raises(PeerError, match="not signed"):
        verify(bare, [key])


@pytest.mark.parametrize("vector", MANIFESTS["refused"], ids=lambda v: v["name"])
def test_a_bad_envelope_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(PeerError):
        verify(decode_envelope_untrusted(bytes.fromhex(vector["hex"]))[0], [bytes.fromhex(MANIFESTS["public_key"])])
