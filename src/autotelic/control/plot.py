"""A line chart as one small SVG file: no dependency, no script, readable in a light and in a dark page."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Number = float | int
Point = tuple[Number, Number, Number, Number]  # x, y, low, high
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b", "#bcbd22", "#17becf")
LEFT, TOP, WIDTH, HEIGHT = 70, 40, 440, 280


def line_chart(
    series: Mapping[str, Sequence[Point]],
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    truth: Number | None = None,
) -> str:
    """Return the SVG text: one line with interval bars per series, and a dashed line at the truth."""
    points = [point for line in series.values() for point in line]
    xs, ys = sorted({p[0] for p in points}), [p[1] for p in points] + ([truth] if truth is not None else [])
    least, most = max(min(ys), 1e-12), max(*ys, 1e-12)  # a logarithm has no zero
    low_y, high_y = (least * 0.8, most * 1.25) if log_y else (min(0.0, *ys), max(ys) * 1.1)

    def place(value: Number, low: Number, high: Number, log: bool) -> float:
        if log:
            value, low, high = (math.log(max(v, 1e-12)) for v in (value, low, high))
        return (value - low) / (high - low) if high > low else 0.5

    def x_of(x: Number) -> float:
        return LEFT + WIDTH * place(x, xs[0], xs[-1], log_x)

    def y_of(y: Number) -> float:
        return TOP + HEIGHT * (1 - place(min(max(y, low_y), high_y), low_y, high_y, log_y))

    parts = [_text(LEFT, TOP - 16, title, size=14), *_axes(xs, x_of, y_of, low_y, high_y, log_y, x_label, y_label)]
    if truth is not None:
        parts.append(
            f'<path d="M{LEFT} {y_of(truth):.1f}H{LEFT + WIDTH}" stroke="currentColor" stroke-dasharray="5 4"/>'
        )
    for index, (name, line) in enumerate(series.items()):
        parts += _series(name, line, COLORS[index % len(COLORS)], index, x_of, y_of)
    size = f'viewBox="0 0 {LEFT + WIDTH + 190} {TOP + HEIGHT + 60}"'
    style = "svg{color:#222;background:#fff}@media(prefers-color-scheme:dark){svg{color:#ddd;background:#111}}"
    body = "".join(parts)
    root = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">'
    return f"{root}<style>{style}</style>{body}</svg>\n"


def _text(x: Number, y: Number, text: str, size: int = 12, anchor: str = "start", color: str = "currentColor") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'
    )


def _axes(xs, x_of, y_of, low: Number, high: Number, log_y: bool, x_label: str, y_label: str) -> list[str]:
    parts = [f'<path d="M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}" fill="none" stroke="currentColor"/>']
    parts += [_text(x_of(x), TOP + HEIGHT + 18, f"{x:g}", anchor="middle") for x in xs]
    for share in (0, 0.25, 0.5, 0.75, 1):
        tick = low * (high / low) ** share if log_y else low + share * (high - low)
        parts.append(_text(LEFT - 6, y_of(tick) + 4, f"{tick:.2g}", anchor="end"))
    parts.append(_text(LEFT + WIDTH / 2, TOP + HEIGHT + 40, x_label, anchor="middle"))
    return [*parts, _text(LEFT, TOP - 2, y_label, size=11)]


def _series(name: str, line: Sequence[Point], color: str, index: int, x_of, y_of) -> list[str]:
    path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y, _, _ in line)
    parts = [f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>']
    for x, y, low, high in line:
        parts.append(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{color}"/>')
        if high > low:
            parts.append(f'<path d="M{x_of(x):.1f} {y_of(low):.1f}V{y_of(high):.1f}" stroke="{color}"/>')
    return [*parts, _text(LEFT + WIDTH + 14, TOP + 14 + 18 * index, name, color=color)]
