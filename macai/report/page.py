"""The page of a run: what was trained, how it went, on what, and what came of it."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from PIL import Image

from macai.page.html import render
from macai.page.words import amount, machine_line, scaled
from macai.report import charts
from macai.report.folder import RunFolder

TEMPLATE = Path(__file__).parent / "report.html.jinja"
PICTURES = 8  # of a run that are shown
SIDE = 720  # pixels, of each

Facts = list[tuple[str, str]]


def page(run: RunFolder) -> str:
    """Return the page, one HTML file that loads nothing."""
    language = run.recipe.get("kind") != "diffusion"
    units = ("tokens", "real_tokens", "processed_tokens")
    unit, real, processed = units if language else ("pictures", "images", "computed_images")
    started = run.record.get("started", {})
    histogram = started.get("lengths")
    return render(
        TEMPLATE,
        name=str(public(run.recipe)["model"]),
        about=_about(run),
        unfinished=_unfinished(run),
        versions=run.record.get("versions", {}),
        headlines=list(_headlines(run, unit, real)),
        curves=[*charts.curves(run.steps, run.validations), *charts.rewards(run.steps)]
        if run.steps
        else [],
        speed=list(charts.speed(run.steps, unit, real, processed)) if run.steps else [],
        data=(_text_facts if language else _picture_facts)(started) if started else [],
        lengths=[charts.lengths(histogram)] if histogram else [],
        answers=run.record.get("answers", []),
        pictures=[_picture(step, file) for step, file in _some(run.pictures)],
        prompts=", ".join(run.recipe.get("sample", {}).get("prompts", ())),
        recipe=tomli_w.dumps(public(run.recipe)),
    )


def public(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with the last part of each path in place of the whole."""
    return {key: _public(value) for key, value in recipe.items()}


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return public(value)
    if isinstance(value, list | tuple):
        return [_public(v) for v in value]
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~")):
        return Path(value).name
    return value


def _about(run: RunFolder) -> str:
    """Return one line: machine, tool and day."""
    record = run.record
    parts = [str(record[key]) for key in ("tool", "date") if key in record]
    if "machine" in record:
        parts.insert(
            0, f"{machine_line(record)}, MLX on the {record['machine']['backend'].upper()}"
        )
    return ". ".join(parts)


def _unfinished(run: RunFolder) -> str:
    """Return what to say of a run that is not at its end."""
    if run.record.get("state") == "finished" or not run.record:
        return ""
    last = run.steps[-1]["step"] if run.steps else 0
    of = run.record["started"]["steps"]
    return f"The run was stopped or was still going on: {last} of {of} steps are shown."


def _headlines(run: RunFolder, unit: str, real: str) -> Iterator[tuple[str, str, str]]:
    """Yield the number, what it is, and of what."""
    if run.validations:
        best = min(run.validations, key=lambda line: line["valid_loss"])
        yield f"{best['valid_loss']:.4f}", "best validation loss", f"after step {best['step']}"
    if not run.steps:
        return
    first, last = run.steps[0], run.steps[-1]
    yield (
        f"{last['loss']:.4f}",
        "training loss",
        f"of step {last['step']}, {first['loss']:.4f} before",
    )
    seconds = sum(step["seconds"] for step in run.steps)
    count = sum(step.get(real, 0) for step in run.steps)
    if seconds:
        rate = amount(count / seconds, unit).removesuffix(f" {unit}")
        yield rate, f"{unit} a second", f"{count:,} {unit} in {amount(seconds, 's')} of steps"
    if peak := max((step.get("peak_memory_bytes", 0) for step in run.steps), default=0):
        yield scaled(peak, "B"), "memory", "the most that MLX held"


def _text_facts(started: Mapping[str, Any]) -> Facts:
    rows, tokens = started["train_rows"], started["train_tokens"]
    learnt, padding = started["learnt_tokens"], 1 - started["real_share"]
    facts = [
        ("rows to learn from", f"{rows:,}"),
        ("rows to validate on", f"{started['valid_rows']:,}"),
        ("tokens in the training rows", f"{tokens:,}"),
        ("of them learnt", f"{learnt:,} ({learnt / tokens:.0%})"),
        ("padding in what is computed", f"{padding:.1%}"),
        ("rows left out for their length", f"{started['dropped_rows']:,}"),
        ("rows cut for their length", f"{started['shortened_rows']:,}"),
        ("tokens all rows begin with, computed once", f"{started['shared_prefix']:,}"),
    ]
    return [*facts, *_run_facts(started)]


def _picture_facts(started: Mapping[str, Any]) -> Facts:
    facts = [
        ("pictures to learn from", f"{started['train_images']:,}"),
        ("pictures to validate on", f"{started['valid_images']:,}"),
        ("pictures of the class", f"{started['class_images']:,}"),
        *((f"of {size}", f"{count:,}") for size, count in started["sizes"].items()),
        ("of them enlarged", f"{started['enlarged']:,}"),
        ("captions cut for their length", f"{started['cut_captions']:,}"),
    ]
    return [*facts, *_run_facts(started)]


def _run_facts(started: Mapping[str, Any]) -> Facts:
    return [
        ("parameters trained", f"{started['trainable_parameters']:,}"),
        ("steps of an epoch", f"{started['steps_per_epoch']:,}"),
        ("processes that share a step", f"{started['workers']}"),
    ]


def _some(pictures: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """Return at most `PICTURES`: the first, the last, and some between."""
    if len(pictures) <= PICTURES:
        return list(pictures)
    return [pictures[n * (len(pictures) - 1) // (PICTURES - 1)] for n in range(PICTURES)]


def _picture(step: int, file: Path) -> tuple[int, str, int, int]:
    """Return the step, a picture as a data URI, its width and its height."""
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    held = io.BytesIO()
    picture.save(held, "WEBP", quality=85)
    text = base64.b64encode(held.getvalue()).decode()
    return step, f"data:image/webp;base64,{text}", *picture.size
