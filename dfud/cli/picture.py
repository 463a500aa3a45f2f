"""The strip of an image, coloured by where its bytes come from: for a terminal, as PNG, as SVG."""

from __future__ import annotations

import base64
import struct
import zlib
from html import escape

import numpy as np
import numpy.typing as npt
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from dfud.package.report import COPIED, LITERAL, MAPPED, ORIGINS, REPEATED, Report

# Told apart by people who do not see red from green, too: by lightness.
COLOURS = {LITERAL: (213, 94, 0), MAPPED: (240, 190, 40), REPEATED: (0, 114, 178), COPIED: (214, 220, 226)}
GLYPHS = {LITERAL: "#", MAPPED: "=", REPEATED: "-", COPIED: "."}
EXPLAINED = {
    LITERAL: "literal: sent",
    MAPPED: "mapped: copied from the base, addresses changed",
    REPEATED: "repeated: copied from the image itself",
    COPIED: "copied from the base",
}
WIDTH, PIXELS_MAX, SCALE = 256, 1 << 16, 3
ROWS = 12

Pixels = npt.NDArray[np.uint8]


def _shares(origins: Pixels, cells: int) -> npt.NDArray[np.float64]:
    """Return for each cell how much of it has which origin, cells × ORIGINS; the last cells may be empty."""
    edges = np.linspace(0, len(origins), cells + 1).astype(np.int64)
    found = np.zeros((cells, len(ORIGINS)))
    for one in range(len(ORIGINS)):
        sums = np.concatenate([[0], np.cumsum(origins == one)])
        found[:, one] = sums[edges[1:]] - sums[edges[:-1]]
    shares: npt.NDArray[np.float64] = found / np.maximum(1, found.sum(axis=1, keepdims=True))
    return shares


def _mixed(shares: npt.NDArray[np.float64]) -> Pixels:
    """Return cells × RGB. By the root of the share: ten literals in a page of copies are what one looks for."""
    weights = np.sqrt(shares) * np.where(np.arange(len(ORIGINS)) == COPIED, 0.5, 1.0)
    weights /= np.maximum(1e-9, weights.sum(axis=1, keepdims=True))
    return np.asarray(weights @ np.array([COLOURS[one] for one in range(len(ORIGINS))]), np.uint8)


def _raster(origins: Pixels) -> Pixels:
    """Return rows × WIDTH × RGB: the image from left to right, then down."""
    per_pixel = -(-len(origins) // PIXELS_MAX)
    pixels = -(-len(origins) // per_pixel)
    rows = -(-pixels // WIDTH)
    canvas = np.full((rows * WIDTH, 3), 255, np.uint8)
    canvas[:pixels] = _mixed(_shares(origins, pixels))
    return canvas.reshape(rows, WIDTH, 3)


def png(origins: Pixels) -> bytes:
    """Return the strip as a PNG file (RFC 2083: 8-bit RGB, no filter)."""
    pixels = _raster(origins).repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)
    lines[:, 1:] = pixels.reshape(height, -1)
    out = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")):
        out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return out


def svg(origins: Pixels, report: Report, title: str) -> str:
    """Return the strip as SVG, with a legend, and the segments' names beside it where they begin."""
    rows = len(_raster(origins))
    width, height = WIDTH * SCALE, rows * SCALE
    legend = "".join(
        f'<rect x="{10}" y="{height + 44 + 18 * number}" width="12" height="12" fill="rgb{COLOURS[one]}"/>'
        f'<text x="{28}" y="{height + 54 + 18 * number}">{escape(EXPLAINED[one])}</text>'
        for number, one in enumerate(COLOURS)
    )
    labels = "".join(
        f'<text x="{width + 16}" y="{30 + height * part.offset / report.size + 10:.0f}">{escape(part.name)}</text>'
        for part in report.parts
        if part.name not in ("headers", "padding")
    )
    data = base64.b64encode(png(origins)).decode()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 120}" height="{height + 120}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="10" y="18" font-weight="bold">{escape(title)}</text>'
        f'<image x="10" y="30" width="{width}" height="{height}" href="data:image/png;base64,{data}"/>'
        f"{labels}{legend}</svg>\n"
    )


def show(origins: Pixels, console: Console) -> None:
    """Print the strip and its legend; in letters where there are no colours."""
    width = min(console.width, 128)
    cells = min(len(origins), width * ROWS)
    shares = _shares(origins, cells)
    coloured = console.color_system is not None
    text = Text()
    # What is rare is what one looks for: a cell's letter is its first origin that there is anything of.
    firsts = np.argmax(shares > 0, axis=1)
    for number, (rgb, first) in enumerate(zip(_mixed(shares), firsts.tolist(), strict=True)):
        if number and number % width == 0:
            text.append("\n")
        style = Style(bgcolor=Color.from_rgb(*rgb.tolist())) if coloured else Style()
        text.append(" " if coloured else GLYPHS[first], style)
    console.print(text, soft_wrap=True)
    for one, colour in COLOURS.items():
        mark = Text("  ", Style(bgcolor=Color.from_rgb(*colour))) if coloured else Text(GLYPHS[one])
        console.print(Text.assemble(mark, " ", EXPLAINED[one]), soft_wrap=True)
