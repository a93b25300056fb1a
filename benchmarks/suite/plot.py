"""Draws the ratios of a run and their targets as an SVG, on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.suite.row import Result

WIDTH, LABEL, LINE = 900, 360, 24
LOWEST, HIGHEST = 0.02, 50.0
GOOD, BAD, NEUTRAL = "#2a7f4f", "#b5482f", "#5a6b7b"


def plot(results: Mapping[str, Sequence[Result]]) -> str:
    """Return the SVG: a bar from the lowest to the highest ratio of each row, its median, and its target."""
    rows = [(f"{title}: {each.row.name}", each) for title, found in results.items() for each in found]
    height = LINE * (len(rows) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for ratio in (0.02, 0.1, 0.5, 1, 3, 10, 50):
        x = _x(ratio)
        stroke = "#888" if ratio == 1 else "#ddd"
        parts.append(f'<line x1="{x:.1f}" y1="{LINE}" x2="{x:.1f}" y2="{height - LINE}" stroke="{stroke}"/>')
        parts.append(f'<text x="{x:.1f}" y="{LINE - 8}" text-anchor="middle" fill="#444">{ratio:g}</text>')
    for number, (label, result) in enumerate(rows):
        parts += _row(label, result, LINE * (number + 1.5))
    parts.append(
        f'<text x="{LABEL}" y="{height - 6}" fill="#444">ours / what it is compared with: lowest, median, '
        "highest; the vertical mark is the target</text></svg>"
    )
    return "\n".join(parts) + "\n"


def _row(label: str, result: Result, y: float) -> list[str]:
    ratios = result.ratios(result.row.ours)
    color = {True: GOOD, False: BAD, None: NEUTRAL}[result.met]
    parts = [
        f'<text x="{LABEL - 10}" y="{y + 4:.1f}" text-anchor="end" fill="#222">{escape(label)}</text>',
        f'<line x1="{_x(ratios[0]):.1f}" y1="{y:.1f}" x2="{_x(ratios[-1]):.1f}" y2="{y:.1f}" stroke="{color}" '
        'stroke-width="5" stroke-linecap="round"/>',
        f'<circle cx="{_x(result.ratio):.1f}" cy="{y:.1f}" r="5" fill="{color}"/>',
    ]
    if result.row.target is not None:
        x = _x(result.row.target)
        parts.append(
            f'<line x1="{x:.1f}" y1="{y - 8:.1f}" x2="{x:.1f}" y2="{y + 8:.1f}" stroke="#222" stroke-width="2"/>'
        )
    return parts


def _x(ratio: float) -> float:
    share = math.log(min(max(ratio, LOWEST), HIGHEST) / LOWEST) / math.log(HIGHEST / LOWEST)
    return LABEL + share * (WIDTH - LABEL - 20)
