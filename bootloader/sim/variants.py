"""Bootloaders with a known bug in them, to see that the exploration finds it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPILED = ROOT.parent / "build" / "bootloader" / "elf"
# name: file, what stands in it (once), what stands there instead
VARIANTS = {
    "state in a single sector": (
        "core/log.c",
        "        if (!turn || dfu_blank",
        "        if (log->size == 32 && turn) { sector = found.place / DFU_SECTOR; base = log->offset + sector * DFU_SECTOR; }\n"
        "        if (!turn || dfu_blank",
    ),
    "an install that is begun only once": (
        "core/boot.c",
        "    error = dfu_install_stage(b);\n",
        "    s->phase = DFU_CONFIRMED;\n    dfu_state_append(b);\n    error = dfu_install_stage(b);\n",
    ),
    "an install that trusts what is written": (
        "core/install.c",
        "        if (memcmp(there, data + done, n))\n            return 1;\n",
        "        (void)data;\n        return there[0] == 0xff;\n",
    ),
    "a counter that is written late": (
        "core/boot.c",
        "LEFT_CRASHED);\n    keep(b);",
        "LEFT_CRASHED), keep(b);",
    ),
    "a log that erases the newest record where nothing else can be": (
        "core/log.c",
        "turn < log->sectors + (found.any ? 0u : 1u)",
        "turn <= log->sectors",
    ),
    "a log that does not read back": (
        "core/log.c",
        " && !memcmp(b->sector, record, log->size);",
        ";",
    ),
    "a log that writes although a sector cannot be read": (
        "core/log.c",
        "found.unread || (word(p + 4)",
        "(!found.any && word(p + 4)",
    ),
    "a trial whose starts are not counted": (
        "core/boot.c",
        "s->starts = (uint8_t)(used & 127);",
        "s->starts = 0;",
    ),
}


def build(name: str, directory: Path) -> Path:
    """Build the variant's ELF in `directory`, from what is compiled already of the other files. Raises CalledProcessError if it does
    not compile."""
    file, old, new = VARIANTS[name]
    source = directory / "bootloader"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns("__pycache__", "corpus"))
    text = (source / file).read_text()
    if text.count(old) != 1:
        raise ValueError(f"{file} has changed: the variant {name!r} does not apply")
    (source / file).write_text(text.replace(old, new))
    if COMPILED.exists():
        shutil.copytree(COMPILED, directory / "elf")
    elf = directory / "bootloader.elf"
    subprocess.run(["make", "-s", "-C", str(source), f"B={directory}", str(elf)], check=True, capture_output=True)
    return elf
