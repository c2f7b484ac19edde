"""What a recipe means for a model: what is trained, what is made small, what a step is."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from macai.data.batches import Lengths, Steps, divide, few_shapes, plan_epoch, shared_prefix
from macai.data.mix import rows_seen
from macai.data.tokens import Example
from macai.errors import UsageError
from macai.models.adapter import AdapterConfig
from macai.models.identity import Identity
from macai.models.lora import require_used, target_paths
from macai.models.methods import AdapterMethod, FullMethod, Method
from macai.models.peft_config import PeftConfig
from macai.recipe import Recipe
from macai.train.losses import LOSSES
from macai.train.losses.compared import Options
from macai.train.objective import Objective, PairObjective, TokenObjective
from macai.train.optimizer import make_optimizer
from macai.train.run import digest

LEAST_PREFIX = 8  # tokens, and rows of a part of a step: with fewer, computing a shared prefix in a
LEAST_ROWS = 4  #   pass of its own costs more than it saves


def method_of(recipe: Recipe, model: nn.Module, base: Identity) -> Method:
    """Return what the recipe's adapter means for this model."""
    adapter = recipe.adapter
    if adapter.method == "full":
        return FullMethod(last_blocks=adapter.layers)
    paths = target_paths(model, adapter.targets, last_blocks=adapter.layers)
    patterns = adapter.rank_pattern, adapter.alpha_pattern
    sizes = PeftConfig(adapter.rank, adapter.alpha, *patterns, adapter.use_rslora)
    require_used(sizes, paths)
    config = AdapterConfig(
        sizes=sizes,
        dropout=adapter.dropout,
        base_name=recipe.model,
        base=base,
        use_dora=adapter.method == "dora",
        modules_to_save=adapter.modules_to_save,
    )
    if (adapter.init == "loftq") != (adapter.original is not None):
        raise UsageError(
            'adapter.init = "loftq" and adapter.original belong together',
            hint="original is the folder of the model that this one was quantised from",
        )
    return AdapterMethod(
        config=config,
        paths=paths,
        seed=recipe.train.seed,
        init=adapter.init,
        original=adapter.original,
    )


def objective_of(recipe: Recipe) -> Objective:
    """Return what the recipe's loss means."""
    options = asdict(recipe.loss)
    name = options.pop("name")
    if name == "sft":
        return TokenObjective(label_smoothing=recipe.loss.label_smoothing)
    changes_base = recipe.adapter.method == "full" or recipe.adapter.modules_to_save
    if LOSSES[name].needs_reference and changes_base:
        raise UsageError(
            f'loss.name = "{name}" compares with the model without its adapter, and training '
            "weights of the model itself would change that as well",
            hint='use an adapter without modules_to_save, or loss.name = "orpo" or "simpo"',
        )
    return PairObjective(loss=LOSSES[name], options=Options(**options))


def optimizer_of(recipe: Recipe, model: nn.Module) -> optim.Optimizer:
    """Return the recipe's optimiser, in its first state, for what is trained of a model."""
    options = asdict(recipe.optimizer)
    del options["max_grad_norm"]
    return make_optimizer(options.pop("name"), model, **options)


def micro_tokens_of(recipe: Recipe, lowered: int = 0) -> int:
    """Return how many tokens are computed at once; `lowered`: a run had no memory for more."""
    wanted = recipe.batch.micro_tokens or recipe.batch.tokens
    return min(wanted, lowered) if lowered else wanted


def steps_of(
    recipe: Recipe,
    lengths: Lengths,
    sets: Sequence[int],
    *,
    epoch: int,
    workers: int,
    micro_tokens: int,
) -> Steps:
    """Return the steps of an epoch, each cut into parts for the workers to take in turns.

    Args:
        recipe: Of the run.
        lengths: See `macai.train.objective.Objective.lengths`.
        sets: How many of them are of `data.path`, and of each of `data.mix`.
        epoch: Counted from 0.
        workers: Processes.
        micro_tokens: See `micro_tokens_of`.
    """
    weights, seed = [1.0, *(mix.weight for mix in recipe.data.mix)], recipe.train.seed
    steps = plan_epoch(
        lengths,
        tokens=recipe.batch.tokens,
        micro_tokens=micro_tokens,
        row_multiple=recipe.batch.row_multiple,
        seed=seed,
        epoch=epoch,
        rows=rows_seen(sets, weights, seed=seed, epoch=epoch) if recipe.data.mix else None,
    )
    if mx.default_device() != mx.cpu:
        steps = few_shapes(steps)
    return steps.changed(lambda s: [part for plan in s for part in divide(plan, lengths, workers)])


def prefix_of(
    recipe: Recipe,
    units: int,
    examples: Iterable[Example],
    parts: int,
    can_share: Callable[[], bool],
) -> int:
    """Return how many tokens to compute once for all rows of a part; 0 if it does not pay.

    It changes what a step costs, never which rows are in it. With dropout each row has a mask of
    its own, from its first token on.

    Args:
        recipe: Of the run.
        units: Rows to train on, as plans count them.
        examples: All, those of the validation too.
        parts: Of an epoch.
        can_share: Asked last: see `macai.models.prefix.can_share_prefix`.
    """
    prefix = shared_prefix(examples)
    if prefix < LEAST_PREFIX or recipe.adapter.dropout or units < LEAST_ROWS * parts:
        return 0
    return prefix if can_share() else 0


def fingerprint_of(recipe: Recipe, base: Identity, examples: Iterable[Example]) -> dict[str, str]:
    """Return hashes of all that decides the result: a resumed run must have the same."""
    rows = hashlib.sha256()
    for example in examples:
        end = b"\n" if example.good else b"bad\n"
        rows.update(example.ids.tobytes() + b"/" + example.learn.tobytes() + end)
    decisive = {k: v for k, v in asdict(recipe).items() if k not in ("model", "data", "sample")}
    original = recipe.adapter.original
    decisive["adapter"]["original"] = str(original) if original else None
    # Workers and micro_tokens change the result, but by rounding only.
    free = ("save_every", "workers", "recompute", "micro_tokens", "must_fit", "log")
    if recipe.data.mix:
        decisive["mix"] = [mix.weight for mix in recipe.data.mix]
    for table in ("train", "batch"):
        decisive[table] = {k: v for k, v in decisive[table].items() if k not in free}
    return {
        "recipe": digest(decisive),
        "base model": base.weights,
        "data set": rows.hexdigest(),
    }
