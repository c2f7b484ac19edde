"""Recipe to adapter: model, data, optimiser, loop, checkpoints. An iterator of events.

The only reader of a Recipe below the command line. What it leaves in the output folder:
`adapter_config.json` and `adapter_model.safetensors` (the adapter of the best validation loss; the
folder `model` in their place where all weights are trained),
`recipe.toml` (every default written out), `metrics.jsonl`, `checkpoint.safetensors` (to resume).
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from numpy.typing import NDArray

from macai.data.batches import Plan, Steps, divide, few_shapes, plan_epoch, shared_prefix
from macai.data.check import histogram
from macai.data.mix import Epochs, rows_seen
from macai.data.repeats import require_apart
from macai.data.rows import Splits, read_learnt, read_splits
from macai.data.store import Joined, example_files, sizes_of
from macai.data.tokens import Example, Prepared
from macai.errors import UsageError
from macai.files import refuse_existing
from macai.models.adapter import CONFIG, WEIGHTS, AdapterConfig
from macai.models.arrays import named_arrays
from macai.models.identity import Identity, identify
from macai.models.load import LoadedModel
from macai.models.lora import require_used, target_paths
from macai.models.methods import MODEL, AdapterMethod, FullMethod, Method
from macai.models.peft_config import PeftConfig
from macai.models.prefix import can_share_prefix
from macai.recipe import Recipe, differences, dumps, load_any_recipe
from macai.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from macai.train.evaluate import mean_loss
from macai.train.events import Event, Started, Validated, Validating
from macai.train.job import Job, training_ops
from macai.train.loop import train
from macai.train.loss import Logits, logits_for
from macai.train.losses import LOSSES
from macai.train.losses.compared import Options
from macai.train.machine import workers_for
from macai.train.memory import limited_memory
from macai.train.metrics import of_step
from macai.train.objective import Objective, PairObjective, TokenObjective
from macai.train.optimizer import make_optimizer
from macai.train.progress import Progress
from macai.train.run import RECIPE, Log, begin, digest, follow, go_on, require_finite
from macai.train.schedule import learning_rate
from macai.train.team import Team

APART = "take them out of one; data.strict = false trains all the same"
LEAST_PREFIX = 8  # tokens, and rows of a part of a step: with fewer, computing a shared prefix in a
LEAST_ROWS = 4  #   pass of its own costs more than it saves


@dataclass(slots=True, kw_only=True)
class _Run:
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
    prefix: int = 0
    epochs: Epochs = field(init=False)

    def __post_init__(self) -> None:
        # The sorted widths of the rows decide where steps are cut: the same rows make as many.
        whole = all(mix.weight.is_integer() for mix in self.recipe.data.mix)
        self.epochs = Epochs(partial(_plan, self), alike=whole)


def finetune(
    recipe: Recipe,
    loaded: LoadedModel,
    *,
    data: Path,
    out: Path,
    resume: bool = False,
    force: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Run a recipe and yield what happens; the last event is a Summary, or Stopped.

    Args:
        recipe: Its `model` and `data.path` are not read: `loaded` and `data` are what they named.
        loaded: Gets LoRA layers, in place; at the end it holds the last step's, not the best ones.
        data: See `macai.data.rows.read_splits`.
        out: The folder to write to.
        resume: Go on from the checkpoint in `out`; the result is that of an uninterrupted run.
        force: Replace an earlier run in `out`.
        should_stop: Asked after every step; if true, a checkpoint is written and the run ends.

    Raises:
        DataError, OutputError, TrainingError, UsageError: see `macai.errors`.
    """
    if not resume:
        refuse_existing(out, force=force)
    tokenizer, limits = loaded.tokenizer, recipe.data
    read = read_splits(data)
    mixed = [read_learnt(mix.path) for mix in limits.mix]
    if limits.strict:
        for train in (read.train, *mixed):
            require_apart(Splits(train, read.valid, []), hint=APART)
    objective = _objective(recipe)
    with example_files(out, 2 + len(mixed)) as kept:
        sets = objective.prepare(
            [read.train, *mixed, read.valid],
            tokenizer,
            max_length=limits.max_length,
            truncation=limits.truncation,
            end_ids=loaded.eos_token_ids if limits.strict else None,
            kept=kept,
        )
        checkpoint = load_checkpoint(out) if resume else None
        *learnt, valid = (prepared.examples for prepared in sets)
        run = _set_up(recipe, loaded, Joined(learnt), valid, out, checkpoint)
        if checkpoint:
            _resume(run, checkpoint)
        else:
            _write_start(run)
        yield _started(run, sets)
        gradient = objective.gradient(loaded.model, run.logits)
        ops = training_ops(loaded.model, recompute=recipe.batch.recompute)
        with limited_memory(), ops, Team(loaded.model, gradient, _job(run)) as team:
            yield from _steps(run, team, should_stop)


