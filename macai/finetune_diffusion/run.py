"""A run: set up, steps, validations, samples, checkpoints. An iterator of events."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.optimizers as optim

from macai.diffusion.images import write_picture
from macai.diffusion.training.average import Average
from macai.diffusion.training.base import Base, open_base
from macai.diffusion.training.cpu_ops import cpu_ops
from macai.diffusion.training.plan import Planner
from macai.files import refuse_existing
from macai.finetune_diffusion import data as pictures_of
from macai.finetune_diffusion.data import Pictures
from macai.finetune_diffusion.events import Event, Preparing, Sampled, Started, Summary
from macai.finetune_diffusion.gradient import ImageGradient
from macai.finetune_diffusion.job import ImageJob, Part, divided, workers_for
from macai.finetune_diffusion.result import MODEL
from macai.finetune_diffusion.task import Task
from macai.finetune_diffusion.tasks import CACHE, make_task, require_parts, side_of
from macai.models.arrays import named_arrays, scalar
from macai.recipe import DiffusionRecipe, differences, dumps, load_any_recipe
from macai.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from macai.train.events import Stopped, Validated, Validating
from macai.train.loop import Report, train
from macai.train.metrics import of_step
from macai.train.optimizer import joined, make_optimizer, put
from macai.train.progress import Progress
from macai.train.run import RECIPE, Log, begin, digest, follow, go_on, require_finite
from macai.train.schedule import learning_rate
from macai.train.team import Team

SAMPLES = "samples"
AVERAGE = "average"


@dataclass(slots=True, kw_only=True)
class _Run:
    recipe: DiffusionRecipe
    out: Path
    task: Task
    pictures: Pictures
    planner: Planner
    optimizer: optim.Optimizer
    average: Average | None
    steps: int
    fingerprint: dict[str, str]
    progress: Progress
    job: ImageJob


def finetune_diffusion(
    recipe: DiffusionRecipe,
    model: Path,
    *,
    data: Path,
    out: Path,
    resume: bool = False,
    force: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Run a recipe and yield what happens; the last event is a Summary, or Stopped.

    Args:
        recipe: Its `model` and `data.path` are not read: `model` and `data` are what they named.
        model: What `macai.diffusion.training.base.open_base` takes.
        data: A folder; see `macai.diffusion.training.pictures.read_pictures`.
        out: The folder to write to.
        resume: Go on from the checkpoint in `out`; the result is that of an uninterrupted run.
        force: Replace an earlier run in `out`.
        should_stop: Asked after every step; if true, a checkpoint is written and the run ends.

    Raises:
        DataError, ModelError, OutputError, TrainingError, UsageError: see `macai.errors`.
    """
    if not resume:
        refuse_existing(out, force=force)
    random = recipe.diffusion.init == "random"
    base = open_base(model, random=random, vae=recipe.diffusion.vae)
    require_parts(recipe, base)
    side, factor = side_of(base)
    pictures = pictures_of.read(recipe, data, factor=factor, side=side)
    checkpoint = load_checkpoint(out) if resume else None
    step = pictures_of.bucket_step(recipe, factor)
    side = max(step, (recipe.data.resolution or side) // step * step)  # of the square bucket
    run = _set_up(recipe, base, pictures, out, checkpoint, side)
    if checkpoint:
        _resume(run, checkpoint)
    else:
        begin(out, dumps(recipe), files=run.task.files, folders=(MODEL, SAMPLES, CACHE))
    yield _started(run)
    prepare = run.task.prepare
    for done, compute in enumerate(prepare, 1):
        compute()
        yield Preparing(done=done, total=len(prepare))
        if should_stop():
            _save(run)
            yield Stopped(step=run.progress.step)
            return
    gradient = ImageGradient(run.task.model, run.task.loss)
    with cpu_ops(run.task.model), Team(run.task.model, gradient, run.job) as team:
        yield from _steps(run, team, should_stop)


def _set_up(
    recipe: DiffusionRecipe,
    base: Base,
    pictures: Pictures,
    out: Path,
    checkpoint: Checkpoint | None,
    side: int,
) -> _Run:
    planner = pictures_of.planner(recipe, pictures)
    steps = max(1, recipe.train.steps or round(recipe.train.epochs * planner.steps_per_epoch))
    progress = Progress(**checkpoint.state["progress"]) if checkpoint else Progress(workers=0)
    progress.workers = workers_for(recipe, base, steps=steps, before=progress.workers)
    task = make_task(recipe, base, pictures, out, side, workers=progress.workers)
    options = asdict(recipe.optimizer)
    del options["max_grad_norm"]
    optimizer = make_optimizer(options.pop("name"), task.model, **options)
    average = None
    if recipe.diffusion.ema_decay:
        average = Average(joined(task.model.trainable_parameters()), recipe.diffusion.ema_decay)
    return _Run(
        recipe=recipe,
        out=out,
        task=task,
        pictures=pictures,
        planner=planner,
        optimizer=optimizer,
        average=average,
        steps=steps,
        fingerprint=_fingerprint(recipe, task, pictures),
        progress=progress,
        job=ImageJob(
            workers=progress.workers,
            model=base.path.absolute(),
            recipe=recipe,
            pictures=pictures,
            out=out.absolute(),
            side=side,
            task=task,
        ),
    )


def _steps(run: _Run, team: Team, should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Train, validate, sample and save."""
    options, schedule, progress = run.recipe.optimizer, run.recipe.schedule, run.progress
    reports = train(
        run.task.model,
        run.optimizer,
        _steps_to_do(run),
        gradient=team,
        rate=partial(
            learning_rate,
            schedule.name,
            peak=options.learning_rate,
            warmup_steps=schedule.warmup_steps,
            total_steps=run.steps,
            floor=schedule.floor,
            decay=schedule.decay,
        ),
        max_grad_norm=options.max_grad_norm,
        seed=run.recipe.train.seed,
        first_step=progress.step,
    )
    times, every = run.recipe.train, 0
    if run.task.validation:
        every = times.eval_every or run.planner.steps_per_epoch
    finished = yield from follow(
        _averaging(run, reports),
        run.out,
        progress,
        last=run.steps,
        eval_every=every,
        save_every=times.save_every,
        measured=_measured,
        validate=partial(_validate, run),
        save=partial(_save, run),
        should_stop=should_stop,
        sample=partial(_sample, run),
        sample_every=run.recipe.sample.every,
    )
    if finished:
        with _averaged(run):
            run.task.finish()
        yield _summary(run)


def _averaging(run: _Run, reports: Iterator[Report]) -> Iterator[Report]:
    """Take the weights after each step into their average."""
    for report in reports:
        if run.average is not None:
            run.average.add(joined(run.task.model.trainable_parameters()), report.step)
        yield report


def _steps_to_do(run: _Run) -> Iterator[list[Part]]:
    """Yield the parts of each step still to do, for the workers to take in turns."""
    for step, parts in run.planner.steps(run.progress.step, run.steps):
        if step % run.planner.steps_per_epoch == 0:
            run.progress.epoch_loss, run.progress.epoch_learnt = 0.0, 0
        yield [(step, part) for slots in parts for part in divided(slots, run.progress.workers)]


@contextmanager
def _averaged(run: _Run) -> Iterator[None]:
    """Have the model its averaged weights, where there are such, in evaluation mode."""
    model = run.task.model
    before = model.trainable_parameters()
    model.eval()
    try:
        if run.average is not None:
            put(model, run.average.vector)
        yield
    finally:
        model.update(before)
        model.train()


def _validate(run: _Run, note: Log) -> Iterator[Event]:
    """Measure the validation loss, and keep the weights if it is the best so far."""
    progress, began = run.progress, time.perf_counter()
    batches = run.task.validation
    with _averaged(run):
        if not batches:
            run.task.save()
            return
        total, images = 0.0, 0
        for done, make in enumerate(batches, 1):
            batch = make()
            total += scalar(run.task.loss(run.task.model, batch))
            images += batch.images
            yield Validating(done=done, total=len(batches))
        loss = total / images
        require_finite(loss, progress.step)
        best = progress.best_valid_loss is None or loss < progress.best_valid_loss
        progress.valid_loss = loss
        if best:
            progress.best_valid_loss = loss
            run.task.save()
    progress.valid_seconds += time.perf_counter() - began
    note({"step": progress.step, "valid_loss": loss})
    yield Validated(step=progress.step, loss=loss, best=best)


def _sample(run: _Run, note: Log) -> Sampled:
    began, step = time.perf_counter(), run.progress.step
    file = run.out / SAMPLES / f"step-{step:06d}.png"
    with _averaged(run):
        write_picture(file, run.task.sample())
    run.progress.valid_seconds += time.perf_counter() - began
    note({"step": step, "sample": str(file.relative_to(run.out))})
    return Sampled(step=step, file=str(file))


def _measured(report: Report) -> dict[str, Any]:
    """Return what metrics.jsonl says of a step: what are tokens to the loop are pictures here."""
    values = of_step(report)
    del values["learnt_tokens"]
    values["images"] = values.pop("real_tokens")
    values["computed_images"] = values.pop("processed_tokens")
    return values


def _save(run: _Run) -> None:
    extra = {} if run.average is None else {AVERAGE: run.average.vector}
    state = {"run": run.fingerprint, "progress": asdict(run.progress)}
    save_checkpoint(run.out, run.task.model, run.optimizer, state, extra)


def _resume(run: _Run, checkpoint: Checkpoint) -> None:
    """Go back to the last checkpoint."""
    go_on(
        run.out,
        checkpoint,
        run.task.model,
        run.optimizer,
        fingerprint=run.fingerprint,
        changes=lambda: differences(load_any_recipe(run.out / RECIPE), run.recipe),
    )
    if run.average is not None:
        run.average.vector = checkpoint.arrays[f"extra.{AVERAGE}"]


def _fingerprint(recipe: DiffusionRecipe, task: Task, pictures: Pictures) -> dict[str, str]:
    """Return hashes of all that decides the result: a resumed run must have the same."""
    decisive = {k: v for k, v in asdict(recipe).items() if k not in ("model", "sample")}
    paths = ("path", "valid_path", "class_path", "cache_gib")
    decisive["data"] = {k: v for k, v in decisive["data"].items() if k not in paths}
    decisive["diffusion"] = {k: v for k, v in decisive["diffusion"].items() if k != "vae"}
    decisive["train"] = {
        k: v for k, v in decisive["train"].items() if k not in ("save_every", "workers", "log")
    }
    return {
        "recipe": digest(decisive),
        "base model": task.name,
        "data set": pictures.digest(),
    }


def _started(run: _Run) -> Started:
    pictures = run.pictures
    parameters = named_arrays(run.task.model.trainable_parameters()).values()
    return Started(
        train_images=len(pictures.learnt),
        valid_images=len(pictures.held),
        class_images=len(pictures.of_class),
        sizes=pictures.sizes(),
        enlarged=pictures.enlarged(),
        cut_captions=run.task.cut_captions,
        random=run.task.random,
        trainable_parameters=sum(p.size for p in parameters),
        steps=run.steps,
        steps_per_epoch=run.planner.steps_per_epoch,
        first_step=run.progress.step,
        workers=run.progress.workers,
    )


def _summary(run: _Run) -> Summary:
    progress, lora = run.progress, run.recipe.diffusion.train == "lora"
    return Summary(
        adapter=str(run.out) if lora else None,
        model=None if lora else str(run.out / MODEL),
        steps=progress.step,
        epochs=progress.step / run.planner.steps_per_epoch,
        train_loss=progress.epoch_loss / progress.epoch_learnt,
        valid_loss=progress.valid_loss,
        best_valid_loss=progress.best_valid_loss,
        images=progress.real_tokens,
        images_per_second=progress.real_tokens / progress.step_seconds,
        workers=progress.workers,
        peak_memory_bytes=progress.peak_memory_bytes,
        seconds=progress.step_seconds + progress.valid_seconds,
    )
