"""Recipe to adapter: model, data, optimiser, loop, checkpoints. An iterator of events.

The only reader of a Recipe below the command line. What it leaves in the output folder:
`adapter_config.json` and `adapter_model.safetensors` (the adapter of the best validation loss; the
folder `model` in their place where all weights are trained),
`recipe.toml` (every default written out), `metrics.jsonl`, `checkpoint.safetensors` (to resume).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path

import mlx.core as mx

from macai.data.batches import Plan
from macai.data.check import histogram
from macai.data.store import Joined, sizes_of
from macai.data.tokens import Example, Prepared
from macai.errors import TrainingError
from macai.files import refuse_existing
from macai.finetune.expected import Expectation, Rows, expect, require_room, setup_of
from macai.finetune.recovery import halved
from macai.finetune.rows import prepared_rows
from macai.finetune.run import Run, last_checkpoint, require_same
from macai.finetune.wanted import fingerprint_of, method_of, objective_of, optimizer_of
from macai.models.adapter import CONFIG, WEIGHTS
from macai.models.arrays import named_arrays
from macai.models.identity import identify
from macai.models.load import LoadedModel
from macai.models.methods import MODEL
from macai.recipe import Recipe, differences, dumps, load_any_recipe
from macai.train.checkpoint import Checkpoint, save_checkpoint
from macai.train.evaluate import mean_loss
from macai.train.events import Event, Lowered, Started, Validated, Validating
from macai.train.group import Group
from macai.train.job import training_ops
from macai.train.loop import train
from macai.train.loss import logits_for
from macai.train.machine import workers_for
from macai.train.memory import limited_memory
from macai.train.metrics import of_step
from macai.train.progress import Progress
from macai.train.run import RECIPE, Log, begin, follow, go_on, require_finite
from macai.train.schedule import learning_rate
from macai.train.team import Team


def finetune(
    recipe: Recipe,
    loaded: LoadedModel,
    *,
    data: Path,
    out: Path,
    resume: bool = False,
    force: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    group: Group | None = None,
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
        group: The processes that take the steps together, each in a call of its own. Only the
            first one reads and writes `out`; the others need a folder to themselves.

    Raises:
        DataError, OutputError, TrainingError, UsageError: see `macai.errors`.
    """
    if not resume:
        refuse_existing(out, force=force)
    objective = objective_of(recipe)
    with prepared_rows(recipe, objective, loaded, data, scratch=out) as sets:
        checkpoint = last_checkpoint(out, group) if resume else None
        *learnt, valid = (prepared.examples for prepared in sets)
        run = _set_up(recipe, loaded, Joined(learnt), valid, out, checkpoint, group)
        require_same(run)
        expected = _expected(run)
        if recipe.batch.must_fit and group is None:
            require_room(expected)
        _begin(run, checkpoint)
        yield _started(run, sets, expected)
        yield from _until_done(run, should_stop)


