"""What the tables of both kinds of recipe are made of, and the two they have in common."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The finite numbers from `low` to `high`, either end included or not."""

    low: float
    high: float = math.inf
    low_included: bool = True
    high_included: bool = True

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.low_included else value > self.low
        below = value <= self.high if self.high_included else value < self.high
        return above and below and abs(value) < math.inf  # false for NaN

    def __str__(self) -> str:
        low = f"{'at least' if self.low_included else 'greater than'} {self.low}"
        if self.high == math.inf:
            return f"finite and {low}"
        return f"{low} and {'at most' if self.high_included else 'less than'} {self.high}"


def number(default: float, low: float, high: float = math.inf, **included: bool) -> Any:
    """Return a field of a number in a range; `included` are those of Range."""
    return field(default=default, metadata={"range": Range(low=low, high=high, **included)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Strings:
    """What a list of strings holds.

    Attributes:
        what: What each is, in the singular.
        one: The same, where one is wanted and none is there.
        example: What to write.
        alone: A word that stands for all others; None for none.
        may_be_empty: Whether a list of none means something.
    """

    what: str
    one: str
    example: str
    alone: str | None = None
    may_be_empty: bool = False


def strings(default: tuple[str, ...], of: Strings) -> Any:
    """Return a field of a list of strings."""
    return field(default=default, metadata={"strings": of})


LOG = Strings(
    what="program", one="program", example='write ["tensorboard"] or ["wandb"]', may_be_empty=True
)


def by_name(low: float) -> dict[str, Range]:
    """Return the metadata of a field of a table of numbers: at least `low`, but more than 0."""
    return {"range": Range(low=low, low_included=low > 0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """How a gradient becomes a step.

    Attributes:
        name: The update rule: see docs/methods.md.
        learning_rate: Peak step size, which the schedule scales.
        beta1: Decay of the mean of gradients: AdamW's, Lion's, and Muon's momentum.
        beta2: Decay of AdamW's mean of squared gradients, and of Lion's second mean: 0.999 averages
            over about a thousand steps, so a run of fewer keeps the large gradients of its first
            steps in mind throughout.
        weight_decay: Share of a weight that is taken off a step, times the learning rate.
        loraplus_lr_ratio: LoRA+ (arXiv:2402.12354): how many times the learning rate of A is that
            of B. The paper has 2 to 16, with a lower learning rate; 1 is plain LoRA.
        max_grad_norm: L2 norm over all gradients above which they are scaled down; 0 never does.
    """

    name: Literal["adamw", "adamw8bit", "adafactor", "lion", "muon"] = "adamw"
    learning_rate: float = number(2e-4, 0, low_included=False)
    beta1: float = number(0.9, 0, 1, high_included=False)
    beta2: float = number(0.999, 0, 1, high_included=False)
    weight_decay: float = number(0.0, 0)
    loraplus_lr_ratio: float = number(1.0, 0, low_included=False)
    max_grad_norm: float = number(1.0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The learning rate over the run.

    Attributes:
        name: Its shape after the warm-up. All but constant end at `floor`: cosine and linear fall
            from the peak on; wsd (warm-up, stable, decay; arXiv:2404.06395) stays there and falls
            in a line in the end.
        warmup_steps: Steps in which it rises to its peak.
        floor: What it ends at, as a share of the peak.
        decay: The share of the run in which wsd falls.
    """

    name: Literal["cosine", "constant", "linear", "wsd"] = "cosine"
    warmup_steps: int = number(10, 0)
    floor: float = number(0.0, 0, 1)
    decay: float = number(0.2, 0, 1, low_included=False)


OPTIMIZER = Optimizer()
SCHEDULE = Schedule()
