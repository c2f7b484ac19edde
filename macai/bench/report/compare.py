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

Of two versions that were measured in turns the samples are pairs, and what is tested is their
ratios: what the machine did meanwhile met both of a pair. What is measured at several sizes is
tested over all of them as well, which finds what ten pairs of one size are too few for: they leave
five degrees of freedom.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from macai.bench import statistics as stats
from macai.bench.report.shifts import (
    FEWEST,
    Both,
    Shift,
    certain,
    chance,
    likeness,
    logarithms,
    ratios,
    shift_of_pairs,
    shift_of_runs,
)
from macai.errors import ReportError

LEAST_OF_TIME, LEAST_OF_MEMORY = 0.03, 0.05
"""Shares that a figure must differ by."""
LEAST_BYTES = 16 << 20
"""And bytes: what allocators keep is the same all through a run, and other in the next."""
ELASTICITY = 1.5
"""By how much more than the probe a figure may slow down with the machine."""
LEVEL = 0.05
_SIZES = ("context", "length")
_PROBES = ("machine_flops_per_second", "machine_bytes_per_second")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of one figure that both reports have.

    Attributes:
        change: Of the median from the first to the second, as a share: 0.1 is a tenth more. Of
            versions measured in turns, the trimmed mean of the ratios of pairs.
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
    in_turns: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "kind": "macai-bench-comparison",
            "version": 1,
            "same_machine": self.same_machine,
            "in_turns": self.in_turns,
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
    both = [(ours[name], theirs[name]) for name in common]
    missing = [*(n for n in ours if n not in theirs), *(n for n in theirs if n not in ours)]
    in_turns = _beside(a) is not None and _beside(a) == _beside(b)
    rows = _rows_in_turns(both) if in_turns else _rows(both)
    found = _judged(rows, _machine_in_turns(both) if in_turns else _machine(a, b))
    return Comparison(a, b, found, missing, a["machine"] == b["machine"], in_turns)


def _beside(run: Mapping[str, Any]) -> str | None:
    return run["settings"].get("beside")


class _Row(NamedTuple):
    """A figure before it is judged: its medians, their change as a share, and the shift."""

    figure: Mapping[str, Any]
    before: float
    after: float
    change: float
    shift: Shift


def _rows(both: Sequence[Both]) -> list[_Row]:
    """Return the figures of two runs, one after the other."""
    figures = [figure for pair in both for figure in pair]
    alike = likeness([(figure, logarithms(figure["values"])) for figure in figures])
    rows = []
    for pair in both:
        before, after = (statistics.median(figure["values"]) for figure in pair)
        change = after / before - 1 if before else 0.0
        shift = shift_of_runs(pair, alike[pair[0]["section"]])
        rows.append(_Row(pair[0], before, after, change, shift))
    return rows


def _rows_in_turns(both: Sequence[Both]) -> list[_Row]:
    """Return what stands for several figures of two versions that took turns, and the figures."""
    apart = {pair[0]["id"]: ratios(pair) for pair in both}
    alike = likeness([(pair[0], apart[pair[0]["id"]]) for pair in both])
    rows = []
    for group in _groups(both).values():
        of_rounds = zip(*(apart[x["id"]] for x, _ in group), strict=False)
        values = [ratio for of_round in of_rounds for ratio in of_round]
        shift = shift_of_pairs(values, [stats.autocorrelation(values)])
        before, after = (_middle(side) for side in zip(*group, strict=True))
        rows.append(_Row(_of_all_sizes(group[0][0]), before, after, math.expm1(shift.mean), shift))
    for pair in both:
        figure = pair[0]
        before, after = (statistics.median(f["values"]) for f in pair)
        shift = shift_of_pairs(apart[figure["id"]], alike[figure["section"]])
        rows.append(_Row(figure, before, after, math.expm1(shift.mean), shift))
    return rows


def _groups(both: Sequence[Both]) -> dict[str, list[Both]]:
    """Return what is measured at several sizes; not memory, whose least is that of one figure."""
    found: dict[str, list[Both]] = {}
    for x, y in both:
        if x["unit"] != "bytes" and min(len(x["values"]), len(y["values"])) >= FEWEST:
            found.setdefault(_of_all_sizes(x)["id"], []).append((x, y))
    return {name: group for name, group in found.items() if len(group) > 1}


