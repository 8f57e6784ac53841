"""Charts as inline SVG: bars and steps. Colours are the page's CSS classes; texts are escaped here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 860
_ROW = 22
_LABEL = 250
_VALUE = 120


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: `detail` shows when the pointer rests on it; `low` and `high` are an interval's whiskers."""

    label: str
    value: float
    shown: str
    detail: str = ""
    style: str = "a"  # one of the CSS classes a, b, c, ...
    low: float | None = None
    high: float | None = None


def bars(items: Sequence[Bar]) -> str:
    """Horizontal bars under each other, to one scale."""
    longest = max((max(b.value, b.high or 0.0) for b in items), default=0.0) or 1.0
    room = WIDTH - _LABEL - _VALUE
    parts = [_open(len(items) * _ROW)]
    for i, b in enumerate(items):
        y = i * _ROW
        length = room * b.value / longest
        parts.append(f"<g><title>{escape(b.detail or f'{b.label}: {b.shown}')}</title>")
        parts.append(
            f'<text class="label" x="{_LABEL - 10}" y="{y + 15}">{escape(_cut(b.label))}</text>'
        )
        parts.append(
            f'<rect class="{b.style}" x="{_LABEL}" y="{y + 4}" width="{length:.1f}" height="14" rx="2"/>'
        )
        if b.low is not None and b.high is not None:
            x0, x1 = (_LABEL + room * v / longest for v in (b.low, b.high))
            line = f"M{x0:.1f} {y + 7}v8M{x0:.1f} {y + 11}H{x1:.1f}M{x1:.1f} {y + 7}v8"
            parts.append(f'<path class="whisker" d="{line}"/>')
        end = _LABEL + max(length, room * (b.high or 0.0) / longest)
        parts.append(
            f'<text class="value" x="{end + 8:.1f}" y="{y + 15}">{escape(b.shown)}</text></g>'
        )
    return "".join([*parts, "</svg>"])


def steps(points: Sequence[tuple[str, float]], shown: Callable[[float], str]) -> str:
    """A filled step line over equally spaced points, its peak marked; each point tells its name."""
    if not points:
        return ""
    height, top = 170, 24
    highest = max(v for _, v in points) or 1.0
    width = WIDTH / len(points)
    scaled = [top + (height - top) * (1 - v / highest) for _, v in points]
    outline = f"M0 {height}" + "".join(
        f"V{y:.1f}H{(i + 1) * width:.2f}" for i, y in enumerate(scaled)
    )
    at = max(range(len(points)), key=lambda i: points[i][1])
    x = (at + 0.5) * width
    anchor = "start" if x < WIDTH / 3 else "end" if x > 2 * WIDTH / 3 else "middle"
    parts = [_open(height), f'<path class="area" d="{outline}V{height}Z"/>']
    parts.append(
        f'<text class="peak" x="{x:.1f}" y="{top - 8}" text-anchor="{anchor}">'
        f"{escape(shown(points[at][1]))} at {escape(_cut(points[at][0], 60))}</text>"
    )
    for i, (name, value) in enumerate(points):
        parts.append(
            f'<rect class="probe" x="{i * width:.2f}" y="0" width="{width:.2f}" height="{height}">'
            f"<title>{escape(name)}: {escape(shown(value))}</title></rect>"
        )
    return "".join([*parts, "</svg>"])


def spark(counts: Sequence[int], span: tuple[float, float], marks: tuple[float, float]) -> str:
    """A small histogram of `counts` over `span`, logarithmic, with lines at `marks` that lie inside."""
    width, height = 160.0, 28.0
    highest = math.log1p(max(counts, default=0)) or 1.0
    step = width / max(len(counts), 1)
    outline = f"M0 {height:g}" + "".join(
        f"V{height * (1 - math.log1p(c) / highest):.1f}H{(i + 1) * step:.1f}"
        for i, c in enumerate(counts)
    )
    parts = [f'<svg class="spark" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">']
    parts.append(f'<path class="area" d="{outline}V{height:g}Z"/>')
    low, high = span
    for mark in marks:
        if high > low and low <= mark <= high:
            x = width * (mark - low) / (high - low)
            parts.append(f'<path class="whisker" d="M{x:.1f} 0v{height:g}"/>')
    return "".join([*parts, "</svg>"])


def _open(height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {max(height, 1)}" role="img">'


def _cut(text: str, limit: int = 36) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}…{text[-limit // 2 :]}"
