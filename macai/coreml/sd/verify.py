"""Does a package compute what its module computes? Run by macai's own runtime, and compared."""

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.sd.component import Component
from macai.coreml.sd.precisions import PRECISIONS, in_all
from macai.coreml.sd.runner import Precision, Runner
from macai.diffusion.models.sparing import in_strips

LEAST_PSNR = {"fp32": 60.0, "fp16": 60.0}
"""By arithmetic. In fp32 only weights are rounded; in fp16 every value is, after each operation."""
MOST_PSNR = 200.0  # what equal arrays have

Arrays = Mapping[str, np.ndarray]
Progress = Callable[[str, int, int], None]


def reference(
    component: Component, module: nn.Module, samples: Sequence[Arrays]
) -> list[dict[str, np.ndarray]]:
    """Return what the module itself, of float32, makes of each sample."""
    run, results = component.call(module), []
    with in_strips(module):
        for sample in samples:
            outputs = run(*(mx.array(sample[name]) for name in component.inputs))
            mx.eval(outputs)
            results.append(dict(zip(component.outputs, map(np.array, outputs), strict=True)))
    return results


def compare(
    runner: Runner,
    component: Component,
    samples: Sequence[Arrays],
    references: Sequence[Arrays],
    progress: Progress,
    *,
    function: str = "main",
) -> dict[str, Any]:
    """Run a component on samples and return how close it comes to the references.

    Returns:
        "outputs": by name and precision the least "psnr" in dB and "cosine" of all samples;
        "overflows": operations that made infinities in float16; "samples", how many; "worst", the
        number of the sample that comes least close; "problems" in words.
    """
    outputs: dict[str, dict[str, dict[str, float]]] = {n: {} for n in component.outputs}
    least = [np.inf] * len(samples)
    done, total, lock = itertools.count(1), len(samples) * len(PRECISIONS), threading.Lock()

    def run(precision: Precision, stop: threading.Event) -> int:
        overflows = 0
        for number, (sample, wanted) in enumerate(zip(samples, references, strict=True)):
            result = runner.run(sample, precision=precision, function=function, stop=stop)
            overflows += len(result.overflows)
            with lock:
                for name, array in wanted.items():
                    near = _note(outputs[name], precision, result.outputs[name], array)
                    least[number] = min(least[number], near - LEAST_PSNR[precision])
                progress(f"comparing {component.name}", next(done), total)
        return overflows

    overflows = sum(in_all(run).values())
    outputs = {name: {kind: found[kind] for kind in PRECISIONS} for name, found in outputs.items()}
    return {
        "samples": len(samples),
        "worst": int(np.argmin(least)),
        "outputs": outputs,
        "overflows": overflows,
        "problems": _problems(outputs, overflows),
    }


def psnr(got: np.ndarray, wanted: np.ndarray) -> float:
    """Return 20 log10(largest of wanted / root of the mean squared error) in dB, at most 200."""
    error = float(np.sqrt(np.mean((got.astype(np.float64) - wanted) ** 2)))
    largest = float(np.abs(wanted).max())
    if not np.isfinite(error):
        return -MOST_PSNR
    if error <= largest * 10 ** (-MOST_PSNR / 20):
        return MOST_PSNR
    return 20 * float(np.log10(max(largest, 1e-30) / error))


def cosine(got: np.ndarray, wanted: np.ndarray) -> float:
    """Return the cosine of the angle between two arrays as vectors; 0 where one is zero."""
    a, b = got.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if np.isfinite(lengths) and lengths > 0 else 0.0


def _note(
    found: dict[str, dict[str, float]], precision: str, got: np.ndarray, wanted: np.ndarray
) -> float:
    """Keep the least of what is found; return this one's PSNR."""
    now = {"psnr": psnr(got, wanted), "cosine": cosine(got, wanted)}
    before = found.get(precision, now)
    found[precision] = {key: min(before[key], now[key]) for key in now}
    return now["psnr"]


def _problems(
    outputs: Mapping[str, Mapping[str, Mapping[str, float]]], overflows: int
) -> list[str]:
    problems = [
        f"{name} is {one['psnr']:.1f} dB from the model's in {kind}, "
        f"and {LEAST_PSNR[kind]:.0f} is the least"
        for name, by_kind in outputs.items()
        for kind, one in by_kind.items()
        if one["psnr"] < LEAST_PSNR[kind]
    ]
    if overflows:
        problems.append(f"{overflows} operations overflow in float16")
    return problems
