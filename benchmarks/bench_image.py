"""Seconds and memory of making a picture, beside diffusers, at the size of Stable Diffusion 1.5.

    python -m benchmarks.bench_image [--runs 3] [--steps 2] [--pixels 512] [--quantize 8]
                                     [--peer diffusers] [--peer-python PYTHON] [--tiny]

Weights are random: there are no others here, and they cost the same. All sides read one folder, in
float16 on disk, and compute in float32 on a CPU; macai once more with 8 bits for the linear layers.
Each picture is a process of its own, from the folder to the PNG. The peer has an environment of its
own (peers.toml), unless --peer-python names another. Gives the whole process, making the picture,
a U-Net call (prompt and negative prompt), what comes before the first call (text; with macai the
weights are read meanwhile, with the peer before) and after the last one (decoding); ratios; and how
far the pictures are apart.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import in_turns, peer_python, process, tell
from benchmarks.random_sd import random_model

_DIFFUSERS = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
folder, out, steps, pixels = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe.set_progress_bar_config(disable=True)
ends, calls, whole = [], [], pipe.unet.forward
def timed(*a, **k):
    began = time.perf_counter()
    result = whole(*a, **k)
    ends.append(time.perf_counter())
    calls.append(ends[-1] - began)
    return result
pipe.unet.forward = timed
began = time.perf_counter()
image = pipe("a lighthouse at dusk", num_inference_steps=steps, height=pixels, width=pixels,
             generator=torch.Generator().manual_seed(1)).images[0]
ended = time.perf_counter()
print(json.dumps({"seconds": ended - began, "text_seconds": ends[0] - calls[0] - began,
                  "call_seconds": calls, "decode_seconds": ended - ends[-1]}))
image.save(out)
"""


def main() -> None:
    """Make the pictures."""
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--steps", type=int, default=2)
    options.add_argument("--pixels", type=int, default=512)
    options.add_argument("--quantize", type=int, default=8)
    options.add_argument("--peer", choices=["diffusers", "none"], default="none")
    options.add_argument("--peer-python")
    options.add_argument("--tiny", action="store_true", help="to try the benchmark itself")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as scratch:
        folder, size = f"{scratch}/model", f"{chosen.pixels}x{chosen.pixels}"
        random_model("sd1-tiny" if chosen.tiny else "sd1", Path(folder))
        ours = [sys.executable, "-m", "macai", "image", "a lighthouse at dusk", "--model", folder]
        ours += ["--steps", str(chosen.steps), "--size", size, "--scheduler", "ddim"]
        ours += ["--seed", "1", "--dtype", "float32", "--force", "--json", "--out"]
        bits = f"macai, {chosen.quantize} bits"
        commands = {
            "macai": [*ours, f"{scratch}/macai.png"],
            bits: [
                *[*ours, f"{scratch}/bits.png"],
                *["--quantize", str(chosen.quantize), "--low-memory", "--serial"],
            ],
        }
        if chosen.peer == "diffusers":
            peer = [folder, f"{scratch}/diffusers.png", str(chosen.steps), str(chosen.pixels)]
            python = chosen.peer_python or peer_python("diffusers")
            commands["diffusers"] = [python, "-c", _DIFFUSERS, *peer]
        sides = {name: partial(process, command, printed) for name, command in commands.items()}
        facts: dict[str, Any] = {"steps": chosen.steps, "size": size}
        measured = in_turns(sides, chosen.runs)
        if "diffusers" in commands:
            facts["psnr_to_diffusers"] = {
                "macai": psnr(f"{scratch}/macai.png", f"{scratch}/diffusers.png"),
                bits: psnr(f"{scratch}/bits.png", f"{scratch}/diffusers.png"),
            }
    tell("image", measured, to="diffusers" if "diffusers" in commands else "macai", **facts)


def printed(output: str) -> Mapping[str, float]:
    """Return what a process said of itself in its last line."""
    said = json.loads(output.splitlines()[-1])
    call = statistics.median(said["call_seconds"])
    return {
        "picture_seconds": said["seconds"],
        "unet_call_seconds": call,
        "text_seconds": said["text_seconds"],
        "decode_seconds": said["decode_seconds"],
    }


def psnr(first: str, second: str) -> float:
    """Return how close two pictures of 8 bits are, in dB; those that are equal give 99."""
    import numpy as np
    from PIL import Image

    a, b = (np.asarray(Image.open(p).convert("RGB"), np.float64) for p in (first, second))
    error = float(np.mean((a - b) ** 2))
    return 99.0 if error == 0 else round(float(10 * np.log10(255**2 / error)), 1)


if __name__ == "__main__":
    main()
