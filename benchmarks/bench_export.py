"""Seconds and memory of exporting a language model, beside torch and coremltools' own converter.

    python benchmarks/bench_export.py [--model DIR] [--runs 3] [--peer torch] [--context 512]
                                      [--peer-python PYTHON] [--verified]

Each export is a process of its own, from the folder of a Hugging Face model to a saved package;
they alternate in one run. macai writes two functions with states (a prefill of 64 tokens, and
decode), not compared with the model; with --verified once more as it does unless told not to,
compared. The peer traces transformers' model for 64 tokens without a cache and converts that: less.
It needs the oracle extra, in the Python that --peer-python names. Prints one JSON line: medians of
wall and of CPU seconds (user and system, of all threads), the highest peak of resident memory, and
their ratios.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from macai.bench.machine import machine, versions
from macai.bench.process import Run, measure

# A folder of the model in float16, which both sides read.
_HALVES = """
import sys
from pathlib import Path
import macai.models
import mlx.core as mx
from macai.catalog import locate_model
from macai.coreml.bundle import settle_weights
from macai.models.fuse import write_model
from macai.models.load import load_model
loaded = load_model(locate_model(sys.argv[1], progress=lambda *_: None), as_stored=True)
settle_weights(loaded, mx.float16)
write_model(loaded, Path(sys.argv[2]), dtype="float16")
"""
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


def main() -> None:
    """Print one JSON line."""
    options = argparse.ArgumentParser()
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--context", type=int, default=512)
    options.add_argument("--peer", choices=["torch", "none"], default="none")
    options.add_argument("--peer-python", default=sys.executable)
    options.add_argument("--verified", action="store_true")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        measure([sys.executable, "-c", _HALVES, chosen.model, str(folder)])
        ours = [sys.executable, "-m", "macai", "export", "llm", "--model", str(folder)]
        ours += ["--force", "--context", str(chosen.context), "--out", f"{scratch}/ours"]
        commands = {"macai": [*ours, "--no-verify"]}
        if chosen.verified:
            commands["macai, verified"] = ours
        if chosen.peer == "torch":
            torch = ["-c", _TORCH, str(folder), f"{scratch}/t.mlpackage", "64"]
            commands["torch"] = [chosen.peer_python, *torch]
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(chosen.runs):
            for name, command in commands.items():
                runs[name].append(measure(command))
        weights = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    result = {"benchmark": "export", "runs": chosen.runs, **summary(runs, weights)}
    print(json.dumps(result | {"machine": machine(), "versions": versions()}))


def summary(runs: dict[str, list[Run]], weights: int) -> dict[str, object]:
    """Return medians and ratios by name."""
    seconds = {name: statistics.median(run.seconds for run in of) for name, of in runs.items()}
    cpu = {name: statistics.median(run.cpu_seconds for run in of) for name, of in runs.items()}
    memory = {name: max(run.peak_bytes for run in of) for name, of in runs.items()}
    result: dict[str, object] = {
        "median_seconds": {name: round(value, 2) for name, value in seconds.items()},
        "median_cpu_seconds": {name: round(value, 2) for name, value in cpu.items()},
        "peak_bytes": memory,
        "weight_bytes": weights,
        "peak_per_weight_byte": {n: round(m / weights, 2) for n, m in memory.items()},
    }
    if "torch" in seconds:
        result["torch_seconds_per_macai_second"] = round(seconds["torch"] / seconds["macai"], 2)
        result["the_same_of_cpu_seconds"] = round(cpu["torch"] / cpu["macai"], 2)
    return result


if __name__ == "__main__":
    main()