def _set_up(
    recipe: Recipe,
    loaded: LoadedModel,
    train: Joined,
    valid: Sequence[Example],
    out: Path,
    checkpoint: Checkpoint | None,
) -> _Run:
    """Put the adapter into the model and decide everything that follows from the recipe."""
    base = identify(loaded.path, chat_template=loaded.tokenizer.chat_template)
    logits = logits_for(loaded.model)
    method = _method(recipe, loaded, base)
    method.prepare(loaded.model)
    options = asdict(recipe.optimizer)
    del options["max_grad_norm"]
    optimizer = make_optimizer(options.pop("name"), loaded.model, **options)
    pad_id = loaded.tokenizer.pad_token_id
    progress = Progress(**checkpoint.state["progress"]) if checkpoint else Progress(workers=0)
    progress.workers = workers_for(loaded.model, recipe.train.workers, before=progress.workers)
    run = _Run(
        recipe=recipe,
        loaded=loaded,
        out=out,
        train=train,
        valid=valid,
        pad_id=0 if pad_id is None else pad_id,
        logits=logits,
        optimizer=optimizer,
        steps=0,
        steps_per_epoch=0,
        fingerprint=_fingerprint(recipe, base, chain(train, valid)),
        method=method,
        objective=_objective(recipe),
        progress=progress,
    )
    run.prefix = _prefix(run)
    run.steps_per_epoch = run.epochs.steps(0)
    run.steps = run.epochs.total(recipe.train.epochs)
    return run


def _method(recipe: Recipe, loaded: LoadedModel, base: Identity) -> Method:
    """Return what the recipe's adapter means for this model."""
    adapter = recipe.adapter
    if adapter.method == "full":
        return FullMethod(last_blocks=adapter.layers)
    paths = target_paths(loaded.model, adapter.targets, last_blocks=adapter.layers)
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


def _objective(recipe: Recipe) -> Objective:
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


def _prefix(run: _Run) -> int:
    """Return how many tokens to compute once for all rows of a part; 0 if it does not pay.

    It changes what a step costs, never which rows are in it. With dropout each row has a mask of
    its own, from its first token on.
    """
    prefix = shared_prefix(chain(run.train, run.valid))
    if prefix < LEAST_PREFIX or run.recipe.adapter.dropout:
        return 0
    parts = sum(len(step) for step in _plan(run, epoch=0))
    rows = len(run.objective.lengths(run.train))
    if rows < LEAST_ROWS * parts or not can_share_prefix(run.loaded.model):
        return 0
    return prefix


def _job(run: _Run) -> Job:
    """Return what a second process needs to compute parts of this run's steps."""
    return Job(
        workers=run.progress.workers,
        model=run.loaded.path.absolute(),
        prepare=run.method.prepare,
        examples=run.train,
        pad_id=run.pad_id,
        prefix=run.prefix,
        objective=run.objective,
        recompute=run.recipe.batch.recompute,
    )