def _of_all_sizes(figure: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands for a figure and those that differ from it in their size only."""
    at = {k: "all" if k in _SIZES else value for k, value in figure["parameters"].items()}
    name = [figure["section"], figure["subject"], figure["name"].replace(" ", "-")]
    kept = {key: figure[key] for key in ("section", "name", "subject", "unit", "better")}
    pairs = [f"{key}={value}" for key, value in at.items()]
    return {"id": "/".join([*name, *pairs]), **kept, "parameters": at}


def _middle(figures: Sequence[Mapping[str, Any]]) -> float:
    """Return the geometric mean of medians."""
    return math.exp(statistics.fmean(logarithms([statistics.median(f["values"]) for f in figures])))


def _judged(rows: Sequence[_Row], machine: tuple[float, float]) -> list[Difference]:
    """Return the differences, each with a chance that is adjusted for their number."""
    explained = [_explained(row.figure, machine) for row in rows]
    chances = [
        chance(row.shift, *ends, _least(row.figure, row.before))
        for row, ends in zip(rows, explained, strict=True)
    ]
    adjusted = iter(stats.holm([p for p in chances if p is not None]))
    found = []
    for row, (low, high), raw in zip(rows, explained, chances, strict=True):
        p = None if raw is None else next(adjusted)
        found.append(
            Difference(
                figure=row.figure,
                before=row.before,
                after=row.after,
                change=row.change,
                low=math.expm1(low),
                high=math.expm1(high),
                p=p,
                verdict=_verdict(row.figure, row.shift.mean, p),
            )
        )
    return found


def _explained(figure: Mapping[str, Any], machine: tuple[float, float]) -> tuple[float, float]:
    """Return the range of a figure's shift that the machine may explain, by that of rates."""
    if figure["unit"] == "bytes":  # memory does not depend on it
        return 0.0, 0.0
    low, high = machine
    return (-high, -low) if figure["unit"] == "s" else (low, high)


def _least(figure: Mapping[str, Any], before: float) -> float:
    """Return what a logarithm must move by for anybody to care."""
    if figure["unit"] == "bytes":
        return math.log1p(max(LEAST_OF_MEMORY, LEAST_BYTES / max(before, 1.0)))
    return math.log1p(LEAST_OF_TIME)


def _machine(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float]:
    """Return the range of shifts of a rate, in logarithms, that the machine alone may explain."""
    shifts = []
    for key in _PROBES:
        both = [[v for f in run["figures"] for v in f.get(key, ())] for run in (a, b)]
        if all(both):
            before, after = (statistics.median(logarithms(values)) for values in both)
            shifts.append(after - before)
    left = [_left(run) for run in (a, b)]
    if left[0] and left[1]:
        shifts.append(math.log(left[1] / left[0]))
    return _range(shifts)


def _machine_in_turns(both: Sequence[Both]) -> tuple[float, float]:
    """Return that range by what the machine's speed differed by right before both of a pair.

    Only by as much as is certain: turns share the machine, so what its speed differs by at random
    is in the spread of the pairs as well. What others left of the processors is not asked: a
    version that waits leaves more to others.
    """
    shifts = []
    for key in _PROBES:
        # Figures of one sample have its probe in common, which counts once.
        probed = {(*x[key], *y[key]): (x, y) for x, y in both if key in x and key in y}
        apart = [ratio for pair in probed.values() for ratio in ratios(pair, key)]
        shifts += [certain(shift_of_pairs(apart, []))] if len(apart) >= FEWEST else []
    return _range(shifts)


def _range(shifts: Sequence[float]) -> tuple[float, float]:
    """Return what a rate may move by if it follows the machine by any share up to ELASTICITY."""
    return ELASTICITY * min([0.0, *shifts]), ELASTICITY * max([0.0, *shifts])


def _left(run: Mapping[str, Any]) -> float | None:
    """Return how many processors other programs left on average, one tenth at least."""
    taken = [v for f in run["figures"] for v in f.get("others", ()) if v is not None]
    if not taken:
        return None
    return max(0.1, float(run["machine"]["cores"]) - statistics.fmean(taken))


def _verdict(figure: Mapping[str, Any], shift: float, p: float | None) -> str:
    if p is None:
        return "unknown"
    if p >= LEVEL:
        return "same"
    if figure["unit"] == "bytes":
        return "more" if shift > 0 else "less"
    return "faster" if (shift > 0) == (figure["better"] == "higher") else "slower"
