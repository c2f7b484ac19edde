"""Whole runs: resumed ones, and those that several processes compute."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx

from macai.finetune import finetune
from macai.models.arrays import load_arrays
from macai.recipe import Adapter, Batch, Optimizer, Recipe, Schedule, Train
from macai.selftest.gradients import tolerance
from macai.selftest.proof import (
    RANK,
    Finding,
    Proof,
    Subject,
    largest_difference,
    unequal_bits,
    within,
)
from macai.train.checkpoint import FILE, load_checkpoint
from macai.train.events import Stopped, Summary
from macai.train.loop import Report
from macai.train.metrics import METRICS

ROWS, STOP = 12, 3
TIMINGS = ("seconds", "step_seconds", "valid_seconds", "tokens_per_second", "peak_memory_bytes")


def recipe(*, dropout: float = 0.1, workers: int = 1) -> Recipe:
    """Return a run of two epochs with dropout, checked and saved in between."""
    return Recipe(
        model="selftest",
        adapter=Adapter(rank=RANK, dropout=dropout, targets=("q_proj", "down_proj")),
        optimizer=Optimizer(learning_rate=5e-3),
        schedule=Schedule(warmup_steps=2),
        batch=Batch(tokens=256, micro_tokens=128),
        train=Train(epochs=2, eval_every=2, save_every=2, workers=workers),
    )


def write_rows(folder: Path) -> Path:
    """Write a data set of short questions and answers, and return its folder."""
    folder.mkdir(exist_ok=True)
    for split, numbers in (("train", range(ROWS)), ("valid", range(ROWS, ROWS + 3))):
        rows = (
            {
                "prompt": f"What is {i} plus {i}? " * (1 + i % 3),
                "completion": f"It is {2 * i}. " * (1 + i % 4),
            }
            for i in numbers
        )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def run(
    subject: Subject,
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    stop_at: int = 0,
) -> Path:
    """Run a recipe to its end, or until so many steps are done; return its folder."""
    done, event = [0], None
    data = write_rows(subject.scratch / "data")
    for event in finetune(
        recipe,
        subject.load(),
        data=data,
        out=out,
        resume=resume,
        should_stop=lambda: done[0] == stop_at,
    ):
        if isinstance(event, Report):
            done[0] = event.step
    assert isinstance(event, Stopped if stop_at else Summary)
    return out


def metrics(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, timings aside."""
    lines = (out / METRICS).read_text(encoding="utf-8").splitlines()
    values = [json.loads(line) for line in lines]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in values]


def find_resuming(subject: Subject) -> Finding:
    """Compare a run that was stopped and resumed with one that was not."""
    whole = run(subject, recipe(), subject.scratch / "whole")
    out = run(subject, recipe(), subject.scratch / "resumed", stop_at=STOP)
    mx.random.seed(99)  # what else was drawn meanwhile is no matter
    run(subject, recipe(), out, resume=True)
    ours, theirs = (load_checkpoint(folder).arrays for folder in (out, whole))
    adapters = [load_arrays(folder / "adapter_model.safetensors")[0] for folder in (out, whole)]
    if any(a.keys() != b.keys() for a, b in ((ours, theirs), adapters)):
        return Finding(False, "other arrays are saved")
    bits = sum(
        unequal_bits(list(a.values()), [b[name] for name in a])
        for a, b in ((ours, theirs), (adapters[0], adapters[1]))
    )
    same_steps = metrics(out) == metrics(whole)
    size = (whole / FILE).stat().st_size
    steps = "the same steps" if same_steps else "other losses or rows in a step"
    return Finding(
        not bits and same_steps,
        f"{bits} bytes of weights and optimiser differ, of {size}; {steps} after step {STOP}",
    )


def find_workers(subject: Subject) -> Finding:
    """Compare a run of two processes with one of one."""
    if mx.default_device() != mx.cpu:
        return Finding(None, "on a GPU one process computes")
    folders = [
        run(subject, recipe(dropout=0.0, workers=n), subject.scratch / f"of {n}") for n in (1, 2)
    ]
    one, two = (load_checkpoint(folder).arrays for folder in folders)
    names = [name for name in one if name.startswith("optimizer.") and name.endswith(".m")]
    differences = [largest_difference(two[name], one[name]) for name in names]
    losses = zip(*(_losses(folder) for folder in folders), strict=True)
    return within(
        tolerance(),
        losses=max(abs(b / a - 1) for a, b in losses),
        gradients=max(differences),
    )


def _losses(out: Path) -> list[float]:
    return [line["loss"] for line in metrics(out) if "loss" in line]


PROOFS = (
    Proof(
        name="resuming",
        claim="a resumed run is the uninterrupted one to the last bit",
        find=find_resuming,
        any_model=False,
    ),
    Proof(
        name="workers",
        claim="two processes take the steps of one",
        find=find_workers,
        any_model=False,
    ),
)
