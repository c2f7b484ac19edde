"""Lets the cases of all sections take turns, round after round, each in its section's process.

The samples of a figure are spread over the whole run, so that a slow minute of the machine meets
every figure, and shows in its spread instead of passing for a property of the code. Before each
sample the machine itself is measured.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from macai.bench.figure import Figure, Opener
from macai.bench.others import Others
from macai.bench.probe import Speed
from macai.bench.worker import serve
from macai.errors import ModelError

END_SECONDS = 5.0
FEWEST = 5
"""Rounds, whatever they take: of fewer samples nothing can be said about their spread."""

Progress = Callable[[str, int, int], None]


class Turn(NamedTuple):
    """A case: its section, its number there, and its figures by the case's keys."""

    section: str
    case: int
    figures: Mapping[str, Figure]


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


class Sections:
    """The processes of a run. A context manager: after the block there is none."""

    def __init__(self, openers: Mapping[str, Opener]) -> None:
        """Start them; they load their models one after the other, in `open`."""
        self._openers = dict(openers)
        self._processes: dict[str, tuple[BaseProcess, Any]] = {}

    def __enter__(self) -> "Sections":
        return self

    def __exit__(self, *_: object) -> None:
        for process, connection in self._processes.values():
            connection.close()
            process.terminate()
        for process, _ in self._processes.values():
            process.join(END_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes = {}

    def open(self, name: str) -> list[Mapping[str, Figure]]:
        """Start a section's process and return the figures of each of its cases."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self._openers[name]), daemon=False)
        with _held_signals():
            process.start()
        theirs.close()
        self._processes[name] = process, ours
        return self._receive(name)

    def sample(self, name: str, case: int) -> tuple[dict[str, float], float]:
        """Let a section do a case; return its values, and the processor seconds it took."""
        self._processes[name][1].send(case)
        return self._receive(name)

    def _receive(self, name: str) -> Any:
        process, connection = self._processes[name]
        try:
            answer = connection.recv()
        except (EOFError, OSError) as e:
            process.join(END_SECONDS)
            code = process.exitcode
            raise ModelError(
                f"the process that measured '{name}' ended with code {code}",
                hint="memory ran out? measure less at once: macai bench " + name,
            ) from e
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def _held_signals() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM: a new process inherits that until it ignores them."""
    held = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def measure(
    sections: Sections,
    names: Sequence[str],
    probe: Callable[[], Speed],
    *,
    rounds: int,
    budget_seconds: float,
    progress: Progress,
    should_stop: Callable[[], object],
) -> Run:
    """Open the sections, do every case once to warm up, and then `rounds` times in turns.

    Args:
        sections: Started with an opener for each of `names`.
        names: In the order in which they are opened.
        probe: Measures the machine: see Probe.
        rounds: As many samples as each figure gets, if they fit into the budget.
        budget_seconds: After so many no round begins, unless there were fewer than FEWEST; and
            what takes longest is left out where FEWEST rounds of all would not fit.
        progress: (what, done, total).
        should_stop: Asked before each sample; if true, what was measured is returned.

    Raises:
        MacaiError: what a section cannot do; the others are not measured either.
    """
    run, began = Run(), time.perf_counter()
    for number, name in enumerate(names):
        progress("opening", number, len(names))
        for case, figures in enumerate(sections.open(name)):
            run.turns.append(Turn(name, case, figures))
            for figure in figures.values():
                run.measured[figure.id] = Measured(figure)
    progress("opening", len(names), len(names))
    clock, costs = _Clock(sections, probe, run), list[float]()
    for done, turn in enumerate(run.turns):
        if should_stop():
            run.complete = False
            return run
        progress("warming up", done, len(run.turns))
        before = time.perf_counter()
        clock.take(*turn, keep="single")
        costs.append(time.perf_counter() - before)
    progress("warming up", len(run.turns), len(run.turns))
    _leave_out(run, costs, (budget_seconds - (time.perf_counter() - began)) / FEWEST)
    turns = list(run.turns)
    for number in range(rounds):
        if number >= FEWEST and time.perf_counter() - began > budget_seconds:
            break
        for done, turn in enumerate(turns):
            if should_stop():
                run.complete = False
                return run
            progress("measuring", number * len(turns) + done, rounds * len(turns))
            clock.take(*turn, keep="repeated")
        turns.reverse()  # what comes after what is different in every other round
        run.rounds += 1
    progress("measuring", rounds * len(turns), rounds * len(turns))
    return run


def _leave_out(run: Run, costs: Sequence[float], seconds: float) -> None:
    """Take out the longest cases until a round fits into `seconds`; of each section one is kept."""
    kept = dict(zip(range(len(costs)), costs, strict=True))
    for place in sorted(kept, key=lambda k: -kept[k]):
        turn = run.turns[place]
        others = [k for k in kept if k != place and run.turns[k].section == turn.section]
        rates = [k for k in others if any("/s" in f.unit for f in run.turns[k].figures.values())]
        is_rate = any("/s" in figure.unit for figure in turn.figures.values())
        if sum(kept.values()) > seconds and is_rate and rates:
            del kept[place]
            figure = next(iter(turn.figures.values()))
            at = ", ".join(f"{key} {value}" for key, value in figure.parameters.items())
            run.left_out.append(f"{turn.section}, {at}")
    run.turns = [run.turns[place] for place in sorted(kept)]


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

    def __init__(self, sections: Sections, probe: Callable[[], Speed], run: Run) -> None:
        self._sections, self._probe, self._run = sections, probe, run
        self._began = time.perf_counter()

    def take(self, name: str, case: int, figures: Mapping[str, Figure], *, keep: str) -> None:
        """Do a case; of the values keep those that are single, or the others."""
        speed, others = self._probe(), Others()
        values, own_seconds = self._sections.sample(name, case)
        meanwhile, now = others(own_seconds), time.perf_counter() - self._began
        for key, value in values.items():
            figure = figures[key]
            if figure.single != (keep == "single"):
                continue
            measured = self._run.measured[figure.id]
            measured.values.append(value)
            measured.speeds.append(speed)
            measured.others.append(meanwhile)
            measured.seconds.append(now)
