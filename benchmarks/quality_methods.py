"""What LoRA, DoRA, rsLoRA, LoRA+, PiSSA and training all weights learn from the same budget.

    python -m benchmarks.quality_methods [--out FOLDER] [--steps 16] [--seeds 3]
                                         [--factors 1,4] [--methods lora,dora] [--data intents]
    python -m benchmarks.quality_methods [--out FOLDER] --report

SmolLM2-135M on two sets of real rows: the shipped intents, and questions about Python's own library
answered by its docstrings. All methods see the same rows in the same order for as many steps, with
rank 16 on all linear layers; with the first seed each tries its learning rate times all --factors,
and the one with the least validation loss is taken with the other seeds. What is compared is the
loss on test rows that decide nothing: its mean over the seeds, a 95 % interval of that (Student's),
and the same of the difference to LoRA, seed by seed.

A run is a process of its own, and its result is a file that is kept: what is there is not done
again, and one that was cut off goes on from its last checkpoint. A run takes minutes to hours.
Those of benchmarks/README.md are in results/quality_methods/.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import HERE
from benchmarks.training.docstrings import write_splits
from macai.bench.process import measure
from macai.bench.statistics import student_quantile
from macai.files import write_json
from macai.page.machine import machine, versions

METHODS: dict[str, list[str]] = {
    "lora": [],
    "dora": ['adapter.method="dora"'],
    "rslora": ["adapter.use_rslora=true"],
    "lora+": ["optimizer.loraplus_lr_ratio=16"],
    "pissa": ['adapter.init="pissa"'],
    "full": ['adapter.method="full"'],
}
"""What of the recipe makes the method."""
RATES = {"lora+": 0.25, "full": 0.1}
"""Of LoRA's learning rate, before the factors. LoRA+ has a quarter of it for A, and four
times it for B. All weights: LoRA's is ten times theirs in LoRA Without Regret (Schulman, 2025)."""
LORA_RATE = 1e-3
DATA = ("intents", "docstrings")
RESULTS = HERE / "results" / "quality_methods"
WORK = ".bench-work"  # in the folder of the results: rows and unfinished runs
TOKENS = 640  # of a step
ROWS = {"train": 1600, "valid": 60, "test": 100}  # at most


class Case(NamedTuple):
    """A run to be made."""

    data: str
    method: str
    factor: float
    seed: int

    @property
    def name(self) -> str:
        """What its folder and its result are called."""
        return f"{self.data}-{self.method}-{self.factor:g}-{self.seed}"


def main() -> None:
    """Make the runs that are missing; print one line of JSON, and a table."""
    options = argparse.ArgumentParser()
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--steps", type=int, default=16)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--factors", default="1,4")
    options.add_argument("--methods", default=",".join(METHODS))
    options.add_argument("--data", default=",".join(DATA))
    options.add_argument("--report", action="store_true", help="of what is there; run nothing")
    chosen = options.parse_args()
    methods = [name for name in METHODS if name in chosen.methods.split(",")]
    sets = [name for name in DATA if name in chosen.data.split(",")]
    chosen.out.mkdir(parents=True, exist_ok=True)
    settings = {"model": chosen.model, "steps": chosen.steps, "tokens": TOKENS}
    _require_same(chosen.out / "settings.json", settings)
    factors = [float(factor) for factor in chosen.factors.split(",")]
    first = [Case(d, m, f, 0) for d, f, m in product(sets, factors, methods)]
    results = _results(first, chosen)
    lines = compare(results)
    # Seed by seed, so that a run of this that is cut off has compared all methods.
    best = [(line["data"], line["method"], line["factor"]) for line in lines]
    others = [Case(*one, seed) for seed in range(1, chosen.seeds) for one in best]
    results |= _results(others, chosen)
    table = compare(results)
    facts = {"benchmark": "quality_methods", **settings, "table": table}
    print(json.dumps(facts | {"machine": machine(), "versions": versions()}))
    _show(table)


def _results(cases: Sequence[Case], chosen: argparse.Namespace) -> dict[Case, dict[str, Any]]:
    """Return the results of runs, of those that are there where nothing is to be run."""
    found = {}
    for number, case in enumerate(cases, 1):
        file = chosen.out / f"{case.name}.json"
        if not file.exists() and not chosen.report:
            print(f"{number} of {len(cases)}: {case.name}", file=sys.stderr)
            result = _run(case, chosen.out, chosen.model, chosen.steps)
            write_json(file, result)
        if file.exists():
            found[case] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _require_same(file: Path, settings: dict[str, Any]) -> None:
    """Keep what all results in a folder have in common, and refuse to mix others in."""
    if not file.exists():
        write_json(file, settings)
    elif (before := json.loads(file.read_text(encoding="utf-8"))) != settings:
        raise SystemExit(f"{file.parent} has results of {before}, not of {settings}")


