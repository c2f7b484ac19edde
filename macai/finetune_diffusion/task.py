"""What is trained, as the run sees it: one of three, alike but for what they are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from macai.diffusion.training.plan import Slot
from macai.finetune_diffusion.gradient import Batch, Loss

Make = Callable[[], Batch]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A model to be trained, and what that takes.

    Attributes:
        model: Its trainable parameters are what is trained.
        loss: Sum over the pictures of a batch.
        part: (step, slots of one size) -> the batch.
        validation: Makes of the batches to validate on, always the same.
        prepare: What can be computed before the first step, one after the other.
        sample: Makes pictures with the weights as they are, uint8 [H, W, 3], side by side.
        save: Writes the result of the weights as they are to the output folder; for a model that
            is large, to `files`, of which `finish` makes the folder at the end.
        finish: Makes what is written at the end of it; returns nothing.
        files: What an earlier run may have left in the output folder.
        random: Parts that begin with random weights.
        cut_captions: See Started.
        name: Of the base's weights.
    """

    model: nn.Module
    loss: Loss
    part: Callable[[int, Sequence[Slot]], Batch]
    validation: Sequence[Make]
    prepare: Sequence[Callable[[], object]]
    sample: Callable[[], NDArray[np.uint8]]
    save: Callable[[], None]
    finish: Callable[[], None]
    files: Sequence[str]
    random: tuple[str, ...]
    cut_captions: int
    name: str
