"""Talk to an exported language model: prompts in chunks, then token by token."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from macai.coreml.chain import Chain
from macai.coreml.manifest import FunctionInfo, Manifest, read_manifest
from macai.coreml.profiles import PROFILES
from macai.errors import PackageError
from macai.mil import Package, open_package

States = Mapping[str, np.ndarray]
"""What states hold at the beginning, where that is not zeros: an adapter in the slot, float16."""


class NotFiniteError(PackageError):
    """Logits that are infinite, or no numbers."""


class Runner(Protocol):
    """What runs the functions of a package and keeps their state."""

    def run(self, function: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the last row of logits, float32 [V]."""
        ...

    def reset(self) -> None:
        """Empty the state."""
        ...


class ReferenceRunner:
    """Runs a package with macai's own runtime, in numpy, anywhere.

    `held` is what states begin with. `peaks` is filled with the largest magnitudes of values, by
    function and name: see mil.Function.run.

    Attributes:
        overflows: How many operations made infinities of finite numbers, in a run in fp16.
    """

    def __init__(
        self,
        package: Package | Chain,
        precision: str = "fp32",
        held: States | None = None,
        peaks: dict[str, dict[str, float]] | None = None,
    ) -> None:
        self._package, self._precision, self._held = package, precision, held or {}
        self._peaks = peaks
        self.overflows = 0
        self.reset()

    def run(self, function: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run one function on the state."""
        precision = "fp16" if self._precision == "fp16" else "fp32"
        noted: dict[str, Any] = {}
        if self._peaks is not None:
            noted["peaks"] = self._peaks.setdefault(function, {})
        result = self._package.functions[function].run(
            inputs,
            state=self._state,
            precision=precision,  # type: ignore[arg-type]
            **noted,
        )
        self.overflows += len(result.overflows)
        return result.outputs["logits"][0, -1].astype(np.float32)

    def reset(self) -> None:
        """Empty the state, but for what it was said to hold."""
        state: Any = self._package.make_state()
        for name, array in self._held.items():
            state[name][...] = array
        self._state = state


class Session:
    """A conversation with a package, as the plain model or with one of its adapters.

    Attributes:
        ids: What the state holds, position by position.
        last: The logits after them, float32 [V].
    """

    def __init__(self, manifest: Manifest, runner: Runner, adapter: str | None = None) -> None:
        self.manifest, self._runner = manifest, runner
        self._calls = PROFILES[manifest.profile].calls
        self._functions = manifest.functions_of(adapter)
        self.ids: list[int] = []
        self.last = np.empty(0, np.float32)

    @property
    def room(self) -> int:
        """How many tokens a conversation can have."""
        return self._calls.room(self.manifest)

    def reset(self) -> None:
        """Forget everything."""
        self._runner.reset()
        self.ids = []

    def keep_prefix(self, prompt: Sequence[int]) -> int:
        """Forget what does not begin `prompt`; return how many ids are left, fewer than all."""
        kept = 0
        for mine, theirs in zip(self.ids, prompt[:-1], strict=False):
            if mine != theirs:
                break
            kept += 1
        del self.ids[kept:]  # what the state holds behind is written over before it is seen
        return kept

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Go on with the next ids; return the logits after the last, float32 [V]."""
        if len(self.ids) + len(ids) > self.room:
            raise PackageError(
                f"{len(self.ids) + len(ids)} tokens, and the package's context is {self.room}",
                hint="export it with a larger --context",
            )
        rest = list(ids)
        while rest:
            name, count = self._calls.next(self.manifest, len(self.ids), len(rest))
            self.run(name, rest[:count])
            rest = rest[count:]
        return self.last

    def run(self, name: str, ids: Sequence[int]) -> np.ndarray:
        """Take the next ids, at most the function's tokens; return the logits after the last."""
        tokens = self.manifest.functions[name].tokens
        inputs = self._calls.inputs(tokens, ids, len(self.ids))
        logits = self._runner.run(self._functions[name], inputs)
        if not np.isfinite(logits).all():
            raise NotFiniteError(
                f"{name} returned logits that are not finite",
                hint="is the copy complete? macai doctor tells what is wrong with it",
            )
        self.last = logits
        self.ids += ids
        return self.last


def open_bundle(folder: Path) -> tuple[Manifest, Package | Chain]:
    """Open a bundle's packages and check them against its manifest; several are run as one.

    Raises:
        PackageError: one of them is missing or broken, or they contradict each other.
    """
    manifest = read_manifest(folder)
    packages = [open_package(folder / name) for name in manifest.packages]
    owners = [chunk.functions for chunk in manifest.chunks] or [manifest.functions]
    for infos, package in zip(owners, packages, strict=True):
        _check_functions(folder, infos, package)
    _check_last(folder, manifest, packages[-1])
    return manifest, packages[0] if len(packages) == 1 else Chain(packages)


def _check_functions(folder: Path, infos: Mapping[str, FunctionInfo], package: Package) -> None:
    for name, info in infos.items():
        function = package.functions.get(name)
        if function is None:
            raise PackageError(f"{folder}: the package has no function {name}")
        for label, spec in info.inputs.items():
            own = function.inputs.get(label)
            for shape in (spec["shape"], spec.get("most", spec["shape"])):
                if own is None or not own.accepts(tuple(shape)):
                    raise PackageError(f"{folder}: {name} takes no {label} {shape}")


def _check_last(folder: Path, manifest: Manifest, package: Package) -> None:
    """Check what only the last package has, or the only one."""
    for name in manifest.functions:
        function = package.functions[name]
        if "logits" not in function.outputs:
            raise PackageError(f"{folder}: {name} returns no logits")
        if (slot := manifest.slot) is not None:
            held = function.states.get(slot.state)
            if held is None or held.shape != slot.shape:
                raise PackageError(f"{folder}: {name} has no state {slot.state} {slot.shape}")
