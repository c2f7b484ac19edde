"""Exported packages of language models: opening one, the first token, and those that follow."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from macai.bench.cases.held import Held
from macai.bench.figure import Case, Figure
from macai.coreml.device import CoreMLRunner
from macai.coreml.manifest import Manifest, read_manifest
from macai.coreml.session import ReferenceRunner, Runner, Session, open_bundle

TOKENS = {"reference": {True: 4, False: 16}, "coreml": {True: 32, False: 128}}
"""Generated after the prompt, by runtime, and if it is to be quick or not."""
UNITS = ("cpuOnly", "cpuAndGPU", "cpuAndNeuralEngine")


def open_package_cases(folder: Path, subject: str, *, quick: bool, coreml: bool) -> list[Case]:
    """Open a bundle with macai's own runtime, or with Core ML for each choice of compute units."""
    manifest = read_manifest(folder)
    kind = "coreml" if coreml else "reference"
    tokens = TOKENS[kind][quick]
    cases: list[Case] = []
    for units in UNITS if coreml else ("reference",):

        def opened(units: str = units) -> Runner:
            if units == "reference":
                return ReferenceRunner(open_bundle(folder)[1])
            return CoreMLRunner(folder, manifest, units)

        cases.append(Replies(manifest, opened, subject, units, tokens))
    return [*cases, Held("coreml", subject)]


class Replies:
    """Opened anew for every sample; the same random prompt of one call of the longest prefill."""

    def __init__(
        self,
        manifest: Manifest,
        opened: Callable[[], Runner],
        subject: str,
        runtime: str,
        tokens: int,
    ) -> None:
        room = manifest.context - tokens - 1
        longest = max((manifest.functions[name].tokens for name in manifest.prefills), default=16)
        context = min(longest, room)
        rng = np.random.default_rng(context)
        self._ids = rng.integers(0, manifest.vocab_size, context).tolist()
        self._manifest, self._opened, self._tokens = manifest, opened, tokens
        common: dict[str, Any] = {"section": "coreml", "subject": subject}
        at: dict[str, Any] = {"runtime": runtime}
        rate: dict[str, Any] = {"unit": "tokens/s", "better": "higher"}
        seconds: dict[str, Any] = {"unit": "s", "better": "lower"}
        many: dict[str, Any] = at | {"context": context}
        self.figures: Mapping[str, Figure] = {
            "first load": Figure(
                name="first load", single=True, parameters=at, **seconds, **common
            ),
            "load": Figure(name="load", parameters=at, **seconds, **common),
            "first": Figure(name="first token", parameters=many, **seconds, **common),
            "prefill": Figure(name="prefill", parameters=many, **rate, **common),
            "decode": Figure(name="decode", parameters=many, **rate, **common),
        }

    def sample(self) -> Mapping[str, float]:
        """Open it, give it the prompt, go on with tokens one by one."""
        began = time.perf_counter()
        session = Session(self._manifest, self._opened())
        opened = time.perf_counter()
        token = int(session.feed(self._ids).argmax())
        first = time.perf_counter()
        for _ in range(self._tokens):
            token = int(session.feed([token]).argmax())
        ended = time.perf_counter()
        return {
            "first load": opened - began,
            "load": opened - began,
            "first": first - opened,
            "prefill": len(self._ids) / (first - opened),
            "decode": self._tokens / (ended - first),
        }
