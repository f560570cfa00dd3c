"""Plots as SVG text, of two kinds: bars with their range, and lines. No library, no colours but those named here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import log10

_COLOURS = ("#1f6f8b", "#c8553d", "#588157", "#6d597a", "#b08900")
_WIDTH, _ROW, _LEFT, _TOP, _RIGHT = 760, 26, 250, 46, 90
_HEIGHT, _BOTTOM = 320, 46
Spread = Mapping[str, float]
Points = Sequence[tuple[float, float]]


def bars(title: str, rows: Sequence[tuple[str, Spread]]) -> str:
    """A horizontal bar a row for its ``median``, with a whisker from ``min`` to ``max``. The axis begins at 0, unless
    the rows are more than a hundredfold apart: then it is logarithmic, begins at 1, and the title says so."""
    most = max((spread["max"] for _, spread in rows), default=0) or 1.0
    logarithmic = bool(rows) and most > 100 * min(spread["median"] for _, spread in rows) > 0
    across = _WIDTH - _LEFT - _RIGHT

    def reach(value: float) -> float:
        return across * (log10(max(value, 1.0)) / log10(most) if logarithmic else value / most)

    parts = [_text(10, 24, title + (" (logarithmic)" if logarithmic else ""), weight="bold")]
    for at, (name, spread) in enumerate(rows):
        y = _TOP + at * _ROW
        parts += [
            _text(_LEFT - 8, y + 13, name, anchor="end"),
            f'<rect x="{_LEFT}" y="{y}" width="{reach(spread["median"]):.1f}" height="16" fill="{_COLOURS[0]}"/>',
            _line(_LEFT + reach(spread["min"]), y + 8, _LEFT + reach(spread["max"]), y + 8, "#222"),
            _text(_LEFT + reach(spread["max"]) + 6, y + 13, f"{spread['median']:,.1f}"),
        ]
    return _svg(_TOP + len(rows) * _ROW + 12, parts)


def lines(title: str, series: Mapping[str, Points], x_title: str) -> str:
    """A line for each of ``series``; both axes span what there is, the vertical one from 0."""
    points = [point for line in series.values() for point in line]
    x_least, x_most = min((x for x, _ in points), default=0.0), max((x for x, _ in points), default=1.0)
    y_most = max((y for _, y in points), default=0) or 1.0
    left, across, down = 80, _WIDTH - 100, _HEIGHT - _TOP - _BOTTOM
    x_span = (x_most - x_least) or 1.0

    def place(x: float, y: float) -> str:
        return f"{left + (x - x_least) / x_span * across:.1f},{_TOP + down - y / y_most * down:.1f}"

    parts = [
        _text(10, 24, title, weight="bold"),
        _line(left, _TOP, left, _TOP + down, "#222"),
        _line(left, _TOP + down, left + across, _TOP + down, "#222"),
        _text(left - 6, _TOP + 10, f"{y_most:,.0f}", anchor="end"),
        _text(left - 6, _TOP + down, "0", anchor="end"),
        _text(left, _HEIGHT - 26, f"{x_least:,.0f}"),
        _text(left + across, _HEIGHT - 26, f"{x_most:,.0f} {x_title}", anchor="end"),
    ]
    for at, (name, line) in enumerate(series.items()):
        colour = _COLOURS[at % len(_COLOURS)]
        path = " ".join(place(x, y) for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(_text(left + at * 150, _HEIGHT - 8, name, colour=colour))
    return _svg(_HEIGHT, parts)


def _svg(height: int, parts: Sequence[str]) -> str:
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    background = f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>'
    body = "\n".join([background, *parts])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n{body}\n</svg>\n'


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", colour: str = "#222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">'
        f"{escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
