"""A run of macai's trainer: prints what it did, as one line of JSON.

    python -m benchmarks.training.macai_side --model DIR --data DIR --out DIR [--set KEY=VALUE]
                                             [--without FEATURE]

--without takes one thing away that the trainer does of its own accord and no recipe turns off, to
see what it is worth. It reaches this process only, so it goes with train.workers=1.
"""

import argparse
import ctypes
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import macai.models  # the fast BLAS, before anything else imports MLX

# isort: split
import mlx.core as mx
import numpy as np

import macai.data.batches
import macai.finetune
import macai.finetune.wanted
import macai.train.chunked
import macai.train.gradient
import macai.train.job
import macai.train.loss
from macai.catalog import find_recipe
from macai.data.batches import Plan, Steps
from macai.models.blas import load_fast_blas
from macai.models.load import load_model
from macai.recipe import load_recipe
from macai.train.events import Started, Summary
from macai.train.loop import Report
from macai.train.team import Team

ROW_STEP = 32  # to which mlx-lm pads
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from <malloc.h>


def main() -> None:
    """Train, and print one line of JSON."""
    options = argparse.ArgumentParser()
    options.add_argument("--model", type=Path)
    options.add_argument("--data", type=Path)
    options.add_argument("--out", type=Path)
    options.add_argument("--set", action="append", default=[])
    options.add_argument("--without", choices=[*FEATURES])
    options.add_argument("--list", action="store_true", help="what can be left out")
    chosen = options.parse_args()
    if chosen.list:
        print(json.dumps([*FEATURES]))
        return
    if chosen.without:
        FEATURES[chosen.without]()
    replace(macai.finetune, "Team", Counted)
    recipe = load_recipe(find_recipe("lora"), chosen.set)
    loaded = load_model(chosen.model)
    reports: list[Report] = []
    for event in macai.finetune.finetune(
        recipe, loaded, data=chosen.data, out=chosen.out, force=True
    ):
        if isinstance(event, Started):
            workers, began = event.workers, time.process_time()
        elif isinstance(event, Report):
            reports.append(event)
            ended = time.process_time()
    summary = event
    assert isinstance(summary, Summary)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)  # all that workers did, to load as well
    result = {
        "steps": len(reports),
        "real_tokens": summary.real_tokens,
        "processed_tokens": summary.processed_tokens,
        "learnt_tokens": sum(report.learnt_tokens for report in reports),
        "useful_share": Counted.useful / Counted.computed,
        "train_seconds": sum(report.seconds for report in reports),
        "train_cpu_seconds": ended - began + children.ru_utime + children.ru_stime,
        "mlx_peak_bytes": summary.peak_memory_bytes,
        "valid_loss": summary.valid_loss,
        "workers": workers,
        "fast_products": load_fast_blas().found or mx.default_device() != mx.cpu,
    }
    print(json.dumps(result))


def replace(where: Any, name: str, value: Any) -> None:
    """Put another in the place of what a module or a class has under this name."""
    assert hasattr(where, name), f"{where} has no {name} to replace any more"
    setattr(where, name, value)


class Counted(Team):
    """A team that counts what its parts hold, and how much of it is not padding."""

    useful = 0
    computed = 0

    def __call__(self, parts: Sequence[Plan], seed: int) -> Any:
        """Compute a step."""
        job: Any = self._job
        for part in parts:
            rows = [job.examples[row].read_tokens - job.prefix for row in part.rows]
            height, width = part.shape
            Counted.useful += sum(rows) + job.prefix
            Counted.computed += height * (width - job.prefix) + job.prefix
        return super().__call__(parts, seed)


def rows_at_random() -> None:
    """A fixed number of rows at random, padded to the longest: what other tuners do."""

    def plan_epoch(
        lengths: Sequence[int], *, tokens: int, seed: int, epoch: int, **_: Any
    ) -> Steps:
        rows = max(1, round(tokens / float(np.mean(lengths))))
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths))

        def step(number: int) -> list[Plan]:
            some = order[number * rows : (number + 1) * rows].tolist()
            return [Plan(tuple(some), max(int(lengths[row]) for row in some))]

        return Steps(step, np.arange(-(-len(lengths) // rows)))

    replace(macai.finetune.wanted, "plan_epoch", plan_epoch)


def one_width() -> None:
    """Rows in order of length, so many as the budget holds, but all as wide as the longest row."""

    def widths_for(lengths: Sequence[int]) -> list[int]:
        return [-(-max(lengths) // ROW_STEP) * ROW_STEP]

    replace(macai.data.batches, "widths_for", widths_for)


def whole_head() -> None:
    """Logits of every token, learnt or not."""
    everywhere = macai.train.loss._whole
    replace(macai.finetune, "logits_for", lambda model: everywhere)


def no_prefix() -> None:
    """What all rows begin with is computed for each of them."""
    replace(macai.finetune.wanted, "shared_prefix", lambda examples: 0)


def mlx_ops() -> None:
    """MLX's own norms, rotations, attention and SwiGLU, which its CPU backend takes apart."""
    replace(macai.train.job, "cpu_ops", lambda model: nullcontext())


def mlx_loss() -> None:
    """The cross entropy and its gradient by MLX, exp by exp."""
    gradient = macai.train.gradient.Gradient
    made = gradient.__init__

    def by_mlx(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        self._on_cpu = False

    replace(gradient, "__init__", by_mlx)


def head_at_once() -> None:
    """The head and its loss of all learnt tokens at once."""
    replace(macai.train.chunked, "PIECE_BYTES", 1 << 62)


def returned_memory() -> None:
    """Memory that is freed goes back to the system, as the C library has it."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            library.mallopt(parameter, 128 << 10)


def not_compiled() -> None:
    """A step handed out operation by operation; on a CPU it always is."""
    replace(macai.train.gradient, "is_recomputed", lambda model: True)


FEATURES: dict[str, Callable[[], None]] = {
    "token-budget": rows_at_random,
    "widths": one_width,
    "learnt-rows head": whole_head,
    "shared prefix": no_prefix,
    "closed-form ops": mlx_ops,
    "numpy loss": mlx_loss,
    "head in pieces": head_at_once,
    "kept memory": returned_memory,
    "compiled step": not_compiled,
}


if __name__ == "__main__":
    main()
