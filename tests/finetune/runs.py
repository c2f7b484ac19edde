"""A recipe of a run of seconds, its rows, and what it leaves behind."""

import json

import numpy as np

from macai.recipe import Adapter, Batch, Data, Optimizer, Recipe, Schedule, Train
from macai.train.checkpoint import load_checkpoint

FILES = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "checkpoint.safetensors",
    "metrics.jsonl",
    "recipe.toml",
]
TIMINGS = ("seconds", "step_seconds", "valid_seconds", "tokens_per_second", "peak_memory_bytes")


def small(**changes):
    """16 steps in two epochs, with dropout, and with validations and checkpoints in between."""
    values = {
        "rate": 1e-2,
        "dropout": 0.1,
        "targets": ("q_proj", "down_proj"),
        "rank": 4,
        "epochs": 2,
        "eval_every": 3,
        "save_every": 4,
        "seed": 0,
        "schedule": "cosine",
        "data": Data(),
    } | changes
    return Recipe(
        model="tiny",
        adapter=Adapter(rank=values["rank"], dropout=values["dropout"], targets=values["targets"]),
        optimizer=Optimizer(learning_rate=values["rate"]),
        schedule=Schedule(name=values["schedule"], warmup_steps=2),
        batch=Batch(tokens=256, micro_tokens=96),
        data=values["data"],
        train=Train(
            epochs=values["epochs"],
            seed=values["seed"],
            eval_every=values["eval_every"],
            save_every=values["save_every"],
        ),
    )


def write_rows(file, numbers):
    rows = (
        {
            "prompt": f"What is {i} plus {i}? " * (1 + i % 4),
            "completion": f"It is {2 * i}. " * (1 + i % 3),
        }
        for i in numbers
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def untimed(values):
    return {k: v for k, v in values.items() if k not in TIMINGS}


def outcome(out):
    """All a run leaves in its folder, apart from timings; equal means equal to the last bit."""
    assert sorted(p.name for p in out.iterdir()) == FILES
    checkpoint = load_checkpoint(out)
    return {
        "adapter": (out / "adapter_model.safetensors").read_bytes(),
        "config": (out / "adapter_config.json").read_text(),
        "recipe": (out / "recipe.toml").read_text(),
        "arrays": bits(checkpoint.arrays),
        "fingerprint": checkpoint.state["run"],
        "progress": untimed(checkpoint.state["progress"]),
        "metrics": metrics(out),
    }


def bits(arrays):
    return {k: (str(v.dtype), v.shape, bytes(memoryview(v))) for k, v in arrays.items()}


def metrics(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [untimed(json.loads(line)) for line in lines]


def of_type(events, kind):
    return [e for e in events if isinstance(e, kind)]


def assert_same_but_for_rounding(out, other, *, most=1e-4):
    ours, theirs = (load_checkpoint(folder).arrays for folder in (out, other))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        a, b = np.array(ours[name]), np.array(value)
        assert np.abs(a - b).max() <= most * np.abs(b).max(), name
