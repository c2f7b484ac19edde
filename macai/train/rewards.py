"""How a loss of two answers rates them: what shows whether a preference is learnt."""

from dataclasses import dataclass, fields

import mlx.core as mx

from macai.models.arrays import scalar
from macai.train.losses import Compared, PairLoss
from macai.train.losses.compared import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """Sums over answers; see `PairLoss.reward`.

    Attributes:
        chosen: Of the better answers, or of those labelled good.
        rejected: Of the others.
        chosen_answers: How many `chosen` is the sum of.
        rejected_answers: Likewise.
        right: Rows in which the better answer has the higher reward.
        pairs: Rows of two answers.
    """

    chosen: float
    rejected: float
    chosen_answers: int
    rejected_answers: int
    right: int
    pairs: int

    @classmethod
    def none(cls) -> "Rewards":
        """Return the sums over no answers."""
        return cls(**{f.name: 0 for f in fields(cls)})

    def __add__(self, other: "Rewards") -> "Rewards":
        """Return the sums over the answers of both."""
        names = [f.name for f in fields(Rewards)]
        return Rewards(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def means(self) -> dict[str, float]:
        """Return what there is of: chosen, rejected, margin (of the two), accuracy (0 to 1)."""
        found = {}
        if self.chosen_answers:
            found["chosen"] = self.chosen / self.chosen_answers
        if self.rejected_answers:
            found["rejected"] = self.rejected / self.rejected_answers
        if len(found) == 2:
            found["margin"] = found["chosen"] - found["rejected"]
        if self.pairs:
            found["accuracy"] = self.right / self.pairs
        return found


def rewards_of(answers: Compared, loss: PairLoss, options: Options) -> Rewards:
    """Return the rewards of P times two answers; of rows with a label, of the row's own alone."""
    first = loss.reward(answers.first, answers.first_reference, answers.first_tokens, options)
    if loss.form == "labels":
        good = int(scalar(answers.good.sum()))
        return Rewards(
            chosen=scalar(mx.where(answers.good, first, 0).sum()),
            rejected=scalar(mx.where(answers.good, 0, first).sum()),
            chosen_answers=good,
            rejected_answers=first.size - good,
            right=0,
            pairs=0,
        )
    second = loss.reward(answers.second, answers.second_reference, answers.second_tokens, options)
    return Rewards(
        chosen=scalar(first.sum()),
        rejected=scalar(second.sum()),
        chosen_answers=first.size,
        rejected_answers=first.size,
        right=int(scalar((first > second).sum())),
        pairs=first.size,
    )
