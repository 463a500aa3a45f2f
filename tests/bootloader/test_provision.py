"""What a factory writes is what bootloader and agent find."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from bootloader.provision import main
from bootloader.sim.images import Flash, application, envelope, image, key, public
from devicefw.sim.flash import PARTITIONS
from tests.bootloader.machine import boot

FIRMWARE = application("factory", 20000)


def provision(tmp_path: Path, *arguments: str, code: int = 0, firmware: bytes = FIRMWARE) -> str:
    (tmp_path / "image").write_bytes(firmware)
    found = CliRunner().invoke(main, [str(tmp_path / "image"), "-O", str(tmp_path / "out"), *arguments])
    assert found.exit_code == code, found.output
    return found.output


def flashed(output: str) -> Flash:
    """Do what the printed command would."""
    flash = Flash()
    for offset, path in re.findall(r"(0x[0-9a-f]+) (\S+)", output.splitlines()[-1]):
        if not path.endswith("bootloader.bin"):
            flash.put(int(offset, 16), Path(path).read_bytes())
    return flash


def test_a_device_with_keys_boots_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "manifest").write_bytes(envelope(FIRMWARE, signer=key(1)))
    text = base64.b64encode(public(key(1))).decode()
    output = provision(tmp_path, "--manifest", str(tmp_path / "manifest"), "--key", text)
    found = boot(flashed(output))
    assert (found.slot, "warning" in found.console) == (0, False)
    output = provision(tmp_path, "--manifest", str(tmp_path / "manifest"), "--development-key", text)
    assert "warning: signed with a development key" in boot(flashed(output)).console


def test_a_device_without_keys_boots_and_warns(tmp_path: Path) -> None:
    found = boot(flashed(provision(tmp_path)))
    assert found.slot == 0
    assert "warning: no key" in found.console


def test_the_partition_table_is_the_agents_map(tmp_path: Path) -> None:
    table = flashed(provision(tmp_path)).read(0x8000, 0xC00)
    rows = [table[i : i + 32] for i in range(0, len(table), 32) if table[i : i + 2] == b"\xaa\x50"]
    found = {
        (r[2], r[3], int.from_bytes(r[4:8], "little"), int.from_bytes(r[8:12], "little"), r[12:28].rstrip(b"\0").decode())
        for r in rows
    }
    assert found == set(PARTITIONS)
    assert table[32 * len(rows) : 32 * len(rows) + 2] == b"\xeb\xeb"


def test_what_would_not_boot_is_not_written(tmp_path: Path) -> None:
    text = base64.b64encode(public(key(1))).decode()
    assert "without a signed --manifest" in provision(tmp_path, "--key", text, code=1)
    (tmp_path / "manifest").write_bytes(envelope(FIRMWARE, signer=key(2)))
    assert provision(tmp_path, "--manifest", str(tmp_path / "manifest"), "--key", text, code=1)
    (tmp_path / "manifest").write_bytes(envelope(FIRMWARE[:-1], signer=key(1)))
    assert "another image" in provision(tmp_path, "--manifest", str(tmp_path / "manifest"), "--key", text, code=1)
    assert "expected the base64" in provision(tmp_path, "--key", "x", code=1)
    assert not (tmp_path / "out").exists()


def test_a_second_stage_bootloader_is_no_image_for_a_slot(tmp_path: Path) -> None:
    other = image("second stage", 9000)
    assert "no application description" in provision(tmp_path, firmware=other, code=1)
    assert not (tmp_path / "out").exists()
    assert boot(flashed(provision(tmp_path, "--raw", firmware=other))).slot == 0
    # What is no ESP image boots nowhere.
    assert "ESP image" in provision(tmp_path, "--raw", firmware=b"no image" * 100, code=1)


@pytest.mark.parametrize("size", [1_765_376, 1_765_392, 1_848_416])
def test_an_image_larger_than_a_slot_is_refused_with_the_numbers(tmp_path: Path, size: int) -> None:
    """1,848,416 bytes: a real build with displays. It reached into the other slot."""
    firmware = application("large", size - 336)
    assert len(firmware) == size
    if size == 1_765_376:
        assert flashed(provision(tmp_path, firmware=firmware)).read(0x1BF000 - 32, 64) == firmware[-32:] + b"\xff" * 32
        return
    told = " ".join(provision(tmp_path, firmware=firmware, code=1).split())
    assert f"{size} bytes, {size - 1_765_376} more than a slot holds: expected at most 1765376" in told
    assert "build a smaller image" in told
    assert not (tmp_path / "out").exists()


def test_the_page_shows_the_command_that_is_printed(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "bootloader.md").read_text()
    (tmp_path / "manifest").write_bytes(envelope(FIRMWARE, signer=key(1)))
    text = base64.b64encode(public(key(1))).decode()
    printed = provision(tmp_path, "--manifest", str(tmp_path / "manifest"), "--key", text).splitlines()[-1]
    (shown,) = re.findall(r"^(esptool [^\n]* write-flash .*?)\n```", page, re.MULTILINE | re.DOTALL)

    def parts(command: str) -> list[str]:
        words = command.replace("\\\n", " ").split()
        return [word if word.startswith("/dev/tty") or "/" not in word else Path(word).name for word in words]

    assert parts(shown) == parts(printed)
