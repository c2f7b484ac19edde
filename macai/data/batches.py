"""Token-budget batches: which rows go together, as a pure function of (seed, epoch)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from macai.data.tokens import Example

MAX_WIDTHS = 16
MAX_SHAPES = 16  # a GPU compiles each one, and the allocator caches each one
MAX_GROWTH = 0.04  # of the tokens of an epoch; with more, few shapes would cost more than they save
WIDTH_STEP = 8
MAX_CANDIDATES = 512  # widths to choose from; above 4096 tokens they are further apart than 8
LEARNT_STEP = 4
LEARNT_SHARE = 8  # on a GPU, of a batch: a step is compiled for each number of learnt tokens

Lengths = Sequence[int] | NDArray[np.integer]
"""Tokens of each row."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A micro-batch yet to be made.

    Attributes:
        rows: Indices.
        width: To which they are padded.
        empty: Rows of padding alone that come after them.
    """

    rows: tuple[int, ...]
    width: int
    empty: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, empty ones included, and width."""
        return len(self.rows) + self.empty, self.width

    @property
    def padded_tokens(self) -> int:
        """Rows times width."""
        return self.shape[0] * self.width


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch for the model.

    A row's last learnt token and what follows it predict nothing, so they are not in `ids`.

    Attributes:
        prefix: int32 [P]; what all rows begin with, or None for P = 0.
        ids: int32 [B, L]; what comes after it, padded on the right, and the plan's empty rows.
        positions: int32 [N]; where in the flattened [B * L] the hidden states are that predict.
        targets: int32 [N]; the ids they must predict.
        weights: float32 [N]; 1, or 0 where N was rounded up.
        learnt_tokens: The sum of `weights`.
        real_tokens: All tokens of the rows, as the data has them.
    """

    prefix: mx.array | None
    ids: mx.array
    positions: mx.array
    targets: mx.array
    weights: mx.array
    learnt_tokens: int
    real_tokens: int

    @property
    def processed_tokens(self) -> int:
        """Tokens computed, padding included and the prefix once."""
        return self.ids.size + (0 if self.prefix is None else self.prefix.size)


class Steps(Sequence[list[Plan]]):
    """The steps of an epoch, each made when it is asked for: of millions of rows few are in memory.

    A slice is one as well.
    """

    __hash__ = None  # type: ignore[assignment]  # equal where their steps are

    def __init__(self, make: Callable[[int], list[Plan]], numbers: NDArray[np.integer]) -> None:
        """Take what makes a step of its number, and the numbers in their order."""
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> list[Plan]: ...
    @overload
    def __getitem__(self, at: slice) -> "Steps": ...
    def __getitem__(self, at: int | slice) -> "list[Plan] | Steps":
        if isinstance(at, slice):
            return Steps(self._make, self._numbers[at])
        return self._make(int(self._numbers[at]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Steps) and list(self) == list(other)

    def changed(self, change: Callable[[list[Plan]], list[Plan]]) -> "Steps":
        """Return the steps with `change` made to each."""
        make = self._make
        return Steps(lambda number: change(make(number)), self._numbers)


def shared_prefix(examples: Iterable[Example]) -> int:
    """Return how many tokens all rows begin with that predict nothing learnt.

    A system prompt, as a rule. The first learnt token is predicted by the one before it, which is
    therefore never in the prefix.
    """
    shared: NDArray[np.int32] | None = None
    for example in examples:
        before = int(np.flatnonzero(example.learn)[0]) - 1
        shared = example.ids[:before] if shared is None else shared[:before]
        different = np.flatnonzero(example.ids[: len(shared)] != shared)
        shared = shared[: different[0]] if len(different) else shared
    return 0 if shared is None else len(shared)


def widths_for(lengths: Lengths) -> list[int]:
    """Return the at most 16 widths, multiples of 8, that leave the least padding on these rows."""
    step = WIDTH_STEP * -(-max(lengths) // (WIDTH_STEP * MAX_CANDIDATES))
    widths, counts = np.unique(-(-np.asarray(lengths) // step) * step, return_counts=True)
    if len(widths) <= MAX_WIDTHS:
        return [int(w) for w in widths]
    # Dynamic programming: padded[j] is the least for the rows up to widths[j], the last one chosen,
    # and wider[j, i] what the rows above widths[i] up to widths[j] add to it.
    rows = np.cumsum(counts)
    wider = np.tril(widths[:, None] * (rows[:, None] - rows).astype(float), -1)
    wider[np.triu_indices(len(widths))] = np.inf
    padded, before = (widths * rows).astype(float), []
    for _ in range(MAX_WIDTHS - 1):
        total = padded + wider
        before.append(total.argmin(axis=1))
        padded = total.min(axis=1)
    chosen = [len(widths) - 1]
    for previous in reversed(before):
        chosen.append(int(previous[chosen[-1]]))
    return [int(widths[i]) for i in reversed(chosen)]


def plan_epoch(
    lengths: Lengths,
    *,
    tokens: int,
    micro_tokens: int,
    seed: int,
    epoch: int,
    row_multiple: int = 1,
    rows: NDArray[np.int64] | None = None,
) -> Steps:
    """Return the steps of one epoch, each a list of micro-batches; every row is in exactly one.

    Rows are sorted by length, in random order within a length, and cut where rows x width would
    pass the budget. So the number of padded tokens of a step is about constant, and little of it is
    padding.

    Args:
        lengths: Tokens of each row.
        tokens: Padded tokens of a step. A longer row is a step of its own.
        micro_tokens: Padded tokens computed at once; gradients of a step's micro-batches are added.
        seed: With `epoch`, decides the order.
        epoch: Counted from 0.
        row_multiple: A step has a multiple of so many rows if it has more: less than the budget.
        rows: int64 [N]; those of the epoch, each as often as it is seen; None: each once.
    """
    lengths = np.asarray(lengths) if rows is None else np.asarray(lengths)[rows]
    widths = np.array(widths_for(lengths))
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    order = rng.permutation(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]
    row_widths = widths[np.searchsorted(widths, lengths[order])].data
    order = order if rows is None else rows[order]
    cuts = np.array(_cut(row_widths, 0, len(row_widths), tokens, row_multiple))

    def step(number: int) -> list[Plan]:
        begin, end = cuts[number].tolist()
        return [
            Plan(tuple(order[a:b].tolist()), row_widths[b - 1])
            for a, b in _cut(row_widths, begin, end, min(micro_tokens, tokens))
        ]

    return Steps(step, rng.permutation(len(cuts)))


def few_shapes(steps: Steps) -> Steps:
    """Return the steps with 16 shapes of micro-batches, or as few as 4 % more tokens buy.

    Rare shapes grow. Which rows are in a micro-batch stays, and so what is learnt. All epochs are
    cut alike, so all have the same shapes.
    """
    counts = Counter(plan.shape for step in steps for plan in step)
    grown = {shape: shape for shape in counts}
    allowed = MAX_GROWTH * sum(plan.padded_tokens for step in steps for plan in step)
    while len(counts) > MAX_SHAPES:
        shapes = np.array(sorted(counts))
        larger = np.maximum(shapes[:, None], shapes)  # of each two, what holds both
        times = np.array([counts[rows, width] for rows, width in shapes.tolist()])
        added = (larger.prod(axis=-1) - shapes.prod(axis=-1)[:, None]) * times[:, None]
        cost = (added + added.T).astype(float)
        np.fill_diagonal(cost, np.inf)
        one, other = np.unravel_index(cost.argmin(), cost.shape)
        allowed -= cost[one, other]
        if allowed < 0:
            break
        large = tuple(larger[one, other].tolist())
        gone = {tuple(shapes[i].tolist()) for i in (one, other)}
        count = sum(counts.pop(shape) for shape in gone)
        counts[large] += count
        grown = {shape: large if to in gone else to for shape, to in grown.items()}
    return steps.changed(lambda step: [_grow(plan, *grown[plan.shape]) for plan in step])


def _grow(plan: Plan, rows: int, width: int) -> Plan:
    return Plan(plan.rows, width, rows - len(plan.rows))


def divide(plan: Plan, lengths: Lengths, parts: int) -> list[Plan]:
    """Cut a micro-batch by rows into at most `parts`, the largest of them as small as can be.

    Each has the width of its longest row, whatever the shape: not for a GPU. None is empty, so
    there are never more than rows; one part is the micro-batch as it is.
    """
    if parts == 1:
        return [plan]
    rows = sorted(plan.rows, key=lambda row: int(lengths[row]))
    widths = [int(lengths[row]) for row in rows]

    def fits(tokens: int) -> bool:
        return len(_cut(widths, 0, len(rows), tokens)) <= parts

    least = bisect_left(range(plan.padded_tokens), True, key=fits)
    return [Plan(tuple(rows[a:b]), widths[b - 1]) for a, b in _cut(widths, 0, len(rows), least)]


def in_order(lengths: Lengths, *, tokens: int) -> list[Plan]:
    """Return batches of rows sorted by length, the same every time: for evaluation."""
    order = np.argsort(lengths, kind="stable")
    widths = [-(-int(lengths[i]) // WIDTH_STEP) * WIDTH_STEP for i in order]
    return [
        Plan(tuple(map(int, order[a:b])), widths[b - 1])
        for a, b in _cut(widths, 0, len(widths), tokens)
    ]


def make_batch(examples: Sequence[Example], plan: Plan, *, pad_id: int, prefix: int = 0) -> Batch:
    """Pad the planned rows and list what must be predicted where.

    Args:
        examples: What the plan's rows are indices into.
        plan: Its width holds the rows' `read_tokens`, the prefix included.
        pad_id: Stands after the end of a row; nothing depends on it.
        prefix: Tokens at the beginning of all rows to compute once: see `shared_prefix`.
    """
    rows = [examples[i] for i in plan.rows]
    ids = np.full((plan.shape[0], plan.width - prefix), pad_id, np.int32)
    following = np.zeros_like(ids)
    learn = np.zeros(ids.shape, bool)
    for i, row in enumerate(rows):
        assert not row.learn[: prefix + 1].any(), "nothing predicts these"
        length = row.read_tokens - prefix
        ids[i, :length] = row.ids[prefix : row.read_tokens]
        # The hidden state that predicts token t is the one of token t - 1.
        following[i, :length] = row.ids[prefix + 1 : row.read_tokens + 1]
        learn[i, :length] = row.learn[prefix + 1 : row.read_tokens + 1]
    positions = np.flatnonzero(learn)
    learnt = len(positions)
    step = _learnt_step(ids.size)
    room = -(-learnt // step) * step - learnt
    return Batch(
        prefix=mx.array(rows[0].ids[:prefix]) if prefix else None,
        ids=mx.array(ids),
        positions=mx.array(np.pad(positions, (0, room)).astype(np.int32)),
        targets=mx.array(np.pad(following.reshape(-1)[positions], (0, room))),
        weights=mx.array(np.pad(np.ones(learnt, np.float32), (0, room))),
        learnt_tokens=learnt,
        real_tokens=sum(len(row.ids) for row in rows),
    )


def _learnt_step(tokens: int) -> int:
    """Return what the learnt tokens of a batch of so many tokens are rounded up to."""
    if mx.default_device() == mx.cpu:
        return LEARNT_STEP
    return LEARNT_STEP * max(1, tokens // (LEARNT_SHARE * LEARNT_STEP))


def _cut(
    widths: Sequence[int] | memoryview, begin: int, end: int, tokens: int, multiple: int = 1
) -> list[tuple[int, int]]:
    """Cut begin..end (widths ascending) so that rows x last width stays within `tokens`.

    What has more rows than `multiple` has a multiple of it, but for the last.
    """
    cuts, i = [begin], begin + 1
    while i < end:
        rows = i - cuts[-1]
        if (rows + 1) * widths[i] > tokens:
            i -= rows % multiple if rows > multiple else 0
            cuts.append(i)
        i += 1
    return list(pairwise([*cuts, end]))
