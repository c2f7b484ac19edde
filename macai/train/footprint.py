"""How much memory a training step takes, told before there is one.

A sum of terms, each of which is something that is there: see `Footprint`. What the terms are
follows from the code of a step (`macai.train.gradient`, `macai.train.loop`); the few numbers that
do not are of MLX's CPU backend and were measured on it, with random models of three blocks and
several widths. On a GPU nothing of this was measured: `Setup.factor` takes a measurement.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from macai.models.sizes import BlockSizes, ModelSizes
from macai.train.chunked import pieces

FLOAT32 = 4

# An array is freed when what reads it has run, and MLX hands out up to a hundred operations before
# (10 tasks of 10, mlx/scheduler and mlx/backend/cpu/encoder.h). So about the temporary arrays of a
# block are there at once. In numbers for each token, as multiples of the widest layer, of the
# queries, and of attention's weights:
FORWARD_QUEUE = (4.0, 2.0, 0.0)
BACKWARD_QUEUE = (6.0, 9.0, 2.0)
FORWARD_ALONE = (8.0, 3.0, 1.0)  # of blocks that keep nothing
QUEUE_MARGIN = 1.08  # how far ahead it gets is a matter of time, and differs by so much
MARGIN = 1.05  # for tables of positions, masks and all else that is small

# What the rules need during an update besides parameters, gradient and state, as multiples of the
# trained numbers: the new state beside the old one, and the vectors of `macai.train.optimizer`.
UPDATE_COPIES = {"adamw": 6.0, "lion": 6.0, "muon": 5.3, "adafactor": 3.6, "adamw8bit": 12.1}
DIVIDED_COPIES = 2.0  # where a rule is given the parts of the vector apart


@dataclass(frozen=True, slots=True, kw_only=True)
class PartShape:
    """A part of a step, computed at once.

    Attributes:
        rows: In the batch, empty ones included.
        width: Tokens of a row, a shared prefix aside.
        learnt: Tokens with logits.
        prefix: Tokens that are computed once for all rows.
    """

    rows: int
    width: int
    learnt: int
    prefix: int = 0

    @property
    def tokens(self) -> int:
        """Computed in all."""
        return self.rows * self.width + self.prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes that MLX holds at the moment of a step at which it holds most.

    Attributes:
        weights: The model's, trained ones included.
        optimizer: Its state.
        gradients: Those of the parts added up so far, and those that are there already.
        activations: What the blocks keep for the backward pass.
        working: What is computed and not yet freed.
        head: Logits of the learnt tokens and their gradient.
        update: Copies of the trained weights and of the state while they change.
        others: The other processes that share the step, all their terms.
    """

    weights: int
    optimizer: int = 0
    gradients: int = 0
    activations: int = 0
    working: int = 0
    head: int = 0
    update: int = 0
    others: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return sum(asdict(self).values())

    @property
    def fixed(self) -> int:
        """What no smaller micro-batch makes less."""
        return self.weights + self.optimizer + self.gradients + self.update

    def scaled(self, factor: float) -> "Footprint":
        """Return it with all that depends on the tokens of a part multiplied."""
        changed = {n: round(getattr(self, n) * factor) for n in ("activations", "working", "head")}
        return replace(self, **changed)

    def with_others(self, others: Iterable["Footprint"]) -> "Footprint":
        """Return it with what other processes hold."""
        return replace(self, others=sum(other.total for other in others))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a step is taken with.

    Attributes:
        sizes: Of the model.
        rule: A key of `macai.train.rules.RULES`.
        state_bytes: Of the optimiser.
        divided: Whether it is a `macai.train.parts.Parts`.
        recompute: See `macai.models.recompute`.
        fused: Whether attention keeps no weights and computes them again: on a GPU.
        factor: What a measurement has found the parts' share of the prediction to be too small by.
    """

    sizes: ModelSizes
    rule: str
    state_bytes: int
    divided: bool = False
    recompute: bool = False
    fused: bool = False
    factor: float = 1.0


def footprint(
    setup: Setup, part: PartShape, *, added: bool = False, trains: bool = True
) -> Footprint:
    """Return what a process holds that computes such parts.

    Args:
        setup: Of the run.
        part: The largest.
        added: Whether there are several in a step, whose gradients are added.
        trains: Whether it is the one that updates the weights.
    """
    sizes = setup.sizes
    base = Footprint(
        weights=sizes.weight_bytes,
        optimizer=setup.state_bytes if trains else 0,
        gradients=FLOAT32 * sizes.trained if added else 0,
    )
    moments = [m.scaled(MARGIN * setup.factor) for m in _moments(setup, part, base)]
    if trains:
        copies = UPDATE_COPIES[setup.rule] + (DIVIDED_COPIES if setup.divided else 0)
        update = round(MARGIN * copies * FLOAT32 * sizes.trained)
        gradient = FLOAT32 * sizes.trained
        moments.append(replace(base, gradients=gradient, update=update))
    return max(moments, key=lambda moment: moment.total)


def _moments(setup: Setup, part: PartShape, base: Footprint) -> list[Footprint]:
    """Return the ends of the forward pass, of the head's backward pass and of the whole of it."""
    sizes = setup.sizes
    reached = [block for block in sizes.blocks if block.reached]
    heads, heads_back = _heads(setup, part)
    largest = max(sizes.blocks, key=lambda block: _kept(setup, block, part))
    forward, backward = (_queue(setup, largest, part, q) for q in (FORWARD_QUEUE, BACKWARD_QUEUE))
    block = _kept(setup, largest, part) + forward + backward
    if setup.recompute:
        kept = sum(b.width for b in reached) * sizes.activation_bytes * part.tokens
        forward, backward = _queue(setup, largest, part, FORWARD_ALONE), block
    else:
        kept = sum(_kept(setup, b, part) for b in reached)
    head_grads = FLOAT32 * sizes.head_trained
    all_grads = FLOAT32 * sizes.trained + head_grads
    return [
        replace(base, activations=kept, head=heads, working=forward),
        replace(
            base,
            gradients=base.gradients + head_grads,
            activations=kept,
            head=heads_back,
            working=backward,
        ),
        replace(base, gradients=base.gradients + all_grads, working=block),
    ]


