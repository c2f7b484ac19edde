"""Tokens a second, memory and what is learnt of macai's trainer, beside mlx-lm's as it is shipped.

    python -m benchmarks.bench_train --peer mlx-lm [--steps 20] [--rounds 3]
    python -m benchmarks.bench_train --ablate [--steps 8] [--rounds 3]
    python -m benchmarks.bench_train --peer mlx-lm --model-size 1b --peer-python PYTHON   # on a GPU

1,600 questions about Python's own library, answered by its docstrings: real text of very different
lengths. mlx-lm takes 8 rows a step, some 1,800 tokens with its padding; macai's budget of tokens is
such that its steps hold as many real ones, so both have seen as many after as many updates. Model,
rank, scale, layers, optimiser and learning rate are the same, and on Linux the BLAS. Each run is a
process of its own. A GPU computes in bfloat16, a CPU in float32, on both sides.

Real tokens are those of the rows, padding aside; useful is the share of the computed tokens that
are no padding; valid_loss is of 100 other rows, by the same code for both. bound_share is the part
of the machine's rate of matrix products, measured in the same round, that these tokens need: twice
the parameters forward and twice backward, the head for learnt tokens only, and the adapter's own.
cpu_bound_share is the same by processor time, which other work on the machine disturbs less.

--ablate takes one thing after the other away from macai's own trainer, in one process.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import HERE, Measured, Sides, in_turns, peer_python, process, tell
from benchmarks.training.docstrings import write_splits
from macai.bench.process import measure

ROWS = 8  # of a step of mlx-lm's
TOKENS = 960  # of a step of macai's, padding included: as many real ones
TRAIN_ROWS, VALID_ROWS = 1600, 100
RANK, SCALE, RATE = 16, 2.0, 2e-4
BLAS = HERE.parent / "macai" / "models" / "blas.py"
TARGETS = [f"self_attn.{name}_proj" for name in "qkvo"]
TARGETS += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
ONE = "one process"
SETTINGS = {"recomputed blocks": "batch.recompute=true", "parts of 256": "batch.micro_tokens=256"}

# The folder that both sides read, in the type that the machine computes in.
_FOLDER = """
import sys
from pathlib import Path
import macai.models
import mlx.core as mx
from macai.catalog import locate_model
from macai.models.fuse import write_model
from macai.models.load import load_model
loaded = load_model(locate_model(sys.argv[1], progress=lambda *_: None))
dtype = "float32" if mx.default_device() == mx.cpu else "bfloat16"
write_model(loaded, Path(sys.argv[2]), dtype=dtype)
"""


def main() -> None:
    """Print one JSON line."""
    options = argparse.ArgumentParser()
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--model-size", choices=["1b"])
    options.add_argument("--peer", choices=["mlx-lm", "none"], default="none")
    options.add_argument("--peer-python")
    options.add_argument("--ablate", action="store_true")
    options.add_argument("--only", action="append", help="of --ablate: only these, by name")
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--set", action="append", default=[], help="of macai's recipe")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch)
        write_splits(at / "data", rows=TRAIN_ROWS, valid=VALID_ROWS)
        _write_model(chosen.model, chosen.model_size, at / "model")
        sides = _sides(at, chosen)
        measured = in_turns(sides, chosen.rounds)
    _add_shares(measured)
    of = ONE if chosen.ablate else "mlx-lm" if chosen.peer == "mlx-lm" else None
    tell("train", measured, to=of, steps=chosen.steps, rows=TRAIN_ROWS, settings=chosen.set)


def _write_model(name: str, size: str | None, folder: Path) -> None:
    if size:
        command = ["-m", "benchmarks.random_llama", name, str(folder), "bfloat16"]
    else:
        command = ["-c", _FOLDER, name, str(folder)]
    measure([sys.executable, *command])


def _sides(at: Path, chosen: argparse.Namespace) -> Sides:
    """Return what takes turns: tuners, or one tuner with and without; and the machine's bound."""
    command = [sys.executable, "-m", "benchmarks.training.bound", "--model", str(at / "model")]
    sides = {"bound": partial(_bound, [*command, "--tokens", str(TOKENS), "--rank", str(RANK)])}
    if chosen.peer == "mlx-lm":
        python = chosen.peer_python or peer_python("mlx-lm")
        sides["mlx-lm"] = partial(_mlx_lm, at, python, chosen.steps)
    ours = partial(_macai, at, chosen.steps)
    sides["macai"] = partial(ours, chosen.set)
    if chosen.ablate:
        alone = [*chosen.set, "train.workers=1"]
        sides[ONE] = partial(ours, alone)
        for name, setting in SETTINGS.items():
            sides[name] = partial(ours, [*alone, setting])
        for name in _features():
            sides[f"without {name}"] = partial(ours, alone, without=name)
        if chosen.only:
            sides = {n: s for n, s in sides.items() if n in ("bound", ONE, *chosen.only)}
    return sides


