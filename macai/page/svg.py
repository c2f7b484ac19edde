"""Charts as SVG that takes its colours from the page around it; what is not from here is escaped.

No library: those without JavaScript bring a hundred megabytes, and a report needs three charts.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH = 420
ROW = 40
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 34  # around the area of a chart with axes
HEIGHT = 240


class Bar(NamedTuple):
    """One bar: its words, what it shows, its interval, and where its roofline is."""

    label: str
    text: str
    value: float
    low: float
    high: float
    limit: float | None = None


class Line(NamedTuple):
    """A name, points (x, y), whether they are joined, and whether each is marked all the same."""

    name: str
    points: Sequence[tuple[float, float]]
    joined: bool = True
    dotted: bool = False


def bars(title: str, rows: Sequence[Bar]) -> Markup:
    """Return horizontal bars with the interval as a whisker and a tick where the roofline is."""
    most = max(max(row.high, row.value, row.limit or 0) for row in rows) or 1.0
    scale = (WIDTH - 4) / most
    parts = []
    for number, row in enumerate(rows):
        y = number * ROW
        parts.append(
            Markup(
                '<text x="0" y="{y}" class="label">{label}</text>'
                '<text x="{right}" y="{y}" class="value" text-anchor="end">{text}</text>'
                '<rect x="0" y="{top}" width="{all}" height="10" rx="3" class="track"/>'
                '<rect x="0" y="{top}" width="{width:.1f}" height="10" rx="3" class="bar"/>'
            ).format(
                y=y + 14,
                label=_short(row.label),
                right=WIDTH,
                text=row.text,
                top=y + 20,
                all=WIDTH,
                width=max(1.0, row.value * scale),
            )
        )
        if row.high > row.low:
            parts.append(_whisker(row.low * scale, row.high * scale, y + 25))
        if row.limit:
            parts.append(
                Markup('<path d="M{x:.1f} {a}v16" class="limit"/>').format(
                    x=row.limit * scale, a=y + 17
                )
            )
    said = "; ".join(f"{row.label}: {row.text}" for row in rows)
    return _svg(f"{title}. {said}", WIDTH, len(rows) * ROW, parts)


def lines(
    title: str, series: Sequence[Line], *, x_name: str, y_name: str, logarithmic: bool = False
) -> Markup:
    """Return lines, or dots, over two axes; both logarithmic or both linear with 0 on them."""
    points = [point for line in series for point in line.points]
    x_axis = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT, logarithmic)
    y_axis = _Axis([y for _, y in points], HEIGHT - BOTTOM, TOP, logarithmic)
    parts = [*_grid(x_axis, y_axis), *_names(x_name, y_name)]
    for number, line in enumerate(series):
        places = [(x_axis(x), y_axis(y)) for x, y in line.points]
        if line.joined:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            parts.append(Markup('<path d="M{}" class="line s{}"/>').format(path, number))
        if line.joined and not line.dotted:
            continue
        parts += [
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3.5" class="dot s{}"/>').format(x, y, number)
            for x, y in places
        ]
    return _svg(f"{title}: {x_name}, {y_name}", WIDTH, HEIGHT, parts)


class _Axis:
    """Where a value is, in pixels."""

    def __init__(
        self, values: Sequence[float], begin: float, end: float, logarithmic: bool
    ) -> None:
        self._logarithmic, self._begin, self._end = logarithmic, begin, end
        if logarithmic:
            low, high = math.log10(min(values)), math.log10(max(values))
            self._low = float(math.floor(low))
            self._high = float(max(math.ceil(high), math.floor(low) + 1))
        else:
            self._low = -_round_up(-min(values))
            self._high = _round_up(max(values)) or (0.0 if self._low else 1.0)

    def __call__(self, value: float) -> float:
        place = math.log10(value) if self._logarithmic else value
        share = (place - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)

    @property
    def ticks(self) -> list[float]:
        """Values to name: powers of ten, at most six of them, or quarters of a linear axis."""
        if not self._logarithmic:
            return [self._low + (self._high - self._low) * k / 4 for k in range(5)]
        step = max(1, -(-int(self._high - self._low) // 5))
        return [10.0**k for k in range(int(self._low), int(self._high) + 1, step)]


def _round_up(value: float) -> float:
    """Return the least of 1, 2, 4, 5, 6, 8 and 10 times a power of ten that is not less."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(k * power for k in (1, 2, 4, 5, 6, 8, 10, 20) if k * power >= value)


def _grid(x_axis: _Axis, y_axis: _Axis) -> list[Markup]:
    across = Markup(
        '<path d="M{x0} {y:.1f}H{x1}" class="grid"/>'
        '<text x="{x}" y="{below:.1f}" text-anchor="end">{text}</text>'
    )
    down = Markup('<text x="{x:.1f}" y="{y}" text-anchor="middle">{text}</text>')
    found = []
    for tick in y_axis.ticks:
        y = y_axis(tick)
        found.append(
            across.format(x0=LEFT, x1=WIDTH - RIGHT, x=LEFT - 6, y=y, below=y + 4, text=_tick(tick))
        )
    places = [down.format(x=x_axis(t), y=HEIGHT - BOTTOM + 15, text=_tick(t)) for t in x_axis.ticks]
    return found + places


def _names(x_name: str, y_name: str) -> list[Markup]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [
        Markup('<text x="{}" y="{}" text-anchor="middle" class="name">{}</text>').format(
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_name
        ),
        Markup(
            '<text transform="translate(11 {}) rotate(-90)" text-anchor="middle" class="name">{}'
            "</text>"
        ).format(middle, y_name),
    ]


def _tick(value: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{prefix}"
    return f"{value:.3g}"


def _whisker(low: float, high: float, y: float) -> Markup:
    return Markup(
        '<path d="M{a:.1f} {y}H{b:.1f}M{a:.1f} {t}v6M{b:.1f} {t}v6" class="whisker"/>'
    ).format(a=low, b=high, y=y, t=y - 3)


def _short(label: str) -> str:
    return label if len(label) <= 46 else f"{label[:45]}…"


def _svg(said: str, width: int, height: int, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {w} {h}" role="img" aria-label="{said}">{parts}</svg>').format(
        w=width, h=height, said=escape(said), parts=Markup("").join(parts)
    )
