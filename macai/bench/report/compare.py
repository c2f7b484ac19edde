"""What two reports say together: which figures differ by more than chance and the machine explain.

One report shows how a figure varies within a run, not how it would in a run tomorrow, when other
programs take more or less of the machine. So a difference counts only if it is there after three
doubts, each of which can only take differences away:

- **the machine**: before each sample it was measured with a kernel that is not macai's. A figure
  may follow that by any share up to ELASTICITY of it, so any shift in that range is the machine's;
  and what other programs left of the processors is taken in the same way;
- **size**: what is smaller than LEAST_OF_TIME, or LEAST_OF_MEMORY and LEAST_BYTES, is nobody's
  concern;
- **chance**: Yuen's test of trimmed means of logarithms, with the error raised by the likeness of
  neighbouring samples, and Holm's correction for the number of figures.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from macai.bench import statistics as stats
from macai.errors import ReportError

LEAST_OF_TIME, LEAST_OF_MEMORY = 0.03, 0.05
"""Shares that a figure must differ by."""
LEAST_BYTES = 16 << 20
"""And bytes: what allocators keep is the same all through a run, and other in the next."""
ELASTICITY = 1.5
"""By how much more than the probe a figure may slow down with the machine."""
FEWEST = 4
"""Samples on either side."""
LEVEL = 0.05
_FLOOR = 0.002
"""Clocks and allocators are no better than this share: the least standard deviation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of one figure that both reports have.

    Attributes:
        change: Of the median from the first to the second, as a share: 0.1 is a tenth more.
        low: With `high` the range of changes that the machine alone may explain.
        p: The adjusted probability of such a difference by chance; None where there are too few
            samples to say.
        verdict: "faster" and "slower", or "less" and "more" of memory, where it is significant;
            else "same", or "unknown" with too few samples.
    """

    figure: Mapping[str, Any]
    before: float
    after: float
    change: float
    low: float
    high: float
    p: float | None
    verdict: str

    @property
    def is_significant(self) -> bool:
        """Whether it is neither chance nor the machine."""
        return self.verdict not in ("same", "unknown")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs, what differs, and what only one of them has."""

    first: Mapping[str, Any]
    second: Mapping[str, Any]
    differences: Sequence[Difference]
    missing: Sequence[str]
    same_machine: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "kind": "macai-bench-comparison",
            "version": 1,
            "same_machine": self.same_machine,
            "figures": [
                {
                    "id": d.figure["id"],
                    "unit": d.figure["unit"],
                    "before": d.before,
                    "after": d.after,
                    "change": round(d.change, 4),
                    "machine": [round(d.low, 4), round(d.high, 4)],
                    "p": None if d.p is None else float(f"{d.p:.3g}"),
                    "verdict": d.verdict,
                }
                for d in self.differences
            ],
            "missing": list(self.missing),
        }


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """Compare the runs of two reports that have one each.

    Raises:
        ReportError: a report has several runs, or they have no figure in common.
    """
    for report in (first, second):
        if len(report["runs"]) != 1:
            raise ReportError(
                f"a report of {len(report['runs'])} runs cannot be compared",
                hint="compare the reports of single runs, before they are merged",
            )
    [a], [b] = first["runs"], second["runs"]
    ours = {figure["id"]: figure for figure in a["figures"]}
    theirs = {figure["id"]: figure for figure in b["figures"]}
    common = [name for name in ours if name in theirs]
    if not common:
        raise ReportError(
            "the two reports have no figure in common",
            hint="measure the same sections of the same models with the same flags",
        )
    pairs = [(ours[name], theirs[name]) for name in common]
    missing = [*(n for n in ours if n not in theirs), *(n for n in theirs if n not in ours)]
    return Comparison(a, b, _differences(pairs, a, b), missing, a["machine"] == b["machine"])


