"""What an update weighs: dfud's packages beside zstd, xz, zstd --patch-from, bsdiff4, detools and hdiffpatch on pairs of real
images. `make bench-delta`, `make bench-delta PAIRS=directory` for pairs of your own (NAME/old.bin, NAME/new.bin), QUICK=1.

Every result was applied and gave the new image back. Bytes of dfud's packages are all of them: heads of chunks and address table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from bench import rivals
from bench.agent import Speed, speed
from bench.corpus import BUILD, Missing, Pair, given_pairs, made_pairs, own_pair
from bench.instructions import NotInstalled, fits, instructions
from bench.rivals import Result
from dfud.package.file import PackageFile
from dfud.package.table import segments

OURS = tuple(name for name in rivals.TOOLS if name.startswith("dfud"))
GOAL_BSDIFF, GOAL_UNCHUNKED = 4.0, 1.03


class Row(msgspec.Struct, frozen=True):
    """unchunked: our kinds as one frame, without heads; instructions: of the C decoder, for each byte of the image; agent: its
    own decoder's speed on this machine."""

    pair: str
    kind: str
    old_bytes: int
    new_bytes: int
    results: dict[str, Result]
    unchunked: dict[str, int]
    instructions: dict[str, float | None]
    agent: dict[str, Speed]

    @property
    def winner(self) -> str:
        return min(self.results, key=lambda name: self.results[name].bytes)

    @property
    def ours(self) -> str:
        return min((name for name in OURS if name in self.results), key=lambda name: self.results[name].bytes)

    @property
    def of_bsdiff(self) -> float:
        return self.results["bsdiff4"].bytes / self.results[self.ours].bytes

    @property
    def of_unchunked(self) -> float | None:
        whole = self.unchunked.get(self.ours)
        return self.results[self.ours].bytes / whole if whole else None


def measure(pair: Pair, *, count: bool, say: Callable[[str], None] = lambda text: None) -> Row:
    """Run every tool on one pair. Raises RuntimeError that names the tool which fails."""
    results: dict[str, Result] = {}
    executed: dict[str, float | None] = {}
    agents: dict[str, Speed] = {}
    with tempfile.TemporaryDirectory() as temporary:
        paths = old, new, out = [Path(temporary) / name for name in ("old", "new", "out")]
        for path, data in zip(paths[:2], (pair.old, pair.new), strict=True):
            path.write_bytes(data)
        esp = bool(segments(pair.old) and segments(pair.new))
        for tool in rivals.TOOLS:
            if tool == rivals.ONLY_ESP and not esp:
                continue
            say(f"{pair.name}: {tool}")
            results[tool] = rivals.run(tool, old, new, out)
            if tool in OURS:
                package = rivals.package_of(out)
                agents[tool] = speed(package, b"" if package.base_sha256 is None else pair.old)
                if count:
                    executed[tool] = _instructions(package, pair)
    unchunked = {"dfud 1": results["zstd"].bytes, "dfud 2": results["zstd patch"].bytes}
    if esp:
        unchunked[rivals.ONLY_ESP] = rivals.unchunked_mapped(pair.old, pair.new)
    return Row(pair.name, pair.kind, len(pair.old), len(pair.new), results, unchunked, executed, agents)


def _instructions(package: PackageFile, pair: Pair) -> float | None:
    """Return the instructions for each byte of the image; None if the package does not fit the stage, or is not installed."""
    if not fits(package):
        return None
    try:
        return instructions(package, pair.old, pair.new) / len(pair.new)
    except NotInstalled:
        return None


def show_bytes(rows: list[Row], console: Console) -> None:
    table = Table(title="bytes to transfer; * the smallest", box=None, pad_edge=False, header_style="bold")
    for name in ("pair", "image", *rivals.TOOLS, "bsdiff4/ours", "ours/unchunked"):
        table.add_column(name, justify="left" if name == "pair" else "right")
    for row in rows:
        cells = [
            f"{row.results[tool].bytes:,}{'*' if tool == row.winner else ' '}" if tool in row.results else "- "
            for tool in rivals.TOOLS
        ]
        ratio = f"{row.of_unchunked:.3f}" if row.of_unchunked else "-"
        table.add_row(row.pair, f"{row.new_bytes:,}", *cells, f"{row.of_bsdiff:.1f}", ratio)
    console.print(table)


