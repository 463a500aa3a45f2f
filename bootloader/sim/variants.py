"""Bootloaders with a known bug in them, to see that the exploration finds it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
# name: file, what stands in it (once), what stands there instead
VARIANTS = {
    "state in a single sector": (
        "core/log.c",
        "for (uint32_t tries = 0; (at = free_place(b, log, sector)) == DFU_SECTOR; tries++) {",
        "for (uint32_t tries = 0; (at = free_place(b, log, sector)) == DFU_SECTOR; tries++) {\n"
        "        if (log->size == 32) { b->hw->erase(b->hw->ctx, log->offset + sector * DFU_SECTOR); continue; }",
    ),
    "an install that is begun only once": (
        "core/boot.c",
        "    error = dfu_install_stage(b);\n",
        "    s->phase = DFU_CONFIRMED;\n    dfu_state_append(b);\n    error = dfu_install_stage(b);\n",
    ),
    "an install that trusts what is written": (
        "core/install.c",
        "        if (memcmp(there, data + done, n))\n            break;\n",
        "        if (there[0] != 0xff)\n            return DFU_OK;\n        break;\n",
    ),
    "a counter that is written late": (
        "core/boot.c",
        "            s->previous = 0;\n    }\n    dfu_state_append(b);",
        "            s->previous = 0;\n        dfu_state_append(b);\n    }",
    ),
}


def build(name: str, directory: Path) -> Path:
    """Build the variant's ELF in `directory`. Raises CalledProcessError if it does not compile."""
    file, old, new = VARIANTS[name]
    source = directory / "bootloader"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns("__pycache__", "corpus"))
    text = (source / file).read_text()
    if text.count(old) != 1:
        raise ValueError(f"{file} has changed: the variant {name!r} does not apply")
    (source / file).write_text(text.replace(old, new))
    elf = directory / "bootloader.elf"
    subprocess.run(["make", "-s", "-C", str(source), f"B={directory}", str(elf)], check=True, capture_output=True)
    return elf
