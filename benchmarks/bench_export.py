"""Seconds and memory of exporting a language model, beside torch and coremltools' own converter.

    python benchmarks/bench_export.py [--model DIR] [--runs 3] [--peer torch] [--context 512]

Each export is a process of its own, from the folder of a Hugging Face model to a saved package;
the two alternate in one run. macai writes two functions with states (a prefill of 64 tokens, and
decode); the peer traces transformers' model for 64 tokens without a cache and converts that: less.
It needs the oracle extra. Prints one JSON line: medians, peak resident memory, and their ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from macai.bench.machine import machine, versions

_TORCH = """
import sys, warnings
warnings.simplefilter("ignore")
import coremltools as ct, numpy as np, torch, transformers
folder, out, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

class LastLogits(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model
        # Its own mask is made by operations that the converter does not know.
        hidden = torch.full((tokens, tokens), -1e4).triu(1)[None, None]
        self.register_buffer("mask", hidden)
    def forward(self, ids):
        return self.model(ids, attention_mask=self.mask, use_cache=False).logits[:, -1:]

with torch.no_grad():
    traced = torch.jit.trace(LastLogits(), torch.zeros((1, tokens), dtype=torch.long), strict=False)
package = ct.convert(
    traced,
    inputs=[ct.TensorType("ids", (1, tokens), dtype=np.int32)],
    minimum_deployment_target=ct.target.iOS18,
    skip_model_load=True,
)
package.save(out)
"""


def measure(command: list[str]) -> tuple[float, int]:
    """Run a process; return its wall seconds and its peak resident memory, bytes."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[:4]}: {said.decode()[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - began, usage.ru_maxrss * unit


def half_model(model: str, folder: Path) -> Path:
    """Return a folder of the model in float16, which both sides read."""
    import mlx.core as mx

    from macai.catalog import locate_model
    from macai.coreml.bundle import settle_weights
    from macai.models.fuse import write_model
    from macai.models.load import load_model

    loaded = load_model(locate_model(model, progress=lambda *_: None), as_stored=True)
    settle_weights(loaded, mx.float16)
    folder.mkdir()
    write_model(loaded, folder, dtype="float16")
    return folder


def main() -> None:
    """Print one JSON line."""
    options = argparse.ArgumentParser()
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--context", type=int, default=512)
    options.add_argument("--peer", choices=["torch", "none"], default="none")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        folder = half_model(chosen.model, Path(scratch) / "model")
        ours = [sys.executable, "-m", "macai", "export", "llm", "--model", str(folder)]
        ours += ["--no-verify", "--force", "--context", str(chosen.context)]
        ours += ["--out", f"{scratch}/ours"]
        commands = {"macai": ours}
        if chosen.peer == "torch":
            torch = [sys.executable, "-c", _TORCH, str(folder), f"{scratch}/t.mlpackage", "64"]
            commands["torch"] = torch
        runs: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
        for _ in range(chosen.runs):
            for name, command in commands.items():
                runs[name].append(measure(command))
        weights = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    result: dict[str, object] = {"benchmark": "export", "runs": chosen.runs}
    seconds = {name: statistics.median(s for s, _ in of) for name, of in runs.items()}
    memory = {name: max(m for _, m in of) for name, of in runs.items()}
    result["median_seconds"] = {name: round(value, 2) for name, value in seconds.items()}
    result["peak_bytes"] = memory
    result["weight_bytes"] = weights
    result["peak_per_weight_byte"] = {n: round(m / weights, 2) for n, m in memory.items()}
    if "torch" in seconds:
        result["torch_seconds_per_macai_second"] = round(seconds["torch"] / seconds["macai"], 2)
    print(json.dumps(result | {"machine": machine(), "versions": versions()}))


if __name__ == "__main__":
    main()
