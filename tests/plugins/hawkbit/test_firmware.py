"""Which artifact of a distribution set is ours, and what its metadata says."""

from __future__ import annotations

import pytest
from dfud_hawkbit import answers
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.firmware import Unusable, choose, said_of


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


