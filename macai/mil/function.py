"""Run one function of a package."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from macai.errors import PackageError
from macai.mil.call import guarded
from macai.mil.features import TensorSpec, default_value
from macai.mil.frame import Frame, Overflow, StateBuffers
from macai.mil.plan import Plan, make_plan
from macai.mil.program import Body, Operation
from macai.mil.weights import Constant, WeightCache, compute_array

Precision = Literal["fp32", "fp16"]


class Limits:
    """What all functions of a package share."""

    def __init__(self, weight_cache_bytes: int, value_limit_bytes: int) -> None:
        self.cache = WeightCache(weight_cache_bytes)
        self.value_limit_bytes = value_limit_bytes


@dataclass(frozen=True, slots=True)
class Result:
    """What a run returned.

    Attributes:
        outputs: By name. Values declared fp16 are float32 after a run in fp32.
        overflows: Operations that made infinities or NaN out of finite inputs, in order. Only fp16
            values of a run in fp16 are looked at.
    """

    outputs: dict[str, np.ndarray]
    overflows: list[Overflow]


@dataclass(slots=True)
class Function:
    """A function of an opened package.

    Attributes:
        inputs: What a run must be given, by name.
        outputs: What it returns.
        states: What `Package.make_state` makes and a run changes.
    """

    body: Body
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    states: dict[str, TensorSpec]
    limits: Limits = field(repr=False)
    _plans: dict[str, Plan] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.body.name

    @property
    def operations(self) -> Iterator[Operation]:
        """All operations in order, those of nested blocks after the one they belong to."""
        return self.body.block.walk()

    def prepare(self, precision: Precision = "fp32") -> Plan:
        """Do now what the first run would do, but for decoding weights.

        Raises:
            UnsupportedMilOpError: it has operations that cannot be run; all of them are named.
            PackageError: its operations do not make sense.
        """
        if precision not in ("fp32", "fp16"):
            raise ValueError(f"precision is 'fp32' or 'fp16', got {precision!r}")
        if precision not in self._plans:
            plan = partial(
                make_plan,
                self.body,
                rounds=precision == "fp16",
                cache=self.limits.cache,
                value_limit_bytes=self.limits.value_limit_bytes,
            )
            self._plans[precision] = guarded(plan, f"function {self.name!r}")
        return self._plans[precision]

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        *,
        state: dict[str, np.ndarray] | None = None,
        precision: Precision = "fp32",
        peaks: dict[str, float] | None = None,
        kept: dict[str, np.ndarray] | None = None,
        stop: threading.Event | None = None,
    ) -> Result:
        """Run the function.

        Args:
            inputs: An array for each input, of its shape; float16 or float32 for floats, any
                integer type that holds the values for integers.
            state: From `Package.make_state`; changed in place when the run has succeeded.
            precision: With "fp32" nothing is rounded but states and decompressed weights; with
                "fp16" every value that is declared fp16 is.
            peaks: Filled with the largest magnitude of each value declared fp16, by its name; what
                is there is kept where it is larger. The whole of a state is no such value.
            kept: Filled with values by their names: those that it has keys of. Others than the
                results of operations on inputs are left as they are.
            stop: Once set, by another thread, the run ends with CancelledError.

        Raises:
            PackageError: an input or state that is missing, unknown or of the wrong shape or type,
                or a program that cannot be run on them.
        """
        plan = self.prepare(precision)
        given = self._checked_inputs(inputs, rounds=precision == "fp16")
        states = StateBuffers(self._checked_state(state))
        frame = Frame([None] * plan.places, states, peaks=peaks, kept=kept)
        for name, place in plan.inputs.items():
            frame.values[place] = given[name]
        with np.errstate(all="ignore"):
            outputs = guarded(
                partial(self._outputs, plan, frame, precision, stop), f"function {self.name!r}"
            )
        frame.states.commit()
        return Result(outputs, [*plan.overflows, *frame.overflows])

    def _outputs(
        self, plan: Plan, frame: Frame, precision: Precision, stop: threading.Event | None
    ) -> dict[str, np.ndarray]:
        for step in plan.steps:
            if stop is not None and stop.is_set():
                raise CancelledError
            step(frame)
        return {
            name: self._output(name, _value(bound, frame), precision)
            for name, bound in plan.outputs.items()
        }

    def _output(self, name: str, value: Any, precision: Precision) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        is_half = precision == "fp16" and self.outputs[name].dtype == "fp16"
        # A caller may write into what it gets: never into a weight or a state.
        return value.astype(np.float16) if is_half else value.copy()

    def _checked_inputs(
        self, inputs: Mapping[str, np.ndarray], *, rounds: bool
    ) -> dict[str, np.ndarray]:
        self._check_names("input", inputs, [n for n, s in self.inputs.items() if not s.optional])
        unknown = [n for n in inputs if n not in self.inputs]
        if unknown:
            self._refuse(f"unknown inputs {', '.join(map(repr, unknown))}")
        return {
            name: self._checked(name, inputs.get(name), spec, rounds=rounds)
            for name, spec in self.inputs.items()
        }

    def _check_names(self, what: str, given: Mapping[str, Any], required: list[str]) -> None:
        missing = [name for name in required if name not in given]
        if missing:
            self._refuse(f"missing {what}s {', '.join(map(repr, missing))}")

    def _checked(
        self, name: str, value: np.ndarray | None, spec: TensorSpec, *, rounds: bool
    ) -> np.ndarray:
        if value is None:
            value = default_value(spec)
        array = np.asarray(value)
        if not spec.accepts(array.shape):
            self._refuse(f"input {name!r} has shape {list(array.shape)}, not {spec}")
        kind = "f" if spec.dtype.startswith("fp") else "iu" if "int" in spec.dtype else "b"
        if array.dtype.kind not in kind:
            self._refuse(f"input {name!r} is {array.dtype}, not {spec}")
        if kind == "f":
            is_half = rounds and spec.dtype == "fp16"
            return compute_array(array.astype(np.float16)) if is_half else compute_array(array)
        dtype = np.dtype(spec.dtype)
        if kind == "iu" and array.size:
            info = np.iinfo(dtype)
            if array.min() < info.min or array.max() > info.max:
                self._refuse(f"input {name!r} has values that do not fit {spec.dtype}")
        return array.astype(dtype, copy=False)

    def _checked_state(self, state: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        state = state or {}
        self._check_names("state", state, list(self.states))
        for name, spec in self.states.items():
            array = state[name]
            if array.dtype != np.float16 or not spec.accepts(array.shape):
                self._refuse(f"state {name!r} is {array.dtype} {list(array.shape)}, not {spec}")
        return {name: state[name] for name in self.states}

    def _refuse(self, message: str) -> None:
        inputs = "; ".join(f"{name}: {spec}" for name, spec in self.inputs.items())
        states = "; ".join(f"{name}: {spec}" for name, spec in self.states.items())
        raise PackageError(
            f"function {self.name!r}: {message}",
            hint=f"inputs are {inputs or 'none'}" + (f", states {states}" if states else ""),
        )


def _value(bound: Any, frame: Frame) -> Any:
    return bound.get() if isinstance(bound, Constant) else frame.values[bound]
