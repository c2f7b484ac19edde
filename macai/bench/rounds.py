"""Lets the cases of all sections take turns, round after round, each in its section's process.

The samples of a figure are spread over the whole run, so that a slow minute of the machine meets
every figure, and shows in its spread instead of passing for a property of the code. Where two
versions are measured, they do the same case one right after the other, so that such a minute meets
both. Before each sample the machine itself is measured.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from macai.bench.figure import Figure
from macai.bench.others import Others
from macai.bench.probe import Speed
from macai.bench.sections import Sections

FEWEST = 5
"""Rounds, whatever they take: of fewer samples nothing can be said about their spread."""

Progress = Callable[[str, int, int], None]


class Turn(NamedTuple):
    """A case: its section, its number there, and its figures by the case's keys."""

    section: str
    case: int
    figures: Mapping[str, Figure]


Together = list[tuple[int, Turn]]
"""The same case of each side that has it, with the side's number."""


@dataclass(slots=True)
class Measured:
    """A figure with its samples.

    Attributes:
        values: One a round.
        speeds: What the machine could do right before each of them.
        others: Processors that other programs had meanwhile; None where the system does not say.
        seconds: When each was taken, since the first round began.
    """

    figure: Figure
    values: list[float] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    others: list[float | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Run:
    """What a run gave, complete or not.

    Attributes:
        turns: Every case that was measured, in the order in which they were opened.
        left_out: What would have taken too long, each as section and parameters.
    """

    measured: dict[str, Measured] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    rounds: int = 0
    complete: bool = True


def measure(
    sides: Sequence[Sections],
    names: Sequence[str],
    probe: Callable[[], Speed],
    *,
    rounds: int,
    budget_seconds: float,
    progress: Progress,
    should_stop: Callable[[], object],
) -> list[Run]:
    """Open the sections, do every case once to warm up, and then `rounds` times in turns.

    Args:
        sides: Each made with an opener for each of `names`: one, or one a version to compare.
        names: In the order in which they are opened.
        probe: Measures the machine: see Probe.
        rounds: As many samples as each figure gets, if they fit into the budget.
        budget_seconds: After so many no round begins, unless there were fewer than FEWEST; and
            what takes longest is left out where FEWEST rounds of all would not fit.
        progress: (what, done, total).
        should_stop: Asked before each sample; if true, what was measured is returned.

    Returns:
        A run for each side. Sample k of a figure was taken right before or after sample k of the
        same figure on the other side; which comes first changes from round to round.

    Raises:
        MacaiError: what a section cannot do; the others are not measured either.
    """
    runs, began = [Run() for _ in sides], time.perf_counter()
    together = _opened(sides, names, runs, progress)
    clock, costs = _Clock(sides, probe, runs), list[float]()
    for done, turns in enumerate(together):
        progress("warming up", done, len(together))
        before = time.perf_counter()
        for side, turn in turns:
            if should_stop():
                return _stopped(runs)
            clock.take(side, turn, keep="single")
        costs.append(time.perf_counter() - before)
    progress("warming up", len(together), len(together))
    together, left_out = _leave_out(
        together, costs, (budget_seconds - (time.perf_counter() - began)) / FEWEST
    )
    queue = [turn for turns in together for turn in turns]
    for side, run in enumerate(runs):
        run.turns = [turn for at, turn in queue if at == side]
        run.left_out = left_out
    for number in range(rounds):
        if number >= FEWEST and time.perf_counter() - began > budget_seconds:
            break
        for done, (side, turn) in enumerate(queue):
            if should_stop():
                return _stopped(runs)
            progress("measuring", number * len(queue) + done, rounds * len(queue))
            clock.take(side, turn, keep="repeated")
        queue.reverse()  # what comes after what is different in every other round
        for run in runs:
            run.rounds += 1
    progress("measuring", rounds * len(queue), rounds * len(queue))
    return runs


def _opened(
    sides: Sequence[Sections], names: Sequence[str], runs: Sequence[Run], progress: Progress
) -> list[Together]:
    """Open all sections; return their cases, those of two sides that measure the same together."""
    found: dict[str, Together] = {}
    for number, name in enumerate(names):
        for side, (sections, run) in enumerate(zip(sides, runs, strict=True)):
            progress("opening", number * len(sides) + side, len(names) * len(sides))
            for case, figures in enumerate(sections.open(name)):
                turn = Turn(name, case, figures)
                run.turns.append(turn)
                for figure in figures.values():
                    run.measured[figure.id] = Measured(figure)
                # A version may measure more of a case: its first figure says which one it is.
                first = next((figure.id for figure in figures.values()), f"{side}, {name}, {case}")
                found.setdefault(first, []).append((side, turn))
    progress("opening", len(names) * len(sides), len(names) * len(sides))
    return list(found.values())


def _stopped(runs: list[Run]) -> list[Run]:
    for run in runs:
        run.complete = False
    return runs


def _leave_out(
    together: Sequence[Together], costs: Sequence[float], seconds: float
) -> tuple[list[Together], list[str]]:
    """Take out the longest cases until a round fits into `seconds`; of each section one is kept.

    Returns:
        What is left, and what is not: each as section and parameters.
    """
    kept, left_out = dict(zip(range(len(costs)), costs, strict=True)), list[str]()
    turns = [cases[0][1] for cases in together]
    for place in sorted(kept, key=lambda k: -kept[k]):
        turn = turns[place]
        others = [k for k in kept if k != place and turns[k].section == turn.section]
        rates = [k for k in others if any("/s" in f.unit for f in turns[k].figures.values())]
        is_rate = any("/s" in figure.unit for figure in turn.figures.values())
        if sum(kept.values()) > seconds and is_rate and rates:
            del kept[place]
            figure = next(iter(turn.figures.values()))
            at = ", ".join(f"{key} {value}" for key, value in figure.parameters.items())
            left_out.append(f"{turn.section}, {at}")
    return [together[place] for place in sorted(kept)], left_out


def sustain(
    sections: Sections,
    turn: Turn,
    key: str,
    *,
    seconds: float,
    progress: Progress,
    should_stop: Callable[[], object],
) -> dict[str, Any]:
    """Do one case again and again, to see whether it slows down; return a report's curve."""
    began, times, values = time.perf_counter(), list[float](), list[float]()
    while (now := time.perf_counter() - began) < seconds and not should_stop():
        progress("sustaining", int(now), int(seconds))
        sample, _ = sections.sample(turn.section, turn.case)
        times.append(round(time.perf_counter() - began, 2))
        values.append(float(f"{sample[key]:.6g}"))
    return {"figure": turn.figures[key].id, "seconds": times, "values": values}


class _Clock:
    """Takes samples and puts them where they belong."""

    def __init__(
        self, sides: Sequence[Sections], probe: Callable[[], Speed], runs: Sequence[Run]
    ) -> None:
        self._sides, self._probe, self._runs = sides, probe, runs
        self._began = time.perf_counter()

    def take(self, side: int, turn: Turn, *, keep: str) -> None:
        """Do a case; of the values keep those that are single, or the others."""
        speed, others = self._probe(), Others()
        values, own_seconds = self._sides[side].sample(turn.section, turn.case)
        meanwhile, now = others(own_seconds), time.perf_counter() - self._began
        for key, value in values.items():
            figure = turn.figures[key]
            if figure.single != (keep == "single"):
                continue
            measured = self._runs[side].measured[figure.id]
            measured.values.append(value)
            measured.speeds.append(speed)
            measured.others.append(meanwhile)
            measured.seconds.append(now)