def _steps(run: _Run, team: Team, should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Train, validate and save."""
    options, progress = run.recipe.optimizer, run.progress
    reports = train(
        run.loaded.model,
        run.optimizer,
        _steps_to_do(run),
        gradient=team,
        rate=partial(
            learning_rate,
            run.recipe.schedule.name,
            peak=options.learning_rate,
            warmup_steps=run.recipe.schedule.warmup_steps,
            total_steps=run.steps,
            floor=run.recipe.schedule.floor,
            decay=run.recipe.schedule.decay,
        ),
        max_grad_norm=options.max_grad_norm,
        seed=run.recipe.train.seed,
        first_step=progress.step,
    )
    times = run.recipe.train
    finished = yield from follow(
        reports,
        run.out,
        progress,
        last=run.steps,
        eval_every=times.eval_every or run.steps_per_epoch,
        save_every=times.save_every,
        measured=of_step,
        validate=partial(_validate, run),
        save=lambda: _save(run),
        should_stop=should_stop,
    )
    if finished:
        whole = run.recipe.adapter.method == "full"
        yield progress.summary(
            adapter=None if whole else str(run.out),
            model=str(run.out / MODEL) if whole else None,
            steps_per_epoch=run.steps_per_epoch,
        )


def _save(run: _Run) -> None:
    state = {"run": run.fingerprint, "progress": asdict(run.progress)}
    save_checkpoint(run.out, run.loaded.model, run.optimizer, state)


def _validate(run: _Run, note: Log) -> Iterator[Event]:
    """Measure the validation loss, and keep the adapter if it is the best so far."""
    progress, began = run.progress, time.perf_counter()
    events = mean_loss(
        run.loaded.model,
        run.valid,
        logits=run.logits,
        tokens=run.recipe.batch.tokens,
        pad_id=run.pad_id,
        prefix=run.prefix,
        objective=run.objective,
    )
    loss = math.nan
    for done, total, mean in events:
        yield Validating(done=done, total=total)
        loss = mean
    require_finite(loss, progress.step)
    best = progress.best_valid_loss is None or loss < progress.best_valid_loss
    progress.valid_loss = loss
    progress.stale = 0 if best else progress.stale + 1
    if best:
        progress.best_valid_loss = loss
        run.method.keep(run.loaded, run.out)
    progress.valid_seconds += time.perf_counter() - began
    note({"step": progress.step, "valid_loss": loss})
    yield Validated(step=progress.step, loss=loss, best=best)


def _plan(run: _Run, epoch: int) -> Steps:
    """Return the steps of an epoch, each cut into parts for the workers to take in turns."""
    batch, lengths = run.recipe.batch, run.objective.lengths(run.train)
    steps = plan_epoch(
        lengths,
        tokens=batch.tokens,
        micro_tokens=batch.micro_tokens or batch.tokens,
        row_multiple=batch.row_multiple,
        seed=run.recipe.train.seed,
        epoch=epoch,
        rows=_rows(run, epoch) if run.recipe.data.mix else None,
    )
    if mx.default_device() != mx.cpu:
        steps = few_shapes(steps)
    workers = run.progress.workers
    return steps.changed(lambda s: [part for plan in s for part in divide(plan, lengths, workers)])


def _rows(run: _Run, epoch: int) -> NDArray[np.int64]:
    """Return which rows an epoch has, in units of the objective."""
    sizes = [len(run.objective.lengths(part)) for part in run.train.parts]
    weights = [1.0, *(mix.weight for mix in run.recipe.data.mix)]
    return rows_seen(sizes, weights, seed=run.recipe.train.seed, epoch=epoch)


def _steps_to_do(run: _Run) -> Iterator[list[Plan]]:
    """Yield the steps still to do: each epoch's order follows from its number alone."""
    step, patience = run.progress.step, run.recipe.train.patience
    while step < run.steps:
        epoch, done = run.epochs.place(step)
        if done == 0:
            run.progress.epoch_loss, run.progress.epoch_learnt = 0.0, 0
        for parts in _plan(run, epoch)[done : done + run.steps - step]:
            if patience and run.progress.stale >= patience:
                return  # right after a validation, as at the end of the run
            yield parts
            step += 1


def _write_start(run: _Run) -> None:
    """Write what describes the run; take away what an earlier run left."""
    begin(run.out, dumps(run.recipe), files=(WEIGHTS, CONFIG), folders=(MODEL,))
    run.method.begin(run.loaded, run.out)


def _resume(run: _Run, checkpoint: Checkpoint) -> None:
    """Go back to the last checkpoint."""
    go_on(
        run.out,
        checkpoint,
        run.loaded.model,
        run.optimizer,
        fingerprint=run.fingerprint,
        changes=lambda: differences(load_any_recipe(run.out / RECIPE), run.recipe),
    )


def _fingerprint(recipe: Recipe, base: Identity, examples: Iterable[Example]) -> dict[str, str]:
    """Return hashes of all that decides the result: a resumed run must have the same."""
    rows = hashlib.sha256()
    for example in examples:
        end = b"\n" if example.good else b"bad\n"
        rows.update(example.ids.tobytes() + b"/" + example.learn.tobytes() + end)
    decisive = {k: v for k, v in asdict(recipe).items() if k not in ("model", "data", "sample")}
    original = recipe.adapter.original
    decisive["adapter"]["original"] = str(original) if original else None
    free = (
        "save_every",
        "workers",
        "recompute",
        "log",
    )  # but workers change the result by rounding
    if recipe.data.mix:
        decisive["mix"] = [mix.weight for mix in recipe.data.mix]
    for table in ("train", "batch"):
        decisive[table] = {k: v for k, v in decisive[table].items() if k not in free}
    return {
        "recipe": digest(decisive),
        "base model": base.weights,
        "data set": rows.hexdigest(),
    }


def _started(run: _Run, sets: Sequence[Prepared]) -> Started:
    padded = sum(plan.padded_tokens for step in _plan(run, epoch=0) for plan in step)
    sizes = sizes_of(run.train)
    parameters = named_arrays(run.loaded.model.trainable_parameters()).values()
    return Started(
        train_rows=len(run.objective.lengths(run.train)),
        valid_rows=len(run.objective.lengths(run.valid)),
        dropped_rows=sum(s.dropped for s in sets),
        shortened_rows=sum(s.shortened for s in sets),
        train_tokens=int(sizes.tokens.sum()),
        learnt_tokens=int(sizes.learnt.sum()),
        lengths=histogram(sizes.tokens),
        trainable_parameters=sum(p.size for p in parameters),
        steps=run.steps,
        steps_per_epoch=run.steps_per_epoch,
        first_step=run.progress.step,
        shared_prefix=run.prefix,
        real_share=float(sum(run.objective.lengths(run.train)) / padded),
        workers=run.progress.workers,
    )