def _differences(
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    a: Mapping[str, Any],
    b: Mapping[str, Any],
) -> list[Difference]:
    alike = _likeness([figure for pair in pairs for figure in pair])
    machine = _machine(a, b)
    tested = [_tested(x, y, machine, alike) for x, y in pairs]
    known = [p for *_, p in tested if p is not None]
    adjusted = iter(stats.holm(known))
    found = []
    for (x, y), (shift, low, high, chance) in zip(pairs, tested, strict=True):
        p = None if chance is None else next(adjusted)
        before, after = (statistics.median(figure["values"]) for figure in (x, y))
        found.append(
            Difference(
                figure=x,
                before=before,
                after=after,
                change=after / before - 1 if before else 0.0,
                low=math.expm1(low),
                high=math.expm1(high),
                p=p,
                verdict=_verdict(x, shift, p),
            )
        )
    return found


def _tested(
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    machine: tuple[float, float],
    alike: Mapping[str, list[float]],
) -> tuple[float, float, float, float | None]:
    """Return the shift of logarithms, the range the machine may explain, and the chance."""
    first, second = (_logarithms(f["values"]) for f in (x, y))
    is_memory, is_time = x["unit"] == "bytes", x["unit"] == "s"
    # Faster by the machine is more of a rate and less of a time; memory does not depend on it.
    low, high = (0.0, 0.0) if is_memory else machine
    low, high = (-high, -low) if is_time else (low, high)
    if min(len(first), len(second)) < FEWEST:
        shift = statistics.median(second) - statistics.median(first)
        return shift, low, high, None
    before = statistics.median(x["values"])
    least = math.log1p(LEAST_OF_TIME)
    if is_memory:
        least = math.log1p(max(LEAST_OF_MEMORY, LEAST_BYTES / max(before, 1.0)))
    spreads = [stats.trimmed(values) for values in (first, second)]
    shift = spreads[1].mean - spreads[0].mean
    beyond = max(shift - (high + least), (low - least) - shift)
    parts = []
    for spread, values in zip(spreads, (first, second), strict=True):
        worse = stats.inflation(alike[x["section"]], len(values))
        parts.append(max(spread.variance, _FLOOR**2 / len(values)) * worse)
    if beyond <= 0:
        return shift, low, high, 1.0
    variance = sum(parts)
    freedom = variance**2 / sum(v**2 / s.freedom for v, s in zip(parts, spreads, strict=True))
    chance = min(1.0, 2 * stats.student_tail(beyond / math.sqrt(variance), freedom))
    return shift, low, high, chance


def _likeness(figures: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return by section how much neighbouring samples are alike, figure by figure."""
    found: dict[str, list[float]] = {}
    for figure in figures:
        own = found.setdefault(figure["section"], [])
        if figure["unit"] != "bytes" and len(figure["values"]) >= FEWEST:
            own.append(stats.autocorrelation(_logarithms(figure["values"])))
    return found


def _machine(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float]:
    """Return the range of shifts of a rate, in logarithms, that the machine alone may explain."""
    shifts = [0.0]
    for key in ("machine_flops_per_second", "machine_bytes_per_second"):
        both = [[v for f in run["figures"] for v in f.get(key, ())] for run in (a, b)]
        if all(both):
            before, after = (statistics.median(_logarithms(values)) for values in both)
            shifts.append(ELASTICITY * (after - before))
    left = [_left(run) for run in (a, b)]
    if left[0] and left[1]:
        shifts.append(ELASTICITY * math.log(left[1] / left[0]))
    return min(shifts), max(shifts)


def _left(run: Mapping[str, Any]) -> float | None:
    """Return how many processors other programs left on average, one tenth at least."""
    taken = [v for f in run["figures"] for v in f.get("others", ()) if v is not None]
    if not taken:
        return None
    return max(0.1, float(run["machine"]["cores"]) - statistics.fmean(taken))


def _logarithms(values: Sequence[float]) -> list[float]:
    return [math.log(max(value, 1e-12)) for value in values]


def _verdict(figure: Mapping[str, Any], shift: float, p: float | None) -> str:
    if p is None:
        return "unknown"
    if p >= LEVEL:
        return "same"
    if figure["unit"] == "bytes":
        return "more" if shift > 0 else "less"
    return "faster" if (shift > 0) == (figure["better"] == "higher") else "slower"
