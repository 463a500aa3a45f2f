"""Odd images on the publisher's desk: made by the real tools, named by dfuctl, and helped by what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bootloader.provision import partition_table
from bootloader.sim.images import image
from devicefw.sim.firmware import build
from dfud.package.apply import apply_package
from dfud.package.file import read_package_untrusted
from dfud.wire.manifest import decode_envelope_untrusted
from tests.cli.test_dfuctl import Dfuctl, dfuctl
from tests.real_parts import require

__all__ = ["dfuctl"]
APP, OLD = build("print(1)\n", "1.1"), build("print(0)\n", "1.0")
LIKE = ("--version", "1.1", "--hardware", "ESP32-C3")


def flat(told: str) -> str:
    return " ".join(told.split())


def tool(directory: Path, module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", require("esptool") and module, *arguments], cwd=directory, check=True, capture_output=True)


def merge(directory: Path, name: str, *options: str, app: bytes = APP) -> str:
    (directory / "stage2.bin").write_bytes(image("stage2"))
    (directory / "table.bin").write_bytes(partition_table())
    (directory / "lamp.bin").write_bytes(app)
    at = ("0x0", "stage2.bin", "0x8000", "table.bin", "0x10000", "lamp.bin")
    tool(directory, "esptool", "--chip", "esp32c3", "merge-bin", "-o", name, *options, *at)
    return str(directory / name)


@pytest.mark.parametrize("options", [(), ("--pad-to-size", "4MB")], ids=["merged", "padded-to-the-flash"])
async def test_a_merged_file_is_cut_by_the_printed_command_or_by_app_at(
    dfuctl: Dfuctl, tmp_path: Path, options: tuple[str, ...]
) -> None:
    await dfuctl("app", "create", "lamps", "--unsigned")
    await dfuctl("context", "--app", "lamps")
    whole = merge(tmp_path, "whole.bin", *options)
    told = flat(await dfuctl("firmware", "publish", whole, *LIKE, fails=True))
    found = re.search(r"`(dd [^`]+)`.*--app-at (0x[0-9a-f]+)", told)
    assert found, told
    command = [part.replace("FILE", whole) for part in shlex.split(found[1])]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "app.bin").read_bytes() == APP
    assert f"Published 1.1 for esp32c3, {len(APP)} bytes" in await dfuctl(
        "firmware", "publish", whole, *LIKE, "--app-at", found[2]
    )
    await dfuctl("firmware", "download", "1.1", "-O", str(tmp_path / "back.bin"))
    assert (tmp_path / "back.bin").read_bytes() == APP
    # The very image that the command made: publishing it changes nothing.
    assert "sequence 1." in await dfuctl("firmware", "publish", str(tmp_path / "app.bin"), *LIKE)


async def test_sign_cuts_as_publish_does(dfuctl: Dfuctl, tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("correct horse\n")
    key = ("--key", str(tmp_path / "k.pem"), "--passphrase-file", str(tmp_path / "pass"))
    public = await dfuctl("key", "new", key[1], *key[2:])
    await dfuctl("app", "create", "lamps", "--key", public)
    await dfuctl("context", "--app", "lamps")
    whole = merge(tmp_path, "whole.bin")
    sign = ("sign", whole, *key, *LIKE, "--sequence", "1")
    assert "--app-at 0x10000" in flat(await dfuctl(*sign, fails=True))
    assert not Path(whole + ".manifest").exists()
    assert "give one of them" in flat(await dfuctl(*sign, "--app-at", "0x10000", "--raw", fails=True))
    assert "nothing to cut out at 0x9000: not an ESP image" in flat(await dfuctl(*sign, "--app-at", "0x9000", fails=True))
    assert "the file ends at" in flat(await dfuctl(*sign, "--app-at", str(1 << 80), fails=True))
    assert "such as 0x10000" in flat(await dfuctl(*sign, "--app-at", "ten", code=2))
    assert "no application description" in flat(await dfuctl(*sign, "--app-at", "0", fails=True))
    await dfuctl(*sign, "--app-at", "0x10000")
    manifest = decode_envelope_untrusted(Path(whole + ".manifest").read_bytes())[1]
    assert (manifest.hardware, manifest.size) == ("esp32c3", len(APP))
    told = await dfuctl("firmware", "publish", whole, "--manifest", whole + ".manifest", "--app-at", "65536")
    assert f"Published 1.1 for esp32c3, {len(APP)} bytes" in told


async def test_package_make_cuts_both_files(tmp_path: Path) -> None:
    run, to = Dfuctl(tmp_path), tmp_path / "a.dfup"
    new, old = merge(tmp_path, "new.bin"), merge(tmp_path, "old.bin", app=OLD)
    (tmp_path / "lamp-old.bin").write_bytes(OLD)
    assert "--app-at 0x10000" in flat(await run("package", "make", new, "-o", str(to), fails=True))
    make = ("package", "make", new, "--app-at", "0x10000", "-o", str(to))
    told = flat(await run(*make, "--base", old, fails=True))
    assert "old.bin: not one ESP image" in told and not to.exists()
    assert "give the file with --base" in flat(await run(*make, "--base-app-at", "0x10000", fails=True))
    await run(*make, "--base", old, "--base-app-at", "0x10000")
    assert apply_package(read_package_untrusted(to.read_bytes()), OLD) == APP
    await run("package", "make", new, "--raw", "-o", str(to))
    assert apply_package(read_package_untrusted(to.read_bytes()), None) == Path(new).read_bytes()


async def test_what_other_tools_make_is_named(tmp_path: Path) -> None:
    run = Dfuctl(tmp_path)
    (tmp_path / "pass").write_text("correct horse\n")
    key = ("--key", str(tmp_path / "k.pem"), "--passphrase-file", str(tmp_path / "pass"))
    await run("key", "new", key[1], *key[2:])
    hexed, uf2 = merge(tmp_path, "a.hex", "--format", "hex"), merge(tmp_path, "a.uf2", "--format", "uf2")
    for version in ("1", "2"):
        scheme = ("--scheme", "ecdsa256") if version == "2" else ()
        tool(tmp_path, "espsecure", "generate-signing-key", "--version", version, *scheme, f"s{version}.pem")
        sign = ("--keyfile", f"s{version}.pem", "--output", f"signed{version}.bin", "lamp.bin")
        tool(tmp_path, "espsecure", "sign-data", "--version", version, *sign)
    for file, expected in (
        (hexed, "this is an Intel HEX file; make an image with `objcopy -I ihex -O binary FILE app.bin`, or give --raw"),
        (uf2, "this is a UF2 file; make an image with `uf2conv.py --convert --output app.bin FILE`, or give --raw"),
        (sys.executable, "this is an ELF file; make an image with `esptool --chip CHIP elf2image"),
        (str(tmp_path / "signed1.bin"), f"secure boot signature (version 1) follows at offset {len(APP)}"),
        (str(tmp_path / "signed2.bin"), "secure boot signature block (version 2) follows at offset"),
        (str(tmp_path / "stage2.bin"), "no application description (abcd5432)"),
    ):
        signing = ("--app", "a", "sign", file, *key, *LIKE, "--sequence", "1", "-O", str(tmp_path / "m"))
        told = flat(await run(*signing, fails=True))
        assert expected in told
        assert not (tmp_path / "m").exists()
        cut = re.search(r"`head -c (\d+) FILE > app.bin`", told)
        assert (cut is not None) == ("signature" in expected)
        if cut:
            assert Path(file).read_bytes()[: int(cut[1])] == APP
