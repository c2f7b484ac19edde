"""What a data set will be to a run: what is learnt, what is lost, what is there twice."""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from macai.data.batches import Lengths, plan_epoch
from macai.data.pairs import Form, answers_of, followed
from macai.data.repeats import duplicates, leaks
from macai.data.rows import Row, Splits
from macai.data.tokens import (
    Example,
    Truncation,
    fit_length,
    render,
    require_ended,
    tokenise,
)

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
    """Of one split.

    Attributes:
        chosen_longer: Of rows with two answers: in which share the better one is longer; None for
            others. Where it is far from a half, the length is learnt along with what is liked.
    """

    rows: int
    tokens: int
    learnt_tokens: int
    longest: int
    chosen_longer: float | None = None


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
        examples: Of the first training rows that can be tokenised.
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
    form: Form | None = None,
    shown: int = 1,
) -> DataReport:
    """Look at every row as a run would.

    Args:
        splits: From `macai.data.rows.read_splits`.
        tokenizer: mlx-lm's TokenizerWrapper.
        end_ids: Which ids end a reply.
        max_length: Tokens; the limit of one example.
        truncation: What a run does with longer ones.
        tokens: Padded tokens of a step.
        form: Of rows that say which answers are liked, as the run's loss needs them; None: others.
        shown: How many examples of training rows the report holds.
    """
    found: dict[str, list[str]] = defaultdict(list)
    tallies: dict[str, _Tally] = {}
    for name, rows in (("train", splits.train), ("valid", splits.valid), ("test", splits.test)):
        tally = tallies[name] = _Tally()
        for row, following in followed(rows):
            try:
                answers = [row] if form is None else answers_of(row, following, form)
                examples = [tokenise(answer, tokenizer) for answer in answers]
            except ValueError as e:
                found["refused"].append(f"{row.source}: {e}")
                continue
            tally.add(examples, [_kept(e, max_length, truncation) for e in examples])
            if name == "train":
                tally.examples += examples[: max(0, shown - len(tally.examples))]
            for problem, text in dict.fromkeys(_of_examples(examples, end_ids, max_length)):
                found[problem].append(f"{row.source}{text}")
            if _leaves_its_prompt(row, tokenizer):
                found["no-prefix"].append(row.source)
    found["in-train"] = [f"{row}: as {first}" for row, first in leaks(splits)]
    found["duplicate"] = [f"{row}: as {first}" for row, first in duplicates(splits.train)]
    train = tallies["train"]
    return DataReport(
        splits={name: tally.facts(form) for name, tally in tallies.items() if tally.rows},
        lengths=histogram(train.tokens),
        epoch=_epoch(train.units, tokens) if train.units else None,
        problems=[
            Problem(name, _severity(name, truncation), _WHAT[name], tuple(found[name]))
            for name in _WHAT
            if found[name]
        ],
        examples=train.examples,
    )


class _Tally:
    """Counts the rows of a split, and keeps of each some numbers only."""

    def __init__(self) -> None:
        self.rows = 0
        self.tokens, self.learnt = array("q"), array("q")  # of each answer
        self.units = array("q")  # tokens read of what is trained at once
        self.examples: list[Example] = []

    def add(self, examples: list[Example], kept: list[list[Example]]) -> None:
        """Count a row: its examples, and what a run keeps of each."""
        self.rows += 1
        self.tokens.extend(len(e.ids) for e in examples)
        self.learnt.extend(e.learnt_tokens for e in examples)
        if len(examples) == 1:
            self.units.extend(e.read_tokens for e in kept[0])
        elif all(kept):
            self.units.append(2 * max(e.read_tokens for (e,) in kept))

    def facts(self, form: Form | None) -> SplitFacts:
        """Return what is known of the split."""
        first, second = (np.array(self.learnt[n::2]) for n in (0, 1))
        return SplitFacts(
            rows=self.rows,
            tokens=sum(self.tokens),
            learnt_tokens=sum(self.learnt),
            longest=max(self.tokens),
            chosen_longer=float((first > second).mean()) if form == "pairs" else None,
        )


def _kept(example: Example, max_length: int, truncation: Truncation) -> list[Example]:
    """Return what a run keeps of an example; nothing where it would stop."""
    stops = len(example.ids) > max_length and truncation == "error"
    if not example.learnt_tokens or stops:
        return []
    return fit_length(example, max_length, truncation)


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


def _of_examples(
    examples: Sequence[Example], end_ids: frozenset[int], max_length: int
) -> Iterator[tuple[str, str]]:
    """Yield (the problem's name, what to add to the row's place)."""
    for example in examples:
        yield from _of_example(example, end_ids, max_length)


def _of_example(
    example: Example, end_ids: frozenset[int], max_length: int
) -> Iterator[tuple[str, str]]:
    if not example.learnt_tokens:
        yield "nothing-learnt", ""
        return
    if len(example.ids) > max_length:
        yield "over-limit", f": {len(example.ids)} tokens"
    try:
        require_ended(example, end_ids)
    except ValueError:
        yield "no-end", ""


def histogram(lengths: Lengths) -> list[tuple[int, int, int]]:
    """Return (from, below, how many) for ranges that double; none where there is nothing."""
    if not len(lengths):
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


def _epoch(lengths: Lengths, tokens: int) -> Steps:
    steps = plan_epoch(lengths, tokens=tokens, micro_tokens=tokens, seed=0, epoch=0)
    plans = [plan for step in steps for plan in step]
    return Steps(
        steps=len(steps),
        real_share=sum(lengths) / sum(plan.padded_tokens for plan in plans),
        widths=tuple(sorted({plan.width for plan in plans})),
    )
