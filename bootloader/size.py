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


FREE_BYTES = 512  # for what is still to come


def _instructions(elf: Path) -> list[tuple[str, str]]:
    """Return (mnemonic, operands) of everything in the ELF."""
    command = ["riscv64-unknown-elf-objdump", "-d", "-M", "no-aliases", str(elf)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\s*[0-9a-f]+:\t[0-9a-f ]+\t([a-z0-9.]+)\t?(.*)$", text, re.MULTILINE)


def uses_of_gp(elf: Path) -> int:
    """Return how many instructions name gp. The mask ROM leaves the application's in it, so there may be none."""
    return sum(re.search(r"\bgp\b", operands) is not None for _, operands in _instructions(elf))


def foreign_instructions(elf: Path) -> dict[str, int]:
    """Return the mnemonics that are not RV32IMC, with their number."""
    found: dict[str, int] = {}
    for mnemonic, _ in _instructions(elf):
        if mnemonic.removeprefix("c.").removesuffix("sp").removesuffix("16").removesuffix("4spn") not in BASE:
            found[mnemonic] = found.get(mnemonic, 0) + 1
    return found


def main(binary: Path, elf: Path) -> int:
    size = binary.stat().st_size
    print(
        subprocess.run(["riscv64-unknown-elf-size", str(elf)], capture_output=True, text=True, check=True).stdout,
        end="",
    )
    print(f"{binary.name}: {size} bytes of {LIMIT_BYTES}, {LIMIT_BYTES - size} free")
    foreign, gp = foreign_instructions(elf), uses_of_gp(elf)
    if foreign:
        print(f"not RV32IMC: {foreign}")
    if gp:
        print(f"{gp} instructions use gp, which is not set here")
    return int(size > LIMIT_BYTES or bool(foreign) or gp > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
