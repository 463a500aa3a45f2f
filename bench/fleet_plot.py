"""A plot of what bench.fleet has measured: cost over the size of the fleet, both logarithmic, as SVG."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import click

LINES = (
    ("first", "first poll", "#1f77b4"),
    ("again", "unchanged poll", "#2ca02c"),
    ("report", "durable report", "#d62728"),
    ("restarted", "first poll after a restart", "#9467bd"),
    ("woken_us", "parked and told", "#ff7f0e"),
    ("told", "told by its next poll", "#8c564b"),
    ("group", "group update", "#7f7f7f"),
)
WIDTH, HEIGHT, LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 760, 420, 70, 20, 440, 340


def plot(results: list[dict[str, float]]) -> str:
    """Return the SVG; results: of one size each, in the order of their sizes."""
    values = [found[key] for found in results for key, _, _ in LINES if found.get(key)]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    first, last = math.log10(results[0]["size"]), math.log10(results[-1]["size"])

    def x(size: float) -> float:
        return LEFT + (math.log10(size) - first) / max(last - first, 0.1) * PLOT_WIDTH

    def y(value: float) -> float:
        return TOP + (high - math.log10(value)) / max(high - low, 1) * PLOT_HEIGHT

    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            *_axes(results, x, y, low, high),
            *_lines(results, x, y),
            "</svg>\n",
        )
    )


def _axes(results: list[dict[str, float]], x, y, low: int, high: int) -> Iterator[str]:  # type: ignore[no-untyped-def]
    for power in range(low, high + 1):
        at = y(10.0**power)
        yield f'<line x1="{LEFT}" x2="{LEFT + PLOT_WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
        yield f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10**power:,}</text>'
    bottom = TOP + PLOT_HEIGHT
    for found in results:
        yield f'<text x="{x(found["size"]):.1f}" y="{bottom + 18}" text-anchor="middle">{found["size"]:,.0f}</text>'
    yield f'<text x="{LEFT + PLOT_WIDTH / 2}" y="{bottom + 40}" text-anchor="middle">devices of the fleet</text>'
    yield f'<text transform="translate(16 {TOP + PLOT_HEIGHT / 2}) rotate(-90)" text-anchor="middle">CPU us a device</text>'


def _lines(results: list[dict[str, float]], x, y) -> Iterator[str]:  # type: ignore[no-untyped-def]
    for number, (key, title, colour) in enumerate(LINES):
        points = [(x(found["size"]), y(found[key])) for found in results if found.get(key)]
        if not points:
            continue
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for a, b in points:
            yield f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>'
        at = TOP + 14 + 20 * number
        left = LEFT + PLOT_WIDTH + 30
        yield f'<line x1="{left}" x2="{left + 20}" y1="{at}" y2="{at}" stroke="{colour}" stroke-width="2"/>'
        yield f'<text x="{left + 26}" y="{at + 4}">{title}</text>'


@click.command()
@click.argument("measured", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(measured: Path, out: Path) -> None:
    """Plot MEASURED/*.json as OUT."""
    results = [json.loads(path.read_text()) for path in measured.glob("*.json")]
    if not results:
        raise SystemExit(f"{measured} holds no results: run python -m bench.fleet")
    out.write_text(plot(sorted(results, key=lambda found: found["size"])))


if __name__ == "__main__":
    main()