def _heads(setup: Setup, part: PartShape) -> tuple[int, int]:
    """Return what logits and their gradients take as they are computed, and after that."""
    sizes = setup.sizes
    rows = _rows_at_once(part.learnt, sizes.vocabulary)
    logits = rows * sizes.vocabulary * FLOAT32
    width = max(block.width for block in sizes.blocks)
    slopes = part.learnt * width * FLOAT32 if rows < part.learnt else 0
    if setup.fused:  # in the model's own type as well, and a softmax of its own
        both = 3 * logits + rows * sizes.vocabulary * sizes.activation_bytes + slopes
        return both, both
    return 2 * logits + slopes, slopes or logits  # both, then the gradient alone


def _rows_at_once(learnt: int, vocabulary: int) -> int:
    """Return of how many tokens there are logits at a time: see `macai.train.chunked`."""
    return max((end - begin for begin, end in pieces(learnt, vocabulary)), default=0)


def _kept(setup: Setup, block: BlockSizes, part: PartShape) -> int:
    """Return the bytes that a block keeps; of one that no gradient goes through, those of none."""
    if not block.reached:
        return 0
    columns = part.width + part.prefix
    attention = 0 if setup.fused else block.heads * columns
    copies = part.rows * part.prefix * block.keys  # the prefix's, before those of each row
    numbers = (block.kept + attention) * part.tokens + copies
    return setup.sizes.activation_bytes * numbers


def _queue(
    setup: Setup, block: BlockSizes, part: PartShape, shares: tuple[float, float, float]
) -> int:
    columns = 0 if setup.fused else block.heads * (part.width + part.prefix)
    widths = block.widest, block.queries, columns
    numbers = sum(share * width for share, width in zip(shares, widths, strict=True))
    return round(QUEUE_MARGIN * setup.sizes.activation_bytes * numbers * part.tokens)


def while_validating(setup: Setup, part: PartShape) -> Footprint:
    """Return what the process that trains holds while it computes a batch to validate with."""
    sizes = setup.sizes
    fullest = max(sizes.blocks, key=lambda block: _kept(setup, block, part))
    working = _queue(setup, fullest, part, FORWARD_ALONE)
    logits = _rows_at_once(part.learnt, sizes.vocabulary) * sizes.vocabulary * FLOAT32
    base = Footprint(weights=sizes.weight_bytes, optimizer=setup.state_bytes)
    return replace(base, head=logits, working=working).scaled(MARGIN * setup.factor)


def of_run(
    setup: Setup,
    steps: Sequence[Sequence[PartShape]],
    valid: Sequence[PartShape],
    *,
    workers: int,
) -> tuple[Footprint, PartShape]:
    """Return the footprint of a run, of each process its fullest moment, and its fullest part.

    Args:
        setup: Of the run.
        steps: The parts of each step, which the workers take in turns.
        valid: The batches of a validation.
        workers: Processes.
    """

    def total(found: tuple[Footprint, PartShape]) -> int:
        return found[0].total

    none = Footprint(weights=setup.sizes.weight_bytes), PartShape(rows=0, width=0, learnt=0)
    fullest = []
    for n in range(workers):
        shapes = {(part, len(s[n::workers]) > 1) for s in steps for part in s[n::workers]}
        moments = [
            (footprint(setup, part, added=added, trains=n == 0), part) for part, added in shapes
        ]
        if n == 0:
            moments += [(while_validating(setup, part), part) for part in set(valid)]
        fullest.append(max(moments, key=total, default=none))
    first, others = fullest[0], [moment for moment, _ in fullest[1:]]
    return first[0].with_others(others), first[1]