def _costs(rows: list[Row], console: Console) -> None:
    table = Table(title="encoding: seconds / MB of RAM beyond the images", box=None, pad_edge=False, header_style="bold")
    for name in ("pair", *rivals.TOOLS):
        table.add_column(name, justify="left" if name == "pair" else "right")
    for row in rows:
        found = (row.results.get(tool) for tool in rivals.TOOLS)
        table.add_row(row.pair, *(f"{r.seconds:.1f}/{r.ram_bytes >> 20}" if r else "-" for r in found))
    console.print(table)
    if any(row.instructions for row in rows):
        table = Table(title="decoding in C: instructions a byte of the image", box=None, pad_edge=False, header_style="bold")
        for name in ("pair", *OURS):
            table.add_column(name, justify="left" if name == "pair" else "right")
        for row in rows:
            counts = (row.instructions.get(tool) for tool in OURS)
            table.add_row(row.pair, *(f"{one:.0f}" if one else "not from the stage" for one in counts))
        console.print(table)
    table = Table(title="the agent on this machine: MB/s as viper, times as fast as bytecode", box=None, header_style="bold")
    for name in ("pair", *OURS):
        table.add_column(name, justify="left" if name == "pair" else "right")
    for row in rows:
        speeds = (row.agent.get(tool) for tool in OURS)
        table.add_row(row.pair, *(f"{one.viper / 1e6:.1f} {one.viper / one.bytecode:4.1f}x" if one else "-" for one in speeds))
    console.print(table)


def _verdict(rows: list[Row], console: Console) -> None:
    for row in rows:
        how = row.results[row.winner].how
        console.print(f"{row.pair}: {row.winner} ({how}) is the smallest, {row.results[row.winner].bytes:,} bytes")
    ours = sum(row.winner in OURS for row in rows)
    minor = [row for row in rows if row.kind == "line"]
    console.print(f"dfud is the smallest on {ours} of {len(rows)} pairs")
    if minor:
        least = min(row.of_bsdiff for row in minor)
        console.print(f"one changed line: bsdiff4 needs {least:.1f} times as many bytes or more (goal {GOAL_BSDIFF:.0f})")
    ratios = [row.of_unchunked for row in rows if row.of_unchunked]
    if ratios:
        console.print(f"chunks cost a factor of up to {max(ratios):.3f} against one frame (goal {GOAL_UNCHUNKED})")


@click.command()
@click.option("--pairs", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Pairs of your own, not made ones.")
@click.option("--quick", is_flag=True, help="Only the smallest pairs.")
@click.option("--json", "to", type=click.Path(path_type=Path), default=BUILD / "delta.json", help="Results as JSON.")
def main(pairs: Path | None, quick: bool, to: Path) -> None:
    """Compare dfud's packages with other tools'."""
    console = Console(width=200, highlight=False)
    try:
        chosen = given_pairs(pairs) if pairs is not None else [own_pair(), *made_pairs(quick=quick)]
        rows = []
        for pair in chosen:
            with console.status(pair.name) as status:
                rows.append(measure(pair, count=_countable(pair), say=status.update))
    except (Missing, RuntimeError) as error:
        raise click.ClickException(str(error)) from None
    show_bytes(rows, console)
    _costs(rows, console)
    _verdict(rows, console)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(msgspec.json.encode([msgspec.to_builtins(row) | {"winner": row.winner} for row in rows]))


def _countable(pair: Pair) -> bool:
    """Say whether the bootloader's ELF is built, and would boot what it installs: images of the chip."""
    from bootloader.sim.boot import ELF

    return ELF.exists() and pair.old[:1] == pair.new[:1] == b"\xe9"


if __name__ == "__main__":
    main()