def _run(case: Case, out: Path, model: str, steps: int) -> dict[str, Any]:
    """Train, and return losses and seconds."""
    data, folder = _data(case.data, out / WORK), out / WORK / case.name
    rate = LORA_RATE * RATES.get(case.method, 1.0) * case.factor
    settings = [
        *METHODS[case.method],
        f"optimizer.learning_rate={rate}",
        "optimizer.beta2=0.95",
        f"schedule.warmup_steps={max(1, steps // 20)}",
        f"batch.tokens={TOKENS}",
        f"train.epochs={steps / _steps_per_epoch(data, model)}",
        f"train.seed={case.seed}",
        "train.save_every=25",
        "sample.rows=0",
        f"train.eval_every={steps}",
        "data.strict=false",  # two library functions may have one docstring but for a space
    ]
    command = [sys.executable, "-m", "macai", "train", "lora", "--json"]
    command += ["--model", model, "--data", str(data), "--out", str(folder)]
    command += [word for setting in settings for word in ("--set", setting)]
    command += ["--resume"] if (folder / "checkpoint.safetensors").exists() else ["--force"]
    summary = json.loads(_output(command))
    loss = [sys.executable, "-m", "benchmarks.training.valid_loss", "--model"]
    loss += [summary["model"] or model, "--data", str(data / "test.jsonl")]
    loss += ["--adapter", summary["adapter"]] if summary["adapter"] else []
    test_loss = json.loads(_output(loss))["valid_loss"]
    shutil.rmtree(folder)  # all weights and their checkpoint are 2 GB
    kept = ("steps", "valid_loss", "train_loss", "real_tokens", "seconds")
    numbers = {key: summary[key] for key in kept}
    return numbers | {"learning_rate": rate, "test_loss": test_loss}


def _output(command: list[str]) -> str:
    """Return what a process printed; what it says meanwhile is seen."""
    run = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise SystemExit(f"{command[:4]} ended with {run.returncode}")
    return run.stdout


def _data(name: str, work: Path) -> Path:
    """Return a folder with train.jsonl, valid.jsonl and test.jsonl."""
    folder = work / name
    if folder.exists():
        return folder
    if name == "docstrings":
        write_splits(folder, rows=ROWS["train"], valid=ROWS["valid"], test=ROWS["test"])
        return folder
    folder.mkdir(parents=True)
    for split, count in ROWS.items():
        source = HERE.parent / "recipes" / "data" / name / f"{split}.jsonl"
        rows = source.read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / source.name).write_text("".join(rows[:count]), encoding="utf-8")
    return folder


def _steps_per_epoch(data: Path, model: str) -> int:
    command = [sys.executable, "-m", "macai", "data", "check", str(data), "--model", model]
    command += ["--set", f"batch.tokens={TOKENS}", "--set", "data.strict=false", "--json"]
    steps: int = json.loads(measure(command).output)["epoch"]["steps"]
    return steps


def compare(results: dict[Case, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a line for each data set and method: at the factor that validation prefers."""
    lines = []
    for data in dict.fromkeys(case.data for case in results):
        best: dict[str, dict[int, float]] = {}
        for method in METHODS:
            runs = {c: r for c, r in results.items() if (c.data, c.method) == (data, method)}
            if not runs:
                continue
            seeds = max(len(_of(runs, c.factor)) for c in runs)
            whole = {c.factor for c in runs if len(_of(runs, c.factor)) == seeds}
            factor = min(whole, key=lambda f: statistics.mean(_of(runs, f, "valid_loss").values()))
            best[method] = _of(runs, factor, "test_loss")
            line: dict[str, Any] = {"data": data, "method": method, "factor": factor}
            line |= {"seeds": seeds, "test_loss": interval(list(best[method].values()))}
            if method != "lora" and "lora" in best:
                both = best["lora"].keys() & best[method].keys()
                differences = [best[method][s] - best["lora"][s] for s in sorted(both)]
                line["less_lora"] = interval(differences)
            lines.append(line)
    return lines


def _of(
    runs: dict[Case, dict[str, Any]], factor: float, what: str = "test_loss"
) -> dict[int, float]:
    """Return a number of each seed."""
    return {c.seed: r[what] for c, r in runs.items() if c.factor == factor}


def interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean and its 95 % interval, which one value has not."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, None, None
    half = student_quantile(0.975, len(values) - 1)
    half *= statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def _show(table: Sequence[dict[str, Any]]) -> None:
    print(
        "| data | method | rate | test loss | less LoRA's |\n|---|---|---|---|---|", file=sys.stderr
    )
    for line in table:
        rate = LORA_RATE * RATES.get(line["method"], 1.0) * line["factor"]
        less = _text(line["less_lora"], "+") if "less_lora" in line else ""
        cells = [line["data"], line["method"], f"{rate:g}", _text(line["test_loss"]), less]
        print(f"| {' | '.join(cells)} |", file=sys.stderr)


def _text(value: tuple[float, float | None, float | None], sign: str = "") -> str:
    mean, low, high = value
    ends = "" if low is None else f" ({low:{sign}.4f} to {high:{sign}.4f})"
    return f"{mean:{sign}.4f}{ends}"


if __name__ == "__main__":
    main()
