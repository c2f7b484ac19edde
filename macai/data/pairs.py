"""Rows that say which answers are liked, as examples two by two, and batches of them.

The examples of number n are 2 n and 2 n + 1: the better and the worse answer to a prompt; or, of a
row with a label, its own answer and that of the next row, which was given to another prompt.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from macai.data.batches import Batch, Plan, make_batch
from macai.data.rows import Row, bad_rows
from macai.data.store import sizes_of
from macai.data.tokens import (
    Example,
    Prepared,
    Truncation,
    fit_length,
    hint_for,
    require_ended,
    tokenise,
)
from macai.errors import DataError, UsageError

Form = Literal["pairs", "labels"]
_HINTS: dict[Form, str] = {
    "pairs": 'a row is {"prompt", "chosen", "rejected"}, one JSON object a line',
    "labels": 'a row is {"prompt", "completion", "label"}, one JSON object a line',
}


@dataclass(frozen=True, slots=True)
class PairBatch:
    """P numbers of examples for the model.

    Attributes:
        batch: Of 2 P rows: the first of each two, then the second ones.
        rows: int32 [N]; which of the 2 P each of the batch's targets belongs to.
        good: bool [P]; of the first ones.
    """

    batch: Batch
    rows: mx.array
    good: mx.array

    @property
    def pairs(self) -> int:
        """P."""
        return self.good.size


def prepare_pairs(
    splits: Sequence[Iterable[Row]],
    tokenizer: Any,
    *,
    form: Form,
    max_length: int,
    truncation: Truncation,
    end_ids: frozenset[int] | None = None,
    kept: Sequence[Any] | None = None,
) -> list[Prepared]:
    """Tokenise every row as two examples; else as `macai.data.tokens.prepare`.

    Raises:
        UsageError: the truncation is "split": half an answer is not what was liked.
        DataError: as `prepare`, and for rows of another form.
    """
    if truncation == "split":
        raise UsageError(
            'data.truncation = "split" cuts answers, and whole ones are compared',
            hint='use "error", "drop" or "keep-end"',
        )
    problems: dict[str, ValueError] = {}
    prepared = []
    for rows, examples in zip(splits, kept or [[] for _ in splits], strict=True):
        dropped = shortened = 0
        for row, following in followed(rows):
            try:
                both = [tokenise(answer, tokenizer) for answer in answers_of(row, following, form)]
                for example in both:
                    if end_ids is not None:
                        require_ended(example, end_ids)
                cut = [fit_length(example, max_length, truncation) for example in both]
            except ValueError as e:
                problems[f"{row.source}: {e}"] = e
                continue
            dropped += not all(cut)
            if all(cut):
                shortened += any(len(e.ids) > max_length for e in both)
                examples.extend([replace(e, good=row.label is not False) for (e,) in cut])
        prepared.append(Prepared(examples, dropped, shortened))
    if problems:
        raise bad_rows(list(problems), hint=hint_for(problems.values()) or _HINTS[form])
    if not all(len(split.examples) for split in prepared):
        raise DataError(
            "no row is left to learn from", hint=f"all are over max_length = {max_length} tokens"
        )
    return prepared


def followed(rows: Iterable[Row]) -> Iterator[tuple[Row, Row]]:
    """Yield each row with the next one; the last with the first."""
    rows = iter(rows)
    first = previous = next(rows, None)
    for row in rows:
        assert previous is not None, "there was a first"
        yield previous, row
        previous = row
    if first is not None and previous is not None:
        yield previous, first


def answers_of(row: Row, following: Row, form: Form) -> list[Row]:
    """Return the two rows of prompt and completion that a row stands for."""
    if form == "pairs":
        if row.chosen is None:
            raise ValueError("has no 'chosen' and 'rejected'")
        return [
            Row(source=row.source, prompt=row.prompt, completion=answer)
            for answer in (row.chosen, row.rejected)
        ]
    if row.label is None or following.completion is None:
        raise ValueError("has no 'label'")
    return [replace(row, completion=answer) for answer in (row.completion, following.completion)]


def pair_lengths(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Return the tokens of each two: twice those of the longer one, to which both are padded."""
    return 2 * sizes_of(examples).read.reshape(-1, 2).max(axis=1)


def make_pairs(
    examples: Sequence[Example], plan: Plan, *, pad_id: int, prefix: int = 0
) -> PairBatch:
    """Make the batch of a plan whose rows are numbers of two and whose width is that of both."""
    rows = [*(2 * n for n in plan.rows), *(2 * n + 1 for n in plan.rows)]
    width = -(-plan.width // 2)
    batch = make_batch(examples, Plan(tuple(rows), width), pad_id=pad_id, prefix=prefix)
    good = mx.array([examples[2 * n].good for n in plan.rows])
    return PairBatch(batch, batch.positions // batch.ids.shape[1], good)
