"""App images: what is in them, what is refused, and what a device reads out of them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from dfud.board.appimage import build, check_size, files_untrusted
from dfud.board.flashmap import LAYOUTS, SIZES, bank_capacity
from dfud.board.software import compiled, march_of, pack
from dfud.cli.main import main
from dfud.errors import PeerError
from tests.board.support import application
from tests.real_parts import require

ROOT = Path(__file__).parents[2]


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    one = build(application(tmp_path / "one"))
    (tmp_path / "other").mkdir()
    # Another place, another order, other times.
    for name in ("lamp.py", "colours.txt", "main.py"):
        shutil.copyfile(tmp_path / "one" / name, tmp_path / "other" / name)
    (tmp_path / "other" / "__pycache__").mkdir()
    (tmp_path / "other" / "__pycache__" / "lamp.pyc").write_bytes(b"x")
    assert build(tmp_path / "other").data == one.data
    assert set(one.files) == {"main.mpy", "lamp.mpy", "colours.txt"} and one.confirms
    assert files_untrusted(one.data) == one.files


def test_build_and_inspect_by_the_command_line(tmp_path: Path) -> None:
    folder, target = application(tmp_path / "app"), tmp_path / "app.img"
    found = CliRunner().invoke(main, ["-o", "json", "app-image", "build", str(folder), "-o", str(target)])
    assert found.exit_code == 0, found.output
    said = json.loads(found.output)
    assert (said["bytes"], said["files"]) == (target.stat().st_size, 3)
    shown = CliRunner().invoke(main, ["app-image", "inspect", str(target)])
    assert "main.mpy" in shown.output and "colours.txt" in shown.output


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import dfu\n\nasync def main():\n    dfu.confirm(\n", "app/main.py, line 5: does not compile: SyntaxError: invalid syntax"),
        ("def main():\n    pass\n", "no `async def main()` in it"),
        (None, "no main.py: expected the folder of an application"),
        ("async def main():\n    pass\n", "warning: nothing in the application calls dfu.confirm()"),
    ],
)
def test_what_is_wrong_with_an_application_is_said(tmp_path: Path, text: str | None, told: str) -> None:
    (tmp_path / "app").mkdir()
    if text is not None:
        (tmp_path / "app" / "main.py").write_text(text)
    found = CliRunner().invoke(main, ["app-image", "build", str(tmp_path / "app"), "-o", str(tmp_path / "app.img")])
    assert told in found.output
    assert found.exit_code == (0 if told.startswith("warning") else 1)


def test_an_image_too_large_for_a_bank_names_what_is_large_and_what_to_do(tmp_path: Path) -> None:
    folder = application(tmp_path / "app")
    (folder / "font.bin").write_bytes(bytes(range(256)) * 400)
    with pytest.raises(PeerError) as found:
        build(folder)
    told = str(found.value)
    assert f"expected at most {bank_capacity('4MB')} for a bank of 4MB (the largest: font.bin 102400" in told
    assert told.endswith("leave files out, or --flash 8MB for boards that have it")
    assert build(folder, "8MB").files["font.bin"] == 102400
    with pytest.raises(PeerError, match="leave files out$"):
        check_size(2 << 20, "16MB", "app")
    assert [bank_capacity(flash) for flash in SIZES] == sorted(bank_capacity(flash) for flash in LAYOUTS)


def test_machine_code_is_for_the_hardware() -> None:
    text = "import micropython\n@micropython.native\ndef f(x):\n    return x + 1\n"
    assert march_of("esp32c3-board1") == march_of("esp32c6") == "rv32imc"
    assert march_of("esp32") == march_of("esp32s3-box") == "xtensawin"
    found = {march: compiled(text, "f.py", (), march) for march in ("rv32imc", "xtensawin")}
    assert found["rv32imc"] != found["xtensawin"]


def damaged(data: bytes) -> list[bytes]:
    index_end = 6 + int.from_bytes(data[4:6], "little")
    return [b"", data[:5], b"\xe9" + data[1:], data[: index_end - 3], data[:-1], pack({"lamp.mpy": b"x"})]


def test_what_is_no_app_image_is_refused(tmp_path: Path) -> None:
    data = build(application(tmp_path / "app")).data
    for wrong in damaged(data):
        with pytest.raises(PeerError, match="app image"):
            files_untrusted(wrong)
    for at in range(len(data)):
        try:
            files_untrusted(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        except PeerError:
            pass


READ = """
import json, os, sys, vfs
sys.path[:0] = ["DEVICEFW", "DEVICEFW/board"]
from pack import Pack

class Part:
    def __init__(self, data):
        self.data = data
    def readblocks(self, block, buffer, offset=0):
        at = block * 4096 + offset
        assert at + len(buffer) <= len(self.data)
        buffer[:] = self.data[at : at + len(buffer)]

with open("app.img", "rb") as file:
    image = file.read()
vfs.mount(Pack(Part(image + b"\\xff" * (-len(image) % 4096))), "/bank", readonly=True)
sys.path.insert(0, "/bank")
import lamp
lamp.on()
def told(f):
    try:
        return f()
    except OSError as error:
        return error.errno
with open("/bank/page.txt") as file:
    lines = [file.read(3), file.tell(), file.readline(), [line for line in file], file.read()]
with open("/bank/page.txt", "rb") as file:
    raw = [file.seek(-5, 2), len(file.read()), file.seek(0), len(file.read(4)), len(file.readline()), len(file.read())]
with open("/bank/colours.txt") as file:
    count = len(file.readlines())
buffer = bytearray(7)
with open("/bank/sub/x.bin", "rb") as file:
    filled = [file.readinto(buffer), file.readinto(buffer), file.readinto(buffer)]
print(json.dumps([lines, raw, count, filled, sorted(os.listdir("/bank")), os.listdir("/bank/sub"), os.stat("/bank/sub")[0],
    told(lambda: open("/bank/none")), told(lambda: open("/bank/page.txt", "w")), told(lambda: os.remove("/bank/page.txt"))]))
"""


def test_a_device_reads_modules_and_files_out_of_a_bank(tmp_path: Path) -> None:
    micropython = require("micropython")
    folder = application(tmp_path / "app")
    text = "erste Zeile: äöü\nzweite\n\nohne Ende" + "€" * 50
    (folder / "page.txt").write_text(text)
    (folder / "sub").mkdir()
    (folder / "sub" / "x.bin").write_bytes(b"0123456789")
    (tmp_path / "app.img").write_bytes(build(folder).data)
    (tmp_path / "check.py").write_text(READ.replace("DEVICEFW", str(ROOT / "devicefw")))
    run = subprocess.run([micropython, "check.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    first, said = run.stdout.splitlines()
    lines, raw, count, filled, top, below, kind, missing, write, remove = json.loads(said)
    assert first == "app: lamp is on"
    with (folder / "page.txt").open() as file:
        assert lines == [file.read(3), 3, file.readline(), list(file), file.read()]
    size = len(text.encode())
    assert raw == [size - 5, 5, 0, 4, len("erste Zeile: äöü\n".encode()) - 4, size - len("erste Zeile: äöü\n".encode())]
    assert (count, filled) == (100, [7, 3, 0])
    assert top == ["colours.txt", "lamp.mpy", "main.mpy", "page.txt", "sub"] and below == ["x.bin"]
    assert (kind, missing, write, remove) == (0x4000, 2, 30, 30)
