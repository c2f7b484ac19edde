"""Sections that measure nothing: to see who is asked when, and what becomes of their failures."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from macai.bench.figure import Case, Figure
from macai.bench.memory import footprint_bytes
from macai.errors import ModelError


class Noted:
    """Writes down that it was asked."""

    def __init__(self, log: Path, name: str, *, single: bool = False) -> None:
        self._log, self._name = log, name
        self.says = name
        figure = Figure(
            section="generate",
            name=name,
            subject="nothing",
            unit="s",
            better="lower",
            single=single,
        )
        self.figures: Mapping[str, Figure] = {"value": figure}

    def sample(self) -> Mapping[str, float]:
        with self._log.open("a") as log:
            log.write(f"{self.says}\n")
        return {"value": 1.0}


class Takes(Noted):
    """Takes its time: a rate at a size."""

    def __init__(self, log: Path, name: str, seconds: float) -> None:
        super().__init__(log, name)
        self._seconds = seconds
        self.figures = {
            "value": replace(self.figures["value"], unit="tokens/s", parameters={"size": name})
        }

    def sample(self) -> Mapping[str, float]:
        time.sleep(self._seconds)
        return super().sample()


class Dies(Noted):
    """Is ended by the system when it is asked the third time."""

    def sample(self) -> Mapping[str, float]:
        super().sample()
        if self._log.read_text().count(self._name) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"value": 1.0}


def open_two(log: Path, first: str, second: str) -> list[Case]:
    return [Noted(log, first), Noted(log, second)]


def open_slow(log: Path) -> list[Case]:
    return [Takes(log, "small", 0.0), Takes(log, "large", 0.4), Takes(log, "huge", 0.8)]


def open_single(log: Path) -> list[Case]:
    return [Noted(log, "load", single=True)]


def open_dying(log: Path) -> list[Case]:
    return [Dies(log, "dies")]


def open_nothing() -> list[Case]:
    raise ModelError("there is no such model", hint="give another")


def open_defect() -> list[Case]:
    raise ZeroDivisionError("a defect")


class Footprint(Noted):
    """Takes as long as this version of macai does to ask for its memory."""

    def sample(self) -> Mapping[str, float]:
        began = time.perf_counter()
        footprint_bytes()
        return {"value": time.perf_counter() - began}


def open_pairs(log: Path, side: str, names: str) -> list[Case]:
    """Cases of the same figures on either side, which note the side as well."""
    cases = [Noted(log, name) for name in names]
    for case in cases:
        case.says += side
    return list(cases)


def open_footprint(log: Path) -> list[Case]:
    return [Footprint(log, "footprint")]
