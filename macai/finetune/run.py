"""A run that is set up: what all that happens in it has in common."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map

from macai.data.batches import Steps
from macai.data.mix import Epochs
from macai.data.store import Joined
from macai.data.tokens import Example
from macai.errors import TrainingError
from macai.finetune.wanted import micro_tokens_of, optimizer_of, prefix_of, steps_of
from macai.models.load import LoadedModel, load_network
from macai.models.methods import Method
from macai.models.prefix import can_share_prefix
from macai.recipe import Recipe
from macai.train.checkpoint import FILE, Checkpoint, load_checkpoint
from macai.train.group import Group
from macai.train.job import Job
from macai.train.loss import Logits
from macai.train.objective import Objective
from macai.train.progress import Progress


@dataclass(slots=True, kw_only=True)
class Run:
    """See `macai.finetune.finetune`."""

    recipe: Recipe
    loaded: LoadedModel
    out: Path
    train: Joined
    valid: Sequence[Example]
    pad_id: int
    logits: Logits
    optimizer: optim.Optimizer
    steps: int
    steps_per_epoch: int
    fingerprint: dict[str, str]
    method: Method
    objective: Objective
    progress: Progress
    group: Group | None = None
    prefix: int = 0
    epochs: Epochs = field(init=False)

    def __post_init__(self) -> None:
        # The sorted widths of the rows decide where steps are cut: the same rows make as many.
        whole = all(mix.weight.is_integer() for mix in self.recipe.data.mix)
        self.epochs = Epochs(self.plan, alike=whole)

    @property
    def writes(self) -> bool:
        """Whether this process is the one that leaves something."""
        return self.group is None or self.group.first

    @property
    def workers(self) -> int:
        """Processes that take a step together, those of other members of a group too."""
        return self.progress.workers * (self.group.size if self.group else 1)

    def agreed(self, stop: bool) -> bool:
        """Return whether to stop: whether it was asked of this process, or of any in a group."""
        if self.group is None:
            return stop
        self.group.agree(stop=stop)
        return self.group.stopping

    @property
    def micro_tokens(self) -> int:
        """Tokens computed at once."""
        return micro_tokens_of(self.recipe, self.progress.micro_tokens)

    def plan(self, epoch: int) -> Steps:
        """Return the steps of an epoch: see `macai.finetune.wanted.steps_of`."""
        return steps_of(
            self.recipe,
            self.objective.lengths(self.train),
            [len(self.objective.lengths(part)) for part in self.train.parts],
            epoch=epoch,
            workers=self.workers,
            micro_tokens=self.micro_tokens,
        )

    def find_prefix(self) -> int:
        """Return how many tokens to compute once for all rows of a part."""
        return prefix_of(
            self.recipe,
            len(self.objective.lengths(self.train)),
            chain(self.train, self.valid),
            sum(len(step) for step in self.plan(0)),
            partial(can_share_prefix, self.loaded.model),
        )

    def job(self) -> Job:
        """Return what a second process needs to compute parts of this run's steps."""
        return Job(
            workers=self.progress.workers,
            model=self.loaded.path.absolute(),
            prepare=self.method.prepare,
            examples=self.train,
            pad_id=self.pad_id,
            prefix=self.prefix,
            objective=self.objective,
            recompute=self.recipe.batch.recompute,
        )

    def renew(self) -> None:
        """Give the model the weights that it began with, and make the optimiser anew.

        From their files: what a failed GPU has left in memory is not to be trusted.
        """
        model = self.loaded.model
        model.update(tree_map(lambda _: mx.array(0), model.parameters()))  # never two models
        fresh = load_network(self.loaded.path)
        self.method.prepare(fresh)
        model.update(fresh.parameters())
        self.optimizer = optimizer_of(self.recipe, model)


def last_checkpoint(
    out: Path, group: Group | None, *, must_exist: bool = True
) -> Checkpoint | None:
    """Return the checkpoint in a folder; to others than the first of a group, its state alone.

    Raises:
        TrainingError: there is none, or it is broken.
    """
    first = group is None or group.first
    wanted = first and (must_exist or (out / FILE).is_file())
    checkpoint = load_checkpoint(out) if wanted else None
    if group is None:
        return checkpoint
    state = group.text(json.dumps(checkpoint.state if checkpoint else None))
    return checkpoint if first else _state_alone(json.loads(state))


def _state_alone(state: dict[str, Any] | None) -> Checkpoint | None:
    return None if state is None else Checkpoint({}, state)


def require_same(run: Run) -> None:
    """Raise TrainingError in a process with other rows, model or recipe than the first one's."""
    if run.group is None:
        return
    of_first = json.loads(run.group.text(json.dumps(run.fingerprint)))
    different = [what for what, value in run.fingerprint.items() if of_first[what] != value]
    if different:
        problem = f"process {run.group.rank} has another {' and '.join(different)} than process 0"
        raise TrainingError(problem, hint="give each the same command, model and data")
