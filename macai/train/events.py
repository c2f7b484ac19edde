"""What a run tells its caller, besides the reports of its steps."""

from dataclasses import dataclass

from macai.train.loop import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The run is set up; `first_step` is above 0 when it was resumed.

    Attributes:
        train_tokens: Of the rows to learn from.
        learnt_tokens: Those of them that the loss counts.
        lengths: Of these rows: (from, below, how many) tokens.
        shared_prefix: Tokens that all rows begin with, computed once a part.
        real_share: The part of a step's tokens that is no padding, 0 to 1.
        workers: Processes that each compute a part of a step.
        expected_memory_bytes: What the run is expected to report as its peak.
        available_memory_bytes: What there is for it; 0 where the system does not say.
    """

    train_rows: int
    valid_rows: int
    dropped_rows: int
    shortened_rows: int
    train_tokens: int
    learnt_tokens: int
    lengths: list[tuple[int, int, int]]
    trainable_parameters: int
    steps: int
    steps_per_epoch: int
    first_step: int
    shared_prefix: int
    real_share: float
    workers: int
    expected_memory_bytes: int
    available_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """Memory ran out in `step`: from `first_step` on steps are computed in smaller parts.

    Attributes:
        why: What ran out.
        micro_tokens: Tokens of a part, at most.
    """

    step: int
    why: str
    micro_tokens: int
    first_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Validating:
    """A validation is under way: `done` of `total` batches."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """The validation loss after `step`, and whether its adapter became the one kept."""

    step: int
    loss: float
    best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The run was asked to stop; a checkpoint of `step` is in the output folder."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The result, under the names `macai train --json` prints.

    Attributes:
        adapter: Its folder; None where the whole model was trained.
        model: The folder of the whole model; None for an adapter.
        train_loss: Mean over the learnt tokens of the last epoch begun, in nats.
        tokens_per_second: Real tokens over the wall time of the steps, making batches included.
        workers: Processes that computed a step.
        peak_memory_bytes: The most that MLX held, in all of them.
        seconds: Wall time of the steps and the validations, of all parts of a resumed run.
    """

    adapter: str | None
    model: str | None
    steps: int
    epochs: float
    train_loss: float
    valid_loss: float
    best_valid_loss: float
    real_tokens: int
    processed_tokens: int
    tokens_per_second: float
    workers: int
    peak_memory_bytes: int
    seconds: float


Event = Started | Lowered | Report | Validating | Validated | Stopped | Summary
