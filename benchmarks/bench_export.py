"""Seconds and memory of exporting a language model, beside other converters.

    python -m benchmarks.bench_export [--model DIR] [--runs 3] [--peer torch] [--context 512]
                                      [--peer-python PYTHON] [--verified] [--model-size 1b]
    python -m benchmarks.bench_export --peer mlx2coreml

Each export is a process of its own, from the folder of a Hugging Face model to a saved package.
macai writes two functions with states (a prefill of 64 tokens, and decode), not compared with the
model; with --verified once more as it does unless told not to, compared. The peer torch traces
transformers' model for 64 tokens without a cache and converts that: less. A peer has an environment
of its own (peers.toml), unless --peer-python names another. With --model-size the model is a random
one of the shape of Llama 3.2 1B, written where this is run: 2.5 GB. Gives wall and CPU seconds,
the peak of resident memory, and ratios.

With --peer mlx2coreml nothing is timed: tiny random models of the architectures that macai promises
are exported by both, run by macai's own runtime, and compared with MLX.
"""

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import in_turns, peer_python, process, tell
from macai.bench.process import measure
from macai.page.machine import machine, versions

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
_MLX2COREML = """
import importlib.metadata, json, sys, warnings
warnings.simplefilter("ignore")
import mlx.core as mx
import mlx2coreml
from mlx_lm.utils import _get_classes
folder, out = sys.argv[1:]
config = json.load(open(f"{folder}/config.json"))
made, arguments = _get_classes(config)
model = made(arguments.from_dict(config))
model.load_weights(f"{folder}/model.safetensors")
mx.eval(model.parameters())
names = ("mlx2coreml", "mlx", "mlx-lm", "coremltools")
result = {"versions": {name: importlib.metadata.version(name) for name in names}}
settings = {"deployment_target": "iOS18", "convert_to": "mlprogram", "compute_precision": "fp32"}
try:
    mlx2coreml.convert_mlx_to_coreml(
        model,
        {"input_ids": mx.array([json.load(open(f"{folder}/ids.json"))], dtype=mx.int32)},
        config=mlx2coreml.ConversionConfig(**settings),
        capture_function=lambda input_ids: model(input_ids),
    ).model.save(out)
except Exception as e:
    lines = str(e).splitlines()
    result["refused"] = f"{type(e).__name__}: {' '.join(lines[:2])}"
print(json.dumps(result))
"""


def main() -> None:
    """Print one JSON line."""
    options = argparse.ArgumentParser()
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--context", type=int, default=512)
    options.add_argument("--peer", choices=["torch", "mlx2coreml", "none"], default="none")
    options.add_argument("--peer-python")
    options.add_argument("--verified", action="store_true")
    options.add_argument("--model-size", choices=["1b"])
    chosen = options.parse_args()
    if chosen.peer == "mlx2coreml":
        python = chosen.peer_python or peer_python("mlx2coreml")
        print(json.dumps(beside_mlx2coreml(python)))
        return
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        prepare = ["-m", "benchmarks.random_llama"] if chosen.model_size else ["-c", _HALVES]
        measure([sys.executable, *prepare, chosen.model, str(folder)])
        ours = [sys.executable, "-m", "macai", "export", "llm", "--model", str(folder)]
        ours += ["--force", "--context", str(chosen.context), "--out", f"{scratch}/ours"]
        commands = {"macai": [*ours, "--no-verify"]}
        if chosen.verified:
            commands["macai, verified"] = ours
        if chosen.peer == "torch":
            torch = ["-c", _TORCH, str(folder), f"{scratch}/t.mlpackage", "64"]
            commands["torch"] = [chosen.peer_python or peer_python("torch"), *torch]
        sides = {name: partial(process, command) for name, command in commands.items()}
        measured = in_turns(sides, chosen.runs)
        weights = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    peaks = {name: max(numbers["peak_bytes"]) for name, numbers in measured.items()}
    share = {name: round(peak / weights, 2) for name, peak in peaks.items()}
    tell("export", measured, to="macai", weight_bytes=weights, peak_per_weight_byte=share)


def beside_mlx2coreml(python: str) -> dict[str, Any]:
    """Export each listed architecture by both; return how near each package is to MLX."""
    import macai.models  # noqa: F401  # the fast BLAS, before anything else imports MLX
    from macai.bench.architectures import LISTED, agreement, build, config_of

    found: dict[str, Any] = {}
    peer_versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as scratch:
        for name, extra in LISTED.items():
            config = config_of(name, extra)
            model = build(config)
            ours = agreement(model, Path(scratch) / "ours.mlpackage")
            theirs = _mlx2coreml(python, model, config, Path(scratch))
            peer_versions = theirs.pop("versions")
            found[name] = {"macai": ours._asdict(), "mlx2coreml": theirs}
    return {
        "benchmark": "architectures",
        "architectures": found,
        "machine": machine(),
        "versions": versions(),
        "peer_versions": peer_versions,
    }


def _mlx2coreml(python: str, model: Any, config: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Export by the peer a model of a prompt without a cache, which is what it can; compare."""
    import mlx.core as mx
    import numpy as np

    from macai.bench.architectures import ROWS, compared, tokens_of
    from macai.mil import open_package
    from macai.models.arrays import named_arrays

    folder, package = scratch / "model", scratch / "theirs.mlpackage"
    folder.mkdir(exist_ok=True)
    ids = tokens_of()[:ROWS]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "ids.json").write_text(json.dumps(ids.tolist()))
    mx.save_safetensors(str(folder / "model.safetensors"), named_arrays(model.parameters()))
    run = measure([python, "-c", _MLX2COREML, str(folder), str(package)])
    result: dict[str, Any] = json.loads(run.output.splitlines()[-1])
    if "refused" not in result:
        logits = next(iter(open_package(package).functions.values())).run({"input_ids": ids[None]})
        got = next(iter(logits.outputs.values()))[0]
        result |= compared(list(got), list(np.array(model(mx.array(ids)[None])[0])))._asdict()
    return result


if __name__ == "__main__":
    main()
