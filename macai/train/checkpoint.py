"""Everything a run needs to go on, in one file, replaced in one rename."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_unflatten

from macai.errors import TrainingError
from macai.models.arrays import load_arrays, named_arrays, save_arrays
from macai.train.optimizer import init

FILE = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run's state after some step.

    Attributes:
        arrays: Trainable parameters under "model.", the optimiser's state under "optimizer.", what
            a caller has besides under "extra.".
        state: Plain values: steps done, counters, best loss. Neither schedule nor random state nor
            data cursor is among them: all three are functions of the step.
    """

    arrays: dict[str, mx.array]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: optim.Optimizer,
    state: dict[str, Any],
    extra: Mapping[str, mx.array] | None = None,
) -> None:
    """Write the run's state to `folder`, atomically."""
    arrays = {f"model.{k}": v for k, v in named_arrays(model.trainable_parameters()).items()}
    arrays |= {f"optimizer.{k}": v for k, v in named_arrays(optimizer.state).items()}
    arrays |= {f"extra.{name}": array for name, array in (extra or {}).items()}
    save_arrays(folder / FILE, arrays, {"macai": json.dumps(state)}, checked=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint; TrainingError if there is none or it is broken."""
    file = folder / FILE
    if not file.is_file():
        raise TrainingError(
            f"{folder}: no checkpoint to resume from",
            hint="start anew: leave out --resume",
        )
    try:
        arrays, metadata = load_arrays(file)
        state = json.loads(metadata["macai"])
    except (RuntimeError, KeyError, json.JSONDecodeError) as e:
        raise TrainingError(
            f"{file}: not a checkpoint of macai train: {e}",
            hint="the run cannot go on: start anew with --force; an adapter beside it may be whole",
        ) from e
    return Checkpoint(arrays, state)


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Put a checkpoint's arrays into the model and the optimiser; every name and shape must fit."""
    parts: dict[str, dict[str, mx.array]] = {"model": {}, "optimizer": {}}
    for name, value in checkpoint.arrays.items():
        part, _, key = name.partition(".")
        parts.setdefault(part, {})[key] = value
    init(optimizer, model)
    for part, current in (
        ("model", named_arrays(model.trainable_parameters())),
        ("optimizer", named_arrays(optimizer.state)),
    ):
        saved = parts.pop(part)
        for name in sorted(saved.keys() | current.keys()):
            if name not in saved or name not in current or saved[name].shape != current[name].shape:
                raise TrainingError(
                    f"the checkpoint does not fit the run: {part}.{name} differs",
                    hint="resume with the model and the recipe it was started with",
                )
        if part == "model":
            model.update(tree_unflatten(list(saved.items())))
        else:
            optimizer.state = tree_unflatten(list(saved.items()))
    mx.eval(model.trainable_parameters(), optimizer.state)
