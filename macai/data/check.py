"""What a data set will be to a run: what is learnt, what is lost, what is there twice."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from macai.data.batches import plan_epoch
from macai.data.rows import Row, Splits, row_digest
from macai.data.tokens import (
    Example,
    Truncation,
    fit_length,
    render,
    require_ended,
    tokenise,
)
from macai.errors import DataError

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about some rows: an error stops a run, unless it is told to go on.

    Attributes:
        rows: Where they stand, "file:line", and what is wrong where that differs.
    """

    name: str
    severity: Severity
    what: str
    rows: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFacts:
    """Of one split."""

    rows: int
    tokens: int
    learnt_tokens: int
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What an epoch will be.

    Attributes:
        real_share: The part of the tokens computed that is no padding, 0 to 1.
        widths: To which rows are padded.
    """

    steps: int
    real_share: float
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What was found, under the names `macai data check --json` prints.

    Attributes:
        lengths: Of the training rows: (from, below, how many) tokens.
        epoch: None where no row can be trained.
        examples: Of the training rows that can be tokenised, in order.
    """

    splits: dict[str, SplitFacts]
    lengths: list[tuple[int, int, int]]
    epoch: Steps | None
    problems: list[Problem]
    examples: list[Example]

    @property
    def errors(self) -> list[Problem]:
        """The problems that stop a run."""
        return [problem for problem in self.problems if problem.severity == "error"]

    def to_json(self) -> dict[str, Any]:
        """Return all but the examples."""
        return {
            "splits": {name: asdict(facts) for name, facts in self.splits.items()},
            "lengths": self.lengths,
            "epoch": asdict(self.epoch) if self.epoch else None,
            "problems": [asdict(problem) for problem in self.problems],
        }


def check(
    splits: Splits,
    tokenizer: Any,
    *,
    end_ids: frozenset[int],
    max_length: int,
    truncation: Truncation,
    tokens: int,
) -> DataReport:
    """Look at every row as a run would.

    Args:
        splits: From `macai.data.rows.read_splits`.
        tokenizer: mlx-lm's TokenizerWrapper.
        end_ids: Which ids end a reply.
        max_length: Tokens; the limit of one example.
        truncation: What a run does with longer ones.
        tokens: Padded tokens of a step.
    """
    found: dict[str, list[str]] = defaultdict(list)
    made: dict[str, list[Example]] = {}
    for name, rows in (("train", splits.train), ("valid", splits.valid), ("test", splits.test)):
        made[name] = []
        for row in rows:
            try:
                example = tokenise(row, tokenizer)
            except ValueError as e:
                found["refused"].append(f"{row.source}: {e}")
                continue
            made[name].append(example)
            for problem, text in _of_example(example, end_ids, max_length):
                found[problem].append(f"{row.source}{text}")
            if _leaves_its_prompt(row, tokenizer):
                found["no-prefix"].append(row.source)
    found["in-train"] = [f"{row}: as {first}" for row, first in leaks(splits)]
    found["duplicate"] = [f"{row}: as {first}" for row, first in duplicates(splits.train)]
    kept = [
        piece
        for example in made["train"]
        if example.learnt_tokens and (len(example.ids) <= max_length or truncation != "error")
        for piece in fit_length(example, max_length, truncation)
    ]
    return DataReport(
        splits={name: _facts(examples) for name, examples in made.items() if examples},
        lengths=histogram([len(e.ids) for e in made["train"]]),
        epoch=_epoch(kept, tokens) if kept else None,
        problems=[
            Problem(name, _severity(name, truncation), _WHAT[name], tuple(found[name]))
            for name in _WHAT
            if found[name]
        ],
        examples=made["train"],
    )


_WHAT = {
    "refused": "rows that cannot be tokenised",
    "nothing-learnt": "rows with nothing to learn",
    "over-limit": "rows over data.max_length",
    "no-end": "rows with a reply that no mark ends, so that the model would not stop",
    "in-train": "rows to check with that are training rows too",
    "duplicate": "training rows that are there already",
    "no-prefix": "rows whose prompt is no prefix of the whole conversation, which is allowed for",
}


