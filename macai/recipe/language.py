"""A recipe that tunes a language model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from macai.recipe.fields import (
    LOG,
    OPTIMIZER,
    SCHEDULE,
    Optimizer,
    Schedule,
    Strings,
    by_name,
    number,
    strings,
)

ALL_LINEAR = "all-linear"
"""In `adapter.targets`: every linear layer of every block, which is the default."""

_TARGETS = Strings(
    what="name",
    one="module",
    example='write ["q_proj", "v_proj"] or ["all-linear"]',
    alone=ALL_LINEAR,
)
_WHOLE = Strings(
    what="name", one="module", example='write ["embed_tokens", "norm"]', may_be_empty=True
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What is trained, and how large it is.

    Attributes:
        method: lora or dora, an adapter; or full, all weights of the model itself.
        rank: Columns of the low-rank factors.
        alpha: Scale of the update before division: the update is multiplied by alpha / rank.
        use_rslora: rsLoRA (arXiv:2312.03732): multiply by alpha / sqrt(rank) instead, so that a
            high rank learns as fast as a low one.
        rank_pattern: Ranks of some layers, by the end of their path: {q_proj = 4}.
        alpha_pattern: Likewise the alpha of some layers.
        dropout: Probability in [0, 1) that an input of the adapter is zeroed while training.
        targets: Suffixes of module names such as "self_attn.q_proj", or the one word "all-linear".
        layers: How many blocks get an adapter, counted from the last; 0 is all. Gradients are
            computed down to the first of them only, so fewer make a step cheaper. With the method
            full, only their weights are trained.
        modules_to_save: Modules to train whole beside the adapter, by the end of their path, such
            as "embed_tokens", "lm_head" or "model.norm"; as large in the file as in the model.
        init: Where A and B start. default: A random, B zero, as PEFT; pissa: from the directions of
            the weight that matter most; loftq: from what a quantised base lost of `original`.
        original: The folder of the model that a quantised base was made from.
    """

    method: Literal["lora", "dora", "full"] = "lora"
    rank: int = number(16, 1)
    alpha: float = number(32.0, 0, low_included=False)
    use_rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata=by_name(1))
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata=by_name(0))
    dropout: float = number(0.0, 0, 1, high_included=False)
    targets: tuple[str, ...] = strings((ALL_LINEAR,), _TARGETS)
    layers: int = number(0, 0)
    modules_to_save: tuple[str, ...] = strings((), _WHOLE)
    init: Literal["default", "pissa", "loftq"] = "default"
    original: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What is made small.

    Attributes:
        name: sft learns what is said. The others learn which of two answers is better, from rows of
            {"prompt", "chosen", "rejected"}; kto from {"prompt", "completion", "label"}.
        label_smoothing: In sft the share of a token's loss that goes to all other tokens; in dpo
            the share of rows whose answers are thought to be the wrong way round.
        beta: How closely dpo and kto stay to the model without the adapter, and how steep simpo's
            comparison is, which needs 2 or more; in orpo the weight of the comparison.
        margin: By how much simpo wants the better answer to be the likelier one.
        good_weight: Of kto's rows whose label is true.
        bad_weight: Of those whose label is false.
    """

    name: Literal["sft", "dpo", "orpo", "kto", "simpo"] = "sft"
    label_smoothing: float = number(0.0, 0, 0.5, high_included=False)
    beta: float = number(0.1, 0, low_included=False)
    margin: float = number(0.5, 0)
    good_weight: float = number(1.0, 0)
    bad_weight: float = number(1.0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """How many rows make a step.

    Attributes:
        tokens: Tokens of a step, padding included: rows times width stays within it. A row counts
            up to its last learnt token, and with what it shares with other rows.
        row_multiple: A step has a multiple of so many rows if it has more. With 2, two processes
            that share the steps have as many rows each.
        micro_tokens: Tokens computed at once, which decides the memory needed and nothing else: the
            gradients of a step's parts are added. 0: the whole step.
        recompute: Keep only the input of each block for the backward pass and compute the rest
            again (gradient checkpointing): less memory for about a third more time, and the same
            result to the last bit.
        must_fit: Refuse a run that is expected to need more memory than there is.
    """

    tokens: int = number(2048, 1)
    row_multiple: int = number(1, 1)
    micro_tokens: int = number(0, 0)
    recompute: bool = False
    must_fit: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """A data set that is learnt along with `data.path`.

    Attributes:
        path: A file of rows, all of which are learnt from, or a folder, of which those of its train
            file are. Relative as `data.path` is.
        weight: How often each of its rows is seen in an epoch, which is a pass over `data.path`: 2
            is twice; 0.25 another quarter of them each epoch, and all of them in four.
    """

    path: Path
    weight: float = number(1.0, 0, low_included=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is learnt from.

    Attributes:
        path: A folder or file of rows: .jsonl, .csv or .parquet; or "hub:owner/name". Relative to
            the recipe's file when written in one, to the current folder in `--set`; absolute once
            loaded. None: it must come from --data.
        mix: Other data sets to learn from as well, [{path = "general.jsonl", weight = 0.5}]: some
            of what the model knew keeps it from forgetting. Validated is on `path` alone.
        max_length: Tokens a row may have.
        truncation: What becomes of a longer row: it stops the run, is left out, loses its end, or
            is cut so that it keeps its end.
        strict: Refuse validation rows that are training rows as well, and replies without a mark
            that ends them, as `macai data check` does.
    """

    path: Path | None = None
    mix: tuple[Mixed, ...] = ()
    max_length: int = number(1024, 2)
    truncation: Literal["error", "drop", "split", "keep-end"] = "error"
    strict: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """How long the run is and when it looks up.

    Attributes:
        epochs: Passes over the data; 0.5 stops half way through the first.
        seed: Decides the data order, the adapter's start and the dropout.
        eval_every: Steps between two evaluations on the validation rows; 0 is once an epoch.
        patience: Validations in a row without a better loss after which the run ends; 0 never.
        save_every: Steps between two checkpoints to resume from; 0 is only the last one.
        workers: Processes that each compute a part of every step; they change its time, and its
            result by rounding only (dropout aside, which draws for each part). 0: as many as the
            machine has use for: 2 where MLX computes on the CPU, else 1. On a GPU always 1.
        log: Other programs that the run is written for, besides its own report: "tensorboard" and
            "wandb", each with the extra of its name: pip install 'macai[tensorboard]'.
    """

    epochs: float = number(3.0, 0, low_included=False)
    seed: int = number(0, 0, 2**32 - 1)
    eval_every: int = number(0, 0)
    patience: int = number(0, 0)
    save_every: int = number(50, 0)
    workers: int = number(0, 0, 64)
    log: tuple[Literal["tensorboard", "wandb"], ...] = strings((), LOG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the model is asked before the first step and after the last, for the run's report.

    Attributes:
        rows: How many validation rows; 0: none.
        tokens: Of each reply, at most.
    """

    rows: int = number(3, 0, 20)
    tokens: int = number(32, 1, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run, checked.

    Attributes:
        model: What `macai.catalog.locate_model` takes: a catalogue name, a folder, a file or a
            hub id. A value that starts with ./ or ../ is relative as `data.path` is.
        kind: The kind of model.
    """

    model: str
    kind: Literal["language"] = "language"
    adapter: Adapter = Adapter()
    loss: Loss = Loss()
    optimizer: Optimizer = OPTIMIZER
    schedule: Schedule = SCHEDULE
    batch: Batch = Batch()
    data: Data = Data()
    train: Train = Train()
    sample: Sample = Sample()