def _features() -> list[str]:
    """Return what the process of a run of macai's can leave out; it knows, and MLX is not here."""
    command = [sys.executable, "-m", "benchmarks.training.macai_side", "--list"]
    names: list[str] = json.loads(measure(command).output)
    return names


def _bound(command: Sequence[str]) -> Mapping[str, float]:
    values: dict[str, float] = json.loads(measure(list(command)).output)
    return values


def _mlx_lm(at: Path, python: str, steps: int) -> Mapping[str, float]:
    out, never = at / "theirs", 10**9
    config = {
        "model": str(at / "model"),
        "train": True,
        "data": str(at / "data"),
        "fine_tune_type": "lora",
        "optimizer": "adamw",
        "optimizer_config": {"adamw": {"weight_decay": 0.0, "bias_correction": True}},
        "num_layers": -1,
        "batch_size": ROWS,
        "iters": steps,
        "val_batches": 1,
        "learning_rate": RATE,
        "steps_per_report": steps,
        "steps_per_eval": never,
        "save_every": never,
        "max_seq_length": 2048,
        "mask_prompt": True,
        "adapter_path": str(out),
        "lora_parameters": {"rank": RANK, "scale": SCALE, "dropout": 0.0, "keys": TARGETS},
    }
    file = at / "config.json"
    file.write_text(json.dumps(config))
    side = str(HERE / "training" / "mlx_lm_side.py")
    return _with_loss(at, out, process([python, side, str(file), str(BLAS)], _printed))


def _macai(
    at: Path, steps: int, settings: Sequence[str], *, without: str | None = None
) -> Mapping[str, float]:
    recipe = {
        "adapter.rank": RANK,
        "adapter.alpha": RANK * SCALE,
        "optimizer.learning_rate": RATE,
        "optimizer.max_grad_norm": 0,
        "schedule.name": '"constant"',
        "schedule.warmup_steps": 0,
        "batch.tokens": TOKENS,
        "data.max_length": 2048,
        "train.epochs": steps * ROWS / TRAIN_ROWS,
        "train.save_every": 0,
        "sample.rows": 0,
    }
    out = at / "ours"
    command = [sys.executable, "-m", "benchmarks.training.macai_side", "--out", str(out)]
    command += ["--model", str(at / "model"), "--data", str(at / "data")]
    for setting in [*(f"{key}={value}" for key, value in recipe.items()), *settings]:
        command += ["--set", setting]
    command += ["--without", without] if without else []
    return _with_loss(at, out, process(command, _printed))


def _printed(text: str) -> dict[str, float]:
    """Return the numbers of a side's last line, and what follows from them."""
    values: dict[str, Any] = json.loads(text.splitlines()[-1])
    assert values.pop("fast_products") or sys.platform != "linux", "no fast BLAS was loaded"
    real = values["real_tokens"]
    by_time = {
        "real_tokens_per_second": real / values["train_seconds"],
        "real_tokens_per_cpu_second": real / values["train_cpu_seconds"],
    }
    return by_time | values


def _with_loss(at: Path, adapter: Path, values: Mapping[str, float]) -> Mapping[str, float]:
    command = [sys.executable, "-m", "benchmarks.training.valid_loss", "--adapter", str(adapter)]
    command += ["--model", str(at / "model"), "--data", str(at / "data" / "valid.jsonl")]
    loss: dict[str, float] = json.loads(measure(command).output)
    return {**values, **loss}


def _add_shares(measured: Measured) -> None:
    """Give each tuner the share of the bound that its tokens need, round by round."""
    bound = measured["bound"]
    a_token = [4 * p + 6 * a for p, a in _pairs(bound, "block_parameters", "adapter_parameters")]
    a_learnt = [4 * p for p in bound["head_parameters"]]
    for name, numbers in measured.items():
        if name == "bound":
            continue
        tokens = _pairs(numbers, "real_tokens", "learnt_tokens")
        needed = [
            real * each + learnt * more
            for (real, learnt), each, more in zip(tokens, a_token, a_learnt, strict=True)
        ]
        for share, seconds, rate in (
            ("bound_share", "train_seconds", "flops_per_second"),
            ("cpu_bound_share", "train_cpu_seconds", "flops_per_cpu_second"),
        ):
            rounds = zip(needed, numbers[seconds], bound[rate], strict=True)
            numbers[share] = [operations / s / r for operations, s, r in rounds]


def _pairs(numbers: Mapping[str, list[float]], one: str, other: str) -> list[tuple[float, float]]:
    return list(zip(numbers[one], numbers[other], strict=True))


if __name__ == "__main__":
    main()
