"""Print where the bootloader's bytes go; fail if it does not fit or holds an instruction that the chip does not have."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

LIMIT_BYTES = 0x6000
# RV32IMC with Zicsr and Zifencei. Everything else - atomics, floating point - the chip would trap on.
BASE = (
    "lui auipc jal jalr j jr ret call tail beq bne blt bge bltu bgeu beqz bnez blez bgez bltz bgtz bgt ble bgtu bleu "
    "lb lh lw lbu lhu sb sh sw addi slti sltiu xori ori andi slli srli srai add sub sll slt sltu xor srl sra or and "
    "fence fence.i ecall ebreak csrrw csrrs csrrc csrrwi csrrsi csrrci csrr csrw csrs csrc csrwi csrsi csrci rdcycle "
    "mul mulh mulhsu mulhu div divu rem remu li mv not neg seqz snez sltz sgtz nop zext.b unimp mret wfi"
).split()


def foreign_instructions(elf: Path, objdump: str = "riscv64-unknown-elf-objdump") -> dict[str, int]:
    """Return the mnemonics that are not RV32IMC, with their number."""
    text = subprocess.run(
        [objdump, "-d", "-M", "no-aliases", str(elf)], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, int] = {}
    for mnemonic in re.findall(r"^\s*[0-9a-f]+:\t[0-9a-f ]+\t([a-z0-9.]+)", text, re.MULTILINE):
        if mnemonic.removeprefix("c.").removesuffix("sp").removesuffix("16").removesuffix("4spn") not in BASE:
            found[mnemonic] = found.get(mnemonic, 0) + 1
    return found


def main(binary: Path, elf: Path) -> int:
    size = binary.stat().st_size
    print(
        subprocess.run(["riscv64-unknown-elf-size", str(elf)], capture_output=True, text=True, check=True).stdout,
        end="",
    )
    print(f"{binary.name}: {size} bytes of {LIMIT_BYTES}")
    foreign = foreign_instructions(elf)
    if foreign:
        print(f"not RV32IMC: {foreign}")
    return int(size > LIMIT_BYTES or bool(foreign))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
