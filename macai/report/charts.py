"""The charts of a run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from macai.page import svg
from macai.page.html import Card
from macai.page.words import scaled

MOST = 240  # points of a line: more are not seen
Line = Mapping[str, Any]
Points = list[tuple[float, float]]


def curves(steps: Sequence[Line], validations: Sequence[Line]) -> Iterator[Card]:
    """Yield the charts of loss, learning rate and gradient norm."""
    loss = of(steps, "loss")
    series = [svg.Line("each step", thinned(loss))]
    note = _averaged(loss)
    if validations:
        series.append(svg.Line("validation", thinned(of(validations, "valid_loss")), dotted=True))
        note = f"Line: training. Dots: validation. {note}".rstrip()
    yield _lines("Loss", series, "loss", note)
    rates = of(steps, "learning_rate")
    if rates:
        yield _lines("Learning rate", [svg.Line("rate", thinned(rates))], "learning rate")
    norms = of(steps, "grad_norm")
    if norms:
        note = f"Before clipping. {_averaged(norms)}".rstrip()
        yield _lines("Gradient norm", [svg.Line("norm", thinned(norms))], "L2 norm", note)


def rewards(steps: Sequence[Line]) -> Iterator[Card]:
    """Yield the charts of what two answers are worth to the model, where those are compared."""
    series = [
        svg.Line(name, thinned(of(steps, f"rewards/{name}"))) for name in ("chosen", "rejected")
    ]
    if all(line.points for line in series):
        note = "Strong: of the better answers. Light: of the worse ones."
        yield _lines("Rewards", series, "reward", note)
    for name, words in (("margin", "better less worse"), ("accuracy", "share of rows")):
        if points := of(steps, f"rewards/{name}"):
            yield _lines(f"Reward {name}", [svg.Line(name, thinned(points))], words)


def speed(steps: Sequence[Line], unit: str, real: str, processed: str) -> Iterator[Card]:
    """Yield the charts of speed and memory.

    Args:
        steps: Of metrics.jsonl.
        unit: What is counted: tokens, pictures.
        real: Under which key a line says how many were learnt from.
        processed: How many were computed.
    """
    timed = [s for s in steps if s["seconds"] > 0 and real in s and processed in s]
    if timed:
        rates = [
            svg.Line(key, thinned([(s["step"], s[key] / s["seconds"]) for s in timed]))
            for key in (real, processed)
        ]
        name = f"{unit} a second"
        note = "Strong: of the data. Light: all that is computed, padding included."
        yield _lines(f"{unit.capitalize()} a second", rates, name, note)
    memory = of(steps, "peak_memory_bytes")
    if memory:
        note = f"The most that MLX held: {scaled(max(y for _, y in memory), 'B')}."
        gigabytes = [(x, y / 1e9) for x, y in thinned(memory)]
        yield _lines("Memory", [svg.Line("peak", gigabytes)], "peak, GB", note)


def lengths(histogram: Sequence[Sequence[int]]) -> Card:
    """Return how many rows have how many tokens."""
    rows = [
        svg.Bar(f"{low} to {below - 1} tokens", f"{count:,}", count, count, count)
        for low, below, count in histogram
    ]
    return Card("Length of the training rows", svg.bars("Length of the training rows", rows))


def of(lines: Sequence[Line], key: str) -> Points:
    """Return (step, value) of the lines that have a value."""
    return [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]


def thinned(points: Points) -> Points:
    """Return at most `MOST` points, each the last step and the mean value of as many neighbours."""
    size = -(-len(points) // MOST)
    if size <= 1:
        return points
    parts = [points[n : n + size] for n in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _averaged(points: Points) -> str:
    size = -(-len(points) // MOST)
    return f"Each point is the mean of {size} steps." if size > 1 else ""


def _lines(heading: str, series: Sequence[svg.Line], y_name: str, note: str = "") -> Card:
    return Card(heading, svg.lines(heading, series, x_name="step", y_name=y_name), note)
