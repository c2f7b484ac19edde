"""Steps of LoRA training, as `macai train` takes them, by the length of the rows."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.bench.cases.held import Held
from macai.bench.figure import Case, Figure, Work
from macai.bench.work import work_of
from macai.data.batches import Batch, Plan, make_batch
from macai.data.tokens import Example
from macai.models.cpu_ops import cpu_ops
from macai.models.load import LoadedModel, load_model
from macai.models.lora import add_lora, target_paths
from macai.train.gradient import Gradient
from macai.train.loop import Report, train
from macai.train.loss import logits_for
from macai.train.optimizer import make_optimizer

LENGTHS = {True: (64, 128, 256), False: (128, 512, 1024)}
STEP_TOKENS = {True: 256, False: 2048}
"""Of one step; what is not a multiple of a row's length is left out."""
PASSES = 2
"""Over frozen weights: forward, and backward to what goes into each layer. A weight that is learnt
would cost a third."""


def open_train(path: Path, subject: str, *, quick: bool) -> list[Case]:
    """Load a language model, put LoRA of rank 16 into all linear layers, list what to measure."""
    loaded = load_model(path)
    add_lora(loaded.model, target_paths(loaded.model, ["all-linear"]), rank=16, alpha=32.0)
    gradient = Gradient(loaded.model, logits_for(loaded.model))
    cases: list[Case] = []
    for length in LENGTHS[quick]:
        rows = max(1, STEP_TOKENS[quick] // length)
        cases.append(Steps(loaded, gradient, subject, length, rows))
    return [*cases, Held("train", subject)]


class Steps:
    """Step after step on the same random rows, all of which is learnt."""

    def __init__(
        self, loaded: LoadedModel, gradient: Gradient, subject: str, length: int, rows: int
    ) -> None:
        self._model = loaded.model
        work = work_of(loaded.model, [mx.zeros((rows, length - 1), mx.int32)], loaded.model)
        tokens = rows * length
        at: dict[str, Any] = {"length": length, "rows": rows, "processes": 1}
        self.figures: Mapping[str, Figure] = {
            "speed": Figure(
                section="train",
                name="training",
                subject=subject,
                unit="tokens/s",
                better="higher",
                parameters=at,
                work=Work(PASSES * work.flops / tokens, PASSES * work.bytes / tokens),
            ),
            "peak": Figure(
                section="train",
                name="peak memory",
                subject=subject,
                unit="bytes",
                better="lower",
                parameters=at,
            ),
        }
        self._reports = _reports(loaded.model, gradient, _rows(length, rows))

    def sample(self) -> Mapping[str, float]:
        """Take one step."""
        mx.reset_peak_memory()
        with cpu_ops(self._model):
            report = next(self._reports)
        return {
            "speed": report.real_tokens / report.seconds,
            "peak": float(mx.get_peak_memory()),
        }


def _rows(length: int, rows: int) -> list[Example]:
    rng = np.random.default_rng(length)
    learn = np.arange(length) > 0
    return [
        Example(rng.integers(1, 256, length).astype(np.int32), learn, f"row {n}")
        for n in range(rows)
    ]


def _reports(model: nn.Module, gradient: Gradient, examples: Sequence[Example]) -> Iterator[Report]:
    """Yield a report of each step; there is always another."""
    plan = Plan(tuple(range(len(examples))), max(e.read_tokens for e in examples))
    make = partial[Batch](make_batch, examples, plan, pad_id=0)
    return train(
        model,
        make_optimizer(
            "adamw", model, learning_rate=1e-6, beta1=0.9, beta2=0.999, weight_decay=0.0
        ),
        itertools.repeat([(0, make)]),
        gradient=gradient,
        rate=lambda step: 1e-6,  # the numbers stay finite for as long as this goes on
        max_grad_norm=1.0,
        seed=0,
    )
