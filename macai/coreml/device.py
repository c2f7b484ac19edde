"""Core ML itself, on a Mac: the same conversation, run by the system the package is for.

Written to coremltools' documentation (9.0: MLModel.predict, make_state, function_name,
MLState.write_state). Not run by us: there is no Mac here.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

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
    """Runs a bundle with Core ML: one loaded model a function, one state for all of them.

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
        path = str(folder / manifest.package)
        self._models: dict[str, Any] = {
            name: ct.models.MLModel(
                path,
                compute_units=compute,
                function_name=name if len(manifest.functions) > 1 else None,
            )
            for name in manifest.functions
        }
        self._held: States = held or {}
        self.reset()

    def run(self, function: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run one function on the state; the last row of its logits, float32 [V]."""
        outputs = self._models[function].predict(dict(inputs), state=self._state)
        return np.asarray(outputs["logits"], dtype=np.float32)[0, -1]

    def reset(self) -> None:
        """Empty the state, but for what it was said to hold."""
        self._state = next(iter(self._models.values())).make_state()
        for name, array in self._held.items():
            self._state.write_state(name, array)