def _severity(name: str, truncation: Truncation) -> Severity:
    if name in ("duplicate", "no-prefix"):
        return "warning" if name == "duplicate" else "note"
    return "warning" if name == "over-limit" and truncation != "error" else "error"


def _of_example(
    example: Example, end_ids: frozenset[int], max_length: int
) -> Iterator[tuple[str, str]]:
    """Yield (the problem's name, what to add to the row's place)."""
    if not example.learnt_tokens:
        yield "nothing-learnt", ""
        return
    if len(example.ids) > max_length:
        yield "over-limit", f": {len(example.ids)} tokens"
    try:
        require_ended(example, end_ids)
    except ValueError:
        yield "no-end", ""


def leaks(splits: Splits) -> list[tuple[str, str]]:
    """Return which rows to check with are training rows as well: (where, where in training)."""
    known = {row_digest(row): row.source for row in reversed(splits.train)}
    checked = [*splits.valid, *splits.test]
    return [(row.source, known[d]) for row in checked if (d := row_digest(row)) in known]


def duplicates(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the rows that are there already: (where, where first)."""
    first: dict[bytes, str] = {}
    pairs = [(row.source, first.setdefault(row_digest(row), row.source)) for row in rows]
    return [(source, known) for source, known in pairs if source != known]


def require_apart(splits: Splits, *, hint: str) -> None:
    """Raise DataError if a validation loss would be of rows that are learnt."""
    tested = {row.source for row in splits.test}
    if found := [pair for pair in leaks(splits) if pair[0] not in tested]:
        lines = [f"{row} is the same as {known}" for row, known in found]
        count = f"{len(found)} validation row{'' if len(found) == 1 else 's'}"
        raise DataError("\n  ".join([f"{count} in the training data:", *lines]), hint=hint)


def histogram(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (from, below, how many) for ranges that double; none where there is nothing."""
    if not lengths:
        return []
    powers = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    return [
        (1 << p, 2 << p, int((powers == p).sum())) for p in range(powers.min(), powers.max() + 1)
    ]


def token_texts(example: Example, tokenizer: Any) -> list[tuple[str, bool]]:
    """Return the text of each token and whether it is learnt.

    Tokens that are only together a character of UTF-8 are one, if they are learnt alike.
    """
    texts: list[tuple[str, bool]] = []
    held: list[int] = []
    learn = example.learn.tolist()
    for number, token in enumerate(example.ids.tolist()):
        held.append(token)
        text = tokenizer.decode(held)
        last = number + 1 == len(learn) or learn[number + 1] != learn[number]
        if last or not text.endswith("\ufffd"):
            texts.append((text, learn[number]))
            held = []
    return texts


def _leaves_its_prompt(row: Row, tokenizer: Any) -> bool:
    """Whether a prompt that the template writes is not what the conversation goes on from."""
    turns = [n for n, message in enumerate(row.messages) if message.role == "assistant" and n]
    if not turns:
        return False
    whole = render(row.messages, tokenizer)
    return not all(
        whole.startswith(render(row.messages[:n], tokenizer, generation=True)) for n in turns
    )


def _facts(examples: Sequence[Example]) -> SplitFacts:
    return SplitFacts(
        rows=len(examples),
        tokens=sum(len(e.ids) for e in examples),
        learnt_tokens=sum(e.learnt_tokens for e in examples),
        longest=max(len(e.ids) for e in examples),
    )


def _epoch(examples: Sequence[Example], tokens: int) -> Steps:
    lengths = [e.read_tokens for e in examples]
    steps = plan_epoch(lengths, tokens=tokens, micro_tokens=tokens, seed=0, epoch=0)
    plans = [plan for step in steps for plan in step]
    return Steps(
        steps=len(steps),
        real_share=sum(lengths) / sum(plan.padded_tokens for plan in plans),
        widths=tuple(sorted({plan.width for plan in plans})),
    )
