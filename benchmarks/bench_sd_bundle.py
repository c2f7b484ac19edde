"""Seconds, memory and closeness of whole exports of Stable Diffusion, at full size.

    python -m benchmarks.bench_sd_bundle [--kinds sd1 sd2 sdxl] [--size 512x512]
                                         [--timesteps 1] [--trajectory 20] [--runs 1]

`macai export sd` as a user starts it, comparison included, of models with random weights: see
random_sd.py for the kinds. sd1-controlnet is SD 1.5 with a ControlNet beside it. SD Turbo has a
U-Net of one row (--batch 1). Gives wall and CPU seconds, the peak of resident memory, the size of
all packages, the least PSNR of any output in float32 and in float16, and with --trajectory by how
much the least cosine of the latents on the way is below 1, and their PSNR at its end.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Values, in_turns, process, tell
from benchmarks.random_sd import CONTROLNET, KINDS, random_model

_WHOLE = [kind for kind in KINDS if "unet" not in kind and "tiny" not in kind]
_OPTIONS = {"sd-turbo": ["--batch", "1"]}


def main() -> None:
    """Export one kind after the other."""
    options = argparse.ArgumentParser()
    options.add_argument("--kinds", nargs="+", choices=[*KINDS, CONTROLNET], default=_WHOLE)
    options.add_argument("--size")
    options.add_argument("--timesteps", type=int, default=1)
    options.add_argument("--trajectory", type=int, default=0)
    options.add_argument("--runs", type=int, default=1)
    chosen = options.parse_args()
    asked = ["--timesteps", str(chosen.timesteps), "--trajectory", str(chosen.trajectory)]
    asked += ["--size", chosen.size] if chosen.size else []
    for kind in chosen.kinds:
        with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as scratch:
            bundle = Path(scratch) / "bundle"
            own = [*_model(kind, Path(scratch)), *_OPTIONS.get(kind, []), *asked]
            command = [sys.executable, "-m", "macai", "export", "sd", *own]
            side = partial(_export, [*command, "--json", "--out", str(bundle)], bundle)
            tell("sd-bundle", in_turns({kind: side}, chosen.runs), options=asked)


def _model(kind: str, folder: Path) -> Sequence[str]:
    """Write a random model, and return the options that name it."""
    base = "sd1" if kind == CONTROLNET else kind
    random_model(base, folder / base)
    if kind != CONTROLNET:
        return ["--model", str(folder / base)]
    random_model(CONTROLNET, folder / "net")
    return ["--model", str(folder / base), "--controlnet", f"Net={folder / 'net' / 'controlnet'}"]


def _export(command: Sequence[str], bundle: Path) -> Values:
    shutil.rmtree(bundle, ignore_errors=True)
    return process(command, _closeness)


def _closeness(output: str) -> Values:
    """Return what an export printed of itself, in numbers."""
    said = json.loads(output.splitlines()[-1])
    report: dict[str, Any] = said["verify"]
    outputs = [of for one in report["packages"].values() for of in one["outputs"].values()]
    found = {"packages_bytes": float(sum(one["bytes"] for one in said["packages"].values()))}
    for kind in ("fp32", "fp16"):
        found[f"least_psnr_{kind}"] = min((of[kind]["psnr"] for of in outputs), default=math.nan)
        if way := report.get("trajectory", {}).get(kind):
            found[f"trajectory_cosine_below_1_{kind}"] = 1 - min(way["cosine"])
            found[f"trajectory_psnr_{kind}"] = way["psnr"]
    return found


if __name__ == "__main__":
    main()
