"""Folders as runs leave them, without training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from macai.files import write_json
from macai.recipe import Data, DiffusionRecipe, Recipe, dumps
from macai.report.folder import RECORD

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"
MACHINE = {
    "system": "macOS 26.0",
    "architecture": "arm64",
    "cores": 8,
    "memory_bytes": 16 << 30,
    "backend": "gpu",
}
VERSIONS = {"macai": "0.1.0", "mlx": "0.32.4", "coremltools": None}
TEXTS: dict[str, Any] = {
    "train_rows": 120,
    "valid_rows": 12,
    "dropped_rows": 1,
    "shortened_rows": 2,
    "train_tokens": 4800,
    "learnt_tokens": 1200,
    "lengths": [(16, 32, 40), (32, 64, 80)],
    "trainable_parameters": 8192,
    "steps": 400,
    "steps_per_epoch": 40,
    "first_step": 0,
    "shared_prefix": 9,
    "real_share": 0.93,
    "workers": 2,
    "expected_memory_bytes": 1_500_000_000,
    "available_memory_bytes": 16_000_000_000,
}
PICTURES: dict[str, Any] = {
    "train_images": 20,
    "valid_images": 0,
    "class_images": 4,
    "sizes": {"512x512": 24},
    "enlarged": 3,
    "cut_captions": 1,
    "random": (),
    "trainable_parameters": 4096,
    "steps": 400,
    "steps_per_epoch": 20,
    "first_step": 0,
    "workers": 1,
}


def text_run(folder: Path, *, steps: int = 400, state: str = "finished", text: str = "on") -> Path:
    """Write the folder of a run of a language model; `text` is what others wrote in it."""
    recipe = Recipe(model=text, data=Data(path=Path("/Users/somebody/secret/rows.jsonl")))
    answers = [{"prompt": text, "wanted": text, "before": text, "after": text}] * 3
    _write(folder, recipe, TEXTS, state, answers)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append(_step(step) | {"real_tokens": 1800, "processed_tokens": 2000})
        if step % 40 == 0:
            lines.append({"step": step, "valid_loss": 2.0 + 40 / step})
    _log(folder, lines)
    return folder


def rewarded(folder: Path) -> Path:
    """Write the folder of a run that compared answers."""
    text_run(folder, steps=0)
    lines = []
    for step in range(1, 41):
        names = {"chosen": step / 40, "rejected": -step / 10, "margin": step / 8, "accuracy": 0.75}
        lines.append(_step(step) | {f"rewards/{name}": value for name, value in names.items()})
    _log(folder, lines)
    return folder


def picture_run(folder: Path, *, steps: int = 40) -> Path:
    """Write the folder of a run on pictures that made some on the way."""
    _write(folder, DiffusionRecipe(model="stable-diffusion"), PICTURES, "finished", [])
    (folder / "samples").mkdir()
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append(_step(step) | {"images": 4, "computed_images": 4})
        if step % 2 == 0:
            name = f"samples/step-{step:06d}.png"
            pixels = np.random.default_rng(step).integers(0, 255, (64, 96, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
            lines.append({"step": step, "sample": name})
    _log(folder, lines)
    return folder


def _step(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 2.0 + 4 / step,
        "learning_rate": 2e-4,
        "grad_norm": 1.0,
        "seconds": 0.5,
        "peak_memory_bytes": 2_000_000_000,
    }


def _write(
    folder: Path, recipe: Any, started: dict[str, Any], state: str, answers: list[dict[str, str]]
) -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(dumps(recipe))
    record = {
        "kind": "macai-run",
        "version": 1,
        "tool": "macai 0.1.0",
        "date": "2026-01-02",
        "machine": MACHINE,
        "versions": VERSIONS,
        "state": state,
        "started": started,
        "answers": answers,
    }
    write_json(folder / RECORD, record)


def _log(folder: Path, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
