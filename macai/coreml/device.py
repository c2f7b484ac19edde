"""Core ML itself, on a Mac: the same conversation, run by the system the package is for.

Written to coremltools' documentation (9.0: MLModel.predict, make_state, function_name,
MLState.write_state). Not run by us: there is no Mac here.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from macai.coreml.cut import HIDDEN_IN, HIDDEN_OUT
from macai.coreml.manifest import Manifest
from macai.coreml.session import States
from macai.errors import UsageError

UNITS = {
    "all": "ALL",
    "cpuOnly": "CPU_ONLY",
    "cpuAndGPU": "CPU_AND_GPU",
    "cpuAndNeuralEngine": "CPU_AND_NE",
}
"""Core ML's names of the units a model may use, and coremltools'."""


class CoreMLRunner:
    """Runs a bundle with Core ML: one loaded model a function and package, one state a package.

    That a state made by one function serves the others is not documented by Apple; published apps
    rely on it. Where it does not hold, `macai verify --runtime coreml` fails.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        units: str | None = None,
        held: States | None = None,
    ) -> None:
        if sys.platform != "darwin":
            raise UsageError(
                "Core ML runs on macOS only", hint="leave out --runtime: macai's own runs anywhere"
            )
        import coremltools as ct

        compute = getattr(ct.ComputeUnit, UNITS[units or manifest.compute_units])
        several = len(manifest.functions) > 1
        self._models: dict[str, list[Any]] = {
            name: [
                ct.models.MLModel(
                    str(folder / package),
                    compute_units=compute,
                    function_name=name if several else None,
                )
                for package in manifest.packages
            ]
            for name in manifest.functions
        }
        self._inputs: dict[str, list[list[str]]] = {
            name: [list(c.functions[name].inputs) for c in manifest.chunks] or [list(info.inputs)]
            for name, info in manifest.functions.items()
        }
        self._held: States = held or {}
        self.reset()

    def run(self, function: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run one function on the state; the last row of its logits, float32 [V]."""
        given: dict[str, Any] = dict(inputs)
        for model, names, state in zip(
            self._models[function], self._inputs[function], self._states, strict=True
        ):
            outputs = model.predict({name: given[name] for name in names}, state=state)
            given[HIDDEN_IN] = outputs.get(HIDDEN_OUT)
        return np.asarray(outputs["logits"], dtype=np.float32)[0, -1]

    def reset(self) -> None:
        """Empty the state, but for what it was said to hold."""
        self._states = [model.make_state() for model in next(iter(self._models.values()))]
        for name, array in self._held.items():
            self._states[0].write_state(name, array)
