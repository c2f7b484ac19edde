"""Training steps of the recipe `intents` by one process and by several, in turns.

    python -m benchmarks.bench_workers [--workers 2] [--tokens 320] [--steps 10]

Gives real tokens a second of each over the same rows, optimiser included, and the ratio of both.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX

# isort: split
import mlx.nn as nn

from benchmarks.harness import in_turns, tell
from macai.catalog import find_recipe, locate_model
from macai.data.batches import divide, plan_epoch, shared_prefix
from macai.data.rows import read_splits
from macai.data.tokens import Example, prepare
from macai.finetune.wanted import LEAST_ROWS
from macai.models.blas import load_fast_blas
from macai.models.cpu_ops import cpu_ops
from macai.models.load import LoadedModel, load_model
from macai.models.lora import add_lora, target_paths
from macai.recipe import load_recipe
from macai.train.gradient import Gradient
from macai.train.job import Job
from macai.train.loop import Report, train
from macai.train.loss import Logits, logits_for
from macai.train.machine import cores
from macai.train.optimizer import init
from macai.train.team import Team


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--tokens", type=int, default=320)
    options.add_argument("--steps", type=int, default=10)
    chosen = options.parse_args()

    assert load_fast_blas().found or sys.platform != "linux"
    loaded = load_model(locate_model("smollm2-135m", progress=lambda what, done, total: None))
    logits = logits_for(loaded.model)
    paths = target_paths(loaded.model, ["all-linear"])
    adapt = partial(add_lora, paths=paths, rank=16, alpha=32.0)
    adapt(loaded.model)
    path = load_recipe(find_recipe("intents")).data.path
    assert path is not None
    rows = read_splits(path).train
    (prepared,) = prepare([rows], loaded.tokenizer, max_length=512, truncation="error")
    with ExitStack() as stack:
        stack.enter_context(cpu_ops(loaded.model))
        examples, tokens = prepared.examples, chosen.tokens
        sides = {
            f"{n} processes": partial(
                _step, _run(stack, loaded, logits, adapt, examples, n, tokens)
            )
            for n in (1, chosen.workers)
        }
        measured = in_turns(sides, chosen.steps, warm_up=1)  # in the first step the workers start
    tell("workers", measured, to="1 processes", blas_threads=cores())


def _step(reports: Iterator[Report]) -> Mapping[str, float]:
    report = next(reports)
    return {"tokens_per_second": report.real_tokens / report.seconds, "seconds": report.seconds}


def _run(
    stack: ExitStack,
    loaded: LoadedModel,
    logits: Logits,
    adapt: Callable[[nn.Module], None],
    examples: Sequence[Example],
    workers: int,
    tokens: int,
) -> Iterator[Report]:
    """Return the steps of a run as `macai train` would take them; all runs share the adapter."""
    import mlx.optimizers as optim

    lengths = [e.read_tokens for e in examples]
    plans = plan_epoch(lengths, tokens=tokens, micro_tokens=tokens, seed=0, epoch=0)
    steps = [[part for plan in step for part in divide(plan, lengths, workers)] for step in plans]
    enough_rows = len(examples) >= LEAST_ROWS * sum(map(len, steps))
    job = Job(
        workers=workers,
        model=loaded.path,
        prepare=adapt,
        examples=examples,
        pad_id=0,
        prefix=shared_prefix(examples) if enough_rows else 0,
    )
    team = stack.enter_context(Team(loaded.model, Gradient(loaded.model, logits), job))
    optimizer = optim.AdamW(learning_rate=1e-4, bias_correction=True)
    init(optimizer, loaded.model)
    return train(
        loaded.model,
        optimizer,
        steps,
        gradient=team,
        rate=lambda step: 1e-4,
        max_grad_norm=1.0,
        seed=0,
    )


if __name__ == "__main__":
    main()
