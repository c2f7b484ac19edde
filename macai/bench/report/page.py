"""A report of `macai bench` as one HTML file."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from macai.bench.report.make import summarised
from macai.bench.report.words import SECTIONS, parameters, title
from macai.page import svg
from macai.page.html import Card, render
from macai.page.words import amount, machine_line, scaled

TEMPLATE = Path(__file__).parent / "bench.html.jinja"
HEADLINES = (
    ("generate", "decode", "tokens a second"),
    ("generate", "first token", "to the first token"),
    ("train", "training", "tokens a second in training"),
    ("image", "denoising", "denoising steps a second"),
    ("coreml", "decode", "tokens a second from the package"),
)

Figures = Sequence[dict[str, Any]]


def page(report: Mapping[str, Any]) -> str:
    """Return the page of a report."""
    return render(TEMPLATE, runs=[_run(run) for run in report["runs"]])


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    figures = [summarised(figure) for figure in run["figures"]]
    sections = []
    for name, heading in SECTIONS.items():
        own = [figure for figure in figures if figure["section"] == name]
        if own:
            subjects = ", ".join(dict.fromkeys(f["subject"] for f in own))
            sections.append((heading, subjects, list(_cards(own))))
    return {
        "run": run,
        "machine": machine_line(run),
        "headlines": list(_headlines(figures)),
        "sections": sections,
        "about": [card for card in (_roofline(figures, run), _steadiness(figures)) if card],
        "sustained": [_curve(curve, figures) for curve in run.get("sustained", ())],
        "figures": [(title(figure), figure) for figure in figures],
    }


def _headlines(figures: Figures) -> Iterator[tuple[str, str, str]]:
    """Yield the number, what it is, and of what: the first of a kind, at the smallest size."""
    for section, name, words in HEADLINES:
        found = [f for f in figures if (f["section"], f["name"]) == (section, name)]
        if found:
            first = found[0]
            unit = first["unit"]
            text = amount(first["median"], unit).removesuffix(f" {unit}" if "/" in unit else "")
            at = parameters(first)
            yield text, words, f"{first['subject']}{', ' if at else ''}{at}"


def _cards(figures: Figures) -> Iterator[Card]:
    """Yield a chart for each name and unit; what there is one of shares one, as memory does."""
    several = len({f["subject"] for f in figures}) > 1
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for figure in figures:
        name = "memory" if figure["unit"] == "bytes" else figure["name"]
        groups.setdefault((name, figure["unit"]), []).append(figure)
    single = [group[0] for (_, unit), group in groups.items() if len(group) == 1 and unit == "s"]
    for unit in ("tokens/s", "steps/s", "s", "bytes"):
        for (name, own), group in groups.items():
            if own == unit and group[0] not in single:
                yield _card(name, unit, group, several=several, names=unit == "bytes")
        if unit == "s" and single:
            names = len(single) > 1
            name = "time" if names else single[0]["name"]
            yield _card(name, "s", single, several=several, names=names)


def _card(name: str, unit: str, group: Figures, *, several: bool, names: bool = False) -> Card:
    rows = []
    for figure in group:
        words = [figure["name"] if names else "", figure["subject"] if several else ""]
        label = ", ".join(word for word in [*words, parameters(figure)] if word)
        value, limit = figure["median"], figure.get("limit")
        rows.append(
            svg.Bar(
                label or figure["subject"],
                amount(value, unit),
                value,
                figure["low"],
                figure["high"],
                limit,
            )
        )
    heading = name[:1].upper() + name[1:]
    has_limit = any(row.limit for row in rows)
    note = "The dashed mark is what this machine's roofline allows." if has_limit else ""
    return Card(f"{heading}, {unit}", svg.bars(heading, rows), note)


def _roofline(figures: Figures, run: Mapping[str, Any]) -> Card | None:
    """Return the chart of what was reached at each intensity, under what the machine can do."""
    speed = run.get("speed")
    rates = [f for f in figures if f.get("flops") and f.get("bytes")]
    if not speed or not rates or not speed["flops_per_second"] or not speed["bytes_per_second"]:
        return None
    points = [(f["flops"] / f["bytes"], f["median"] * f["flops"]) for f in rates]
    peak, bandwidth = speed["flops_per_second"], speed["bytes_per_second"]
    xs = [x for x, _ in points]
    low, high = min([*xs, peak / bandwidth / 4]), max([*xs, peak / bandwidth * 4])
    roof = [(low, low * bandwidth), (peak / bandwidth, peak), (high, peak)]
    chart = svg.lines(
        "Roofline",
        [svg.Line("roof", roof), svg.Line("reached", points, joined=False)],
        x_name="operations a byte read",
        y_name="operations a second",
        logarithmic=True,
    )
    note = (
        f"Measured here with MLX in {speed['dtype']}: {scaled(peak, 'FLOP/s')} in matrix products, "
        f"{scaled(bandwidth, 'B/s')} in reading. Each dot is a rate above."
    )
    return Card("Roofline", chart, note)


def _steadiness(figures: Figures) -> Card | None:
    """Return the machine's own speed from moment to moment, as shares of its best."""
    series = []
    for name, words in (("flops", "matrix products"), ("bytes", "reading")):
        key = f"machine_{name}_per_second"
        timed = [f for f in figures if "seconds" in f and key in f]
        pairs = sorted({p for f in timed for p in zip(f["seconds"], f[key], strict=True)})
        best = max((speed for _, speed in pairs), default=0.0)
        if len(pairs) < 2 or not best:
            return None
        series.append(svg.Line(words, [(x, y / best) for x, y in pairs]))
    chart = svg.lines("Steadiness", series, x_name="seconds", y_name="share of its best")
    note = (
        "The machine's own speed before each sample: matrix products, and reading (lighter). "
        "What dips here is not the code's."
    )
    return Card("How steady the machine was", chart, note)


def _curve(curve: Mapping[str, Any], figures: Figures) -> Card:
    """Return a sustained run, and how its end compares with its beginning."""
    figure = next((f for f in figures if f["id"] == curve["figure"]), None)
    unit = figure["unit"] if figure else ""
    points = list(zip(curve["seconds"], curve["values"], strict=True))
    chart = svg.lines(
        "Sustained", [svg.Line("speed", points)], x_name="seconds", y_name=unit or "speed"
    )
    tenth = max(1, len(points) // 10)
    begin, end = (
        sorted(y for _, y in part)[tenth // 2] for part in (points[:tenth], points[-tenth:])
    )
    note = f"The last tenth ran at {end / begin:.0%} of the first." if begin else ""
    name = f"{figure['subject']}: {title(figure)}" if figure else curve["figure"]
    return Card(f"Sustained: {name}", chart, note)
