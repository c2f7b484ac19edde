"""What a run makes small, the loss of tokens or of two answers, and all that differs by it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import mlx.nn as nn

from macai.data.batches import Batch, Lengths, Plan, make_batch
from macai.data.pairs import PairBatch, make_pairs, pair_lengths, prepare_pairs
from macai.data.rows import Row
from macai.data.store import sizes_of
from macai.data.tokens import Example, Prepared, Truncation, prepare
from macai.train.gradient import Gradient, Sums
from macai.train.loss import Logits, loss_value
from macai.train.losses import PairLoss
from macai.train.losses.compared import Options
from macai.train.preference import PairGradient, pair_loss_value

Parts = Iterable[tuple[int, Callable[[], Any]]]


class Objective(Protocol):
    """Plans count in its units: rows, or two at a time.

    Attributes:
        answers: Rows of a unit.
    """

    answers: ClassVar[int]

    def prepare(
        self,
        splits: Sequence[Iterable[Row]],
        tokenizer: Any,
        *,
        max_length: int,
        truncation: Truncation,
        end_ids: frozenset[int] | None = None,
        kept: Sequence[Any] | None = None,
    ) -> list[Prepared]:
        """Tokenise rows, as `macai.data.tokens.prepare` does."""
        ...

    def lengths(self, examples: Sequence[Example]) -> Lengths:
        """Return the tokens of each unit, as `macai.data.batches.plan_epoch` takes them."""
        ...

    def batch(self, examples: Sequence[Example], plan: Plan, *, pad_id: int, prefix: int) -> Any:
        """Return what the model computes at once."""
        ...

    def gradient(self, model: nn.Module, logits: Logits) -> Callable[[Parts, int], Sums]:
        """Return what computes the parts of a step."""
        ...

    def value(self, model: nn.Module, batch: Any, logits: Logits) -> tuple[float, int]:
        """Return the loss of a validation batch, as a sum, and over how many."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenObjective:
    """Cross entropy of the learnt tokens; a validation is without label smoothing."""

    answers: ClassVar[int] = 1
    label_smoothing: float = 0.0

    def prepare(
        self, splits: Sequence[Iterable[Row]], tokenizer: Any, **limits: Any
    ) -> list[Prepared]:
        """See Objective."""
        return prepare(splits, tokenizer, **limits)

    def lengths(self, examples: Sequence[Example]) -> Lengths:
        """See Objective."""
        return sizes_of(examples).read

    def batch(self, examples: Sequence[Example], plan: Plan, *, pad_id: int, prefix: int) -> Batch:
        """See Objective."""
        return make_batch(examples, plan, pad_id=pad_id, prefix=prefix)

    def gradient(self, model: nn.Module, logits: Logits) -> Callable[[Parts, int], Sums]:
        """See Objective."""
        return Gradient(model, logits, label_smoothing=self.label_smoothing)

    def value(self, model: nn.Module, batch: Batch, logits: Logits) -> tuple[float, int]:
        """See Objective."""
        return loss_value(model, batch, logits), batch.learnt_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PairObjective:
    """A loss of two answers: a step's is the mean over them."""

    answers: ClassVar[int] = 2
    loss: PairLoss
    options: Options

    def prepare(
        self, splits: Sequence[Iterable[Row]], tokenizer: Any, **limits: Any
    ) -> list[Prepared]:
        """See Objective."""
        return prepare_pairs(splits, tokenizer, form=self.loss.form, **limits)

    def lengths(self, examples: Sequence[Example]) -> Lengths:
        """See Objective."""
        return pair_lengths(examples)

    def batch(
        self, examples: Sequence[Example], plan: Plan, *, pad_id: int, prefix: int
    ) -> PairBatch:
        """See Objective."""
        return make_pairs(examples, plan, pad_id=pad_id, prefix=prefix)

    def gradient(self, model: nn.Module, logits: Logits) -> Callable[[Parts, int], Sums]:
        """See Objective."""
        return PairGradient(model, logits, self.loss, self.options)

    def value(self, model: nn.Module, batch: PairBatch, logits: Logits) -> tuple[float, int]:
        """See Objective."""
        return pair_loss_value(model, batch, logits, self.loss, self.options), batch.pairs


TOKENS = TokenObjective()
