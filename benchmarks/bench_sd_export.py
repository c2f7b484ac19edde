"""Seconds, memory and size of exporting Stable Diffusion's U-Net, beside torch and Core ML's tools.

    python -m benchmarks.bench_sd_export [--blocks full] [--runs 1] [--peer torch]
                                         [--peer-python PYTHON]

Each export is a process of its own, from the folder of a random U-Net in float16 to a saved package
in float16 with Apple's inputs: two rows, attention "original". The peer is what Apple's exporter
does: diffusers' U-Net in float32, its attention as matrix products, traced by torch and converted
by coremltools, for iOS 16 likewise. It has an environment of its own (peers.toml), unless
--peer-python names another. With --blocks full it is SD 1.5's at 512x512 pixels; small has a fifth
of its channels, at 128x128. Gives wall and CPU seconds, the peak of resident memory, the package's
size, how often it has each operation, and ratios.
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

from benchmarks.harness import Values, in_turns, peer_python, process, tell
from benchmarks.random_sd import random_model

# As macai/coreml/sd/export.py does it of each component.
_OURS = """
import sys
from pathlib import Path
from macai.cli.lean import lean_imports
with lean_imports():
    from macai.coreml.api import export_functions
    from macai.coreml.cast import cast_weights
    from macai.coreml.sd.components import TARGET
    from macai.coreml.sd.form import DTYPES, Form
    from macai.coreml.sd.sources import Sources
    from macai.diffusion.loading import open_checkpoint
sources = Sources(checkpoint=open_checkpoint(Path(sys.argv[1]), dtype="float32"))
unet = next(one for one in sources.components(Form()) if one.name == "Unet")
module = sources.load(unet)
cast_weights(module, DTYPES[unet.precision])
export_functions({"main": unet.function(module)}, sys.argv[2], target=TARGET)
"""
_TORCH = """
import sys, warnings
warnings.simplefilter("ignore")
import coremltools as ct, numpy as np, torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
folder, out = sys.argv[1:]
unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
unet.set_attn_processor(AttnProcessor())

class Apples(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.unet = unet.eval()
    def forward(self, sample, timestep, states):
        rows = states.squeeze(2).transpose(1, 2)
        return self.unet(sample, timestep, rows, return_dict=False)[0]

side, width = unet.config.sample_size, unet.config.cross_attention_dim
given = {
    "sample": torch.rand(2, 4, side, side),
    "timestep": torch.tensor([500.0, 500.0]),
    "encoder_hidden_states": torch.rand(2, width, 1, 77),
}
with torch.no_grad():
    traced = torch.jit.trace(Apples(), tuple(given.values()), check_trace=False)
inputs = [ct.TensorType(n, tuple(x.shape), dtype=np.float16) for n, x in given.items()]
package = ct.convert(
    traced,
    inputs=inputs,
    outputs=[ct.TensorType("noise_pred", dtype=np.float32)],
    minimum_deployment_target=ct.target.iOS16,
    skip_model_load=True,
)
package.save(out)
"""


def main() -> None:
    """Print one JSON line."""
    options = argparse.ArgumentParser()
    options.add_argument("--blocks", choices=["full", "small"], default="full")
    options.add_argument("--runs", type=int, default=1)
    options.add_argument("--peer", choices=["torch", "none"], default="none")
    options.add_argument("--peer-python")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as scratch:
        folder = Path(scratch) / "model"
        random_model("sd1-unet" if chosen.blocks == "full" else "sd1-unet-small", folder)
        pythons = {"macai": (sys.executable, _OURS)}
        if chosen.peer == "torch":
            pythons["torch"] = (chosen.peer_python or peer_python("torch-diffusers"), _TORCH)
        packages = {name: Path(scratch) / f"{name}.mlpackage" for name in pythons}
        sides = {
            name: partial(_export, [python, "-c", script, str(folder)], packages[name])
            for name, (python, script) in pythons.items()
        }
        measured = in_turns(sides, chosen.runs)
        operations = {name: _operations(path) for name, path in packages.items()}
    tell("sd-export", measured, to="macai", blocks=chosen.blocks, operations=operations)
    for kind in sorted(set().union(*operations.values())):
        counts = "".join(f"{found.get(kind, 0):>8}" for found in operations.values())
        print(f"{kind:32}{counts}", file=sys.stderr)


def _export(command: list[str], package: Path) -> Values:
    """Run one side; return what it cost and how large its package is."""
    shutil.rmtree(package, ignore_errors=True)
    cost = process([*command, str(package)])
    size = sum(file.stat().st_size for file in package.rglob("*") if file.is_file())
    return {**cost, "package_bytes": float(size)}


def _operations(package: Path) -> dict[str, int]:
    """Return how often a package has each operation."""
    from macai.mil import open_package

    own = open_package(package).functions["main"].operations
    return dict(Counter(one.type for one in own if one.type != "const"))


if __name__ == "__main__":
    main()
