"""Into how many processes a machine can usefully divide a training step."""

import os
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from macai.models.arrays import named_arrays
from macai.models.blas import load_fast_blas

LEAST_BYTES = 100 << 20  # of weights: with fewer a step is over before a process has started
MEMORY_SHARE = 0.5  # of what is available; gradients and the other programs need the rest


def cores() -> int:
    """Return how many cores this process may compute on: OPENBLAS_NUM_THREADS lowers it too."""
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    blas = load_fast_blas()
    return min(usable, blas.threads) if blas.found else usable


def workers_for(model: nn.Module, asked: int, *, before: int = 0) -> int:
    """Return how many processes shall compute the parts of a step.

    On the CPU backend all elementwise work of a process is on one core, so a second one has its own
    weights and half of the rows. On a GPU there is one, whatever was asked for.

    Args:
        model: Every process holds its weights once.
        asked: Taken as it is; 0 leaves it to the machine.
        before: What an earlier part of the same run had, 0 for none: it goes on with it, as the
            bits of the result depend on it, if there are as many cores.
    """
    if mx.default_device() != mx.cpu:
        return 1
    if asked or before:
        return asked or min(before, cores())
    needed = sum(array.nbytes for array in named_arrays(model.parameters()).values())
    if cores() < 2 or needed < LEAST_BYTES:
        return 1
    return 2 if 2 * needed <= MEMORY_SHARE * available_bytes() else 1


def available_bytes() -> int:
    """Return how much memory programs can still take; 0 where the system does not say."""
    if mx.metal.is_available():  # memory is one: what Metal recommends a process to use of it
        recommended = int(mx.device_info()["max_recommended_working_set_size"])
        return max(0, recommended - mx.get_active_memory())
    available = _meminfo("MemAvailable")
    try:  # a container's own limit, of cgroup v2
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # none, or "max"
        return available
    return min(available, limit)


def total_bytes() -> int:
    """Return how much memory the machine has; 0 where the system does not say."""
    if mx.metal.is_available():
        return int(mx.device_info()["memory_size"])
    return _meminfo("MemTotal")


def _meminfo(name: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return 0
