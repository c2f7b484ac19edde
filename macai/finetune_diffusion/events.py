"""What a run on pictures tells its caller, besides the reports of its steps."""

from dataclasses import dataclass

from macai.train.events import Stopped, Validated, Validating
from macai.train.loop import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparing:
    """Pictures are encoded before the first step: `done` of `total`."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The run is set up; `first_step` is above 0 when it was resumed.

    Attributes:
        sizes: How many pictures are brought to each size, "512x512".
        enlarged: How many of them are smaller than it.
        cut_captions: How many captions have more tokens than the text encoders take.
        random: Parts that begin with random weights.
        workers: Processes that each compute a part of a step.
    """

    train_images: int
    valid_images: int
    class_images: int
    sizes: dict[str, int]
    enlarged: int
    cut_captions: int
    random: tuple[str, ...]
    trainable_parameters: int
    steps: int
    steps_per_epoch: int
    first_step: int
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Pictures were made with the weights after `step`; `file` is a PNG of all of them."""

    step: int
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The result, under the names `macai train --json` prints.

    Attributes:
        adapter: The folder with the LoRA's files; None if something else was trained.
        model: The folder of the model; None if a LoRA was trained.
        train_loss: Mean over the pictures of the last epoch begun.
        valid_loss: None without pictures to validate on.
        images: Pictures seen, class pictures aside.
        images_per_second: Of them over the wall time of the steps.
        workers: Processes that computed a step.
        peak_memory_bytes: The most that MLX held, in all of them.
        seconds: Wall time of steps, validations and samples, of all parts of a resumed run.
    """

    adapter: str | None
    model: str | None
    steps: int
    epochs: float
    train_loss: float
    valid_loss: float | None
    best_valid_loss: float | None
    images: int
    images_per_second: float
    workers: int
    peak_memory_bytes: int
    seconds: float


Event = Preparing | Started | Report | Validating | Validated | Sampled | Stopped | Summary