def _until_done(run: Run, should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Take the steps; where memory runs out, again, in smaller parts."""
    model = run.loaded.model
    while True:
        gradient = run.objective.gradient(model, run.logits)
        ops = training_ops(model, recompute=run.recipe.batch.recompute)
        try:
            with limited_memory(), ops, Team(model, gradient, run.job(), run.group) as team:
                yield from _steps(run, team, should_stop)
            return
        except (RuntimeError, MemoryError, TrainingError) as e:
            lowered = halved(run, e)
        # Out of the handler: with the error go the arrays that its traceback holds.
        yield _start_over(run, lowered)


def _set_up(
    recipe: Recipe,
    loaded: LoadedModel,
    train: Joined,
    valid: Sequence[Example],
    out: Path,
    checkpoint: Checkpoint | None,
    group: Group | None,
) -> Run:
    """Put the adapter into the model and decide everything that follows from the recipe."""
    base = identify(loaded.path, chat_template=loaded.tokenizer.chat_template)
    logits = logits_for(loaded.model)
    method = method_of(recipe, loaded.model, base)
    method.prepare(loaded.model)
    optimizer = optimizer_of(recipe, loaded.model)
    pad_id = loaded.tokenizer.pad_token_id
    progress = Progress(**checkpoint.state["progress"]) if checkpoint else Progress(workers=0)
    asked = recipe.train.workers or (1 if group else 0)
    progress.workers = workers_for(loaded.model, asked, before=progress.workers)
    run = Run(
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
        fingerprint=fingerprint_of(recipe, base, chain(train, valid)),
        method=method,
        objective=objective_of(recipe),
        progress=progress,
        group=group,
    )
    run.prefix = run.find_prefix()
    run.steps_per_epoch = run.epochs.steps(0)
    run.steps = run.epochs.total(recipe.train.epochs)
    return run


def _steps(run: Run, team: Team, should_stop: Callable[[], bool]) -> Iterator[Event]:
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
        should_stop=lambda: run.agreed(should_stop()),
    )
    if finished:
        whole = run.recipe.adapter.method == "full"
        summary = progress.summary(
            adapter=None if whole else str(run.out),
            model=str(run.out / MODEL) if whole else None,
            steps_per_epoch=run.steps_per_epoch,
        )
        yield replace(summary, workers=run.workers)


def _save(run: Run) -> None:
    if not run.writes:
        return
    state = {"run": run.fingerprint, "progress": asdict(run.progress)}
    save_checkpoint(run.out, run.loaded.model, run.optimizer, state)


def _validate(run: Run, note: Log) -> Iterator[Event]:
    """Measure the validation loss, and keep the adapter if it is the best so far."""
    progress, began = run.progress, time.perf_counter()
    events = mean_loss(
        run.loaded.model,
        run.valid,
        logits=run.logits,
        tokens=run.micro_tokens,
        pad_id=run.pad_id,
        prefix=run.prefix,
        objective=run.objective,
        group=run.group,
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
        if run.writes:
            run.method.keep(run.loaded, run.out)
    progress.valid_seconds += time.perf_counter() - began
    note({"step": progress.step, "valid_loss": loss})
    yield Validated(step=progress.step, loss=loss, best=best)


def _steps_to_do(run: Run) -> Iterator[list[Plan]]:
    """Yield the steps still to do: each epoch's order follows from its number alone."""
    step, patience = run.progress.step, run.recipe.train.patience
    while step < run.steps:
        epoch, done = run.epochs.place(step)
        if done == 0:
            run.progress.epoch_loss, run.progress.epoch_learnt = 0.0, 0
        for parts in run.plan(epoch)[done : done + run.steps - step]:
            if patience and run.progress.stale >= patience:
                return  # right after a validation, as at the end of the run
            yield parts
            step += 1


def _write_start(run: Run) -> None:
    """Write what describes the run; take away what an earlier run left."""
    begin(run.out, dumps(run.recipe), files=(WEIGHTS, CONFIG), folders=(MODEL,))
    run.method.begin(run.loaded, run.out)


def _begin(run: Run, checkpoint: Checkpoint | None) -> None:
    """Go back to the last checkpoint, or to the beginning, in all processes of the run."""
    if checkpoint is None:
        _write_start(run)
    elif run.writes:
        _resume(run, checkpoint)
    if run.group is not None:
        run.group.share(run.loaded.model, run.optimizer)


def _resume(run: Run, checkpoint: Checkpoint) -> None:
    """Go back to the last checkpoint."""
    go_on(
        run.out,
        checkpoint,
        run.loaded.model,
        run.optimizer,
        fingerprint=run.fingerprint,
        changes=lambda: differences(load_any_recipe(run.out / RECIPE), run.recipe),
    )


def _start_over(run: Run, lowered: Lowered) -> Lowered:
    """Go back to the last checkpoint, or to the beginning, with fewer tokens at once."""
    mx.clear_cache()
    checkpoint = last_checkpoint(run.out, run.group, must_exist=False)
    progress = Progress(**checkpoint.state["progress"]) if checkpoint else Progress()
    progress.workers, progress.micro_tokens = run.progress.workers, lowered.micro_tokens
    run.progress = progress
    if checkpoint is None:
        run.renew()
    _begin(run, checkpoint)
    return replace(lowered, first_step=progress.step)


def _expected(run: Run) -> Expectation:
    return expect(
        run.recipe,
        setup_of(run.recipe, run.loaded.model, run.loaded.config, run.optimizer),
        run.objective,
        Rows.of(run.objective, run.train, run.valid, run.prefix),
        workers=run.workers,
        lowered=run.progress.micro_tokens,
    )


def _started(run: Run, sets: Sequence[Prepared], expected: Expectation) -> Started:
    padded = sum(plan.padded_tokens for step in run.plan(0) for plan in step)
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
        workers=run.workers,
        expected_memory_bytes=expected.footprint.total,
        available_memory_bytes=expected.room,
    )
