"""Write tests/goldens/diffusion_unet.npz: what diffusers' tiny U-Nets and ControlNets answer.

    python -m tests.oracles.make_diffusion_unet

Weights and inputs are drawn by name (tests/diffusion/models), so only outputs are stored: for a
kind of unet_cases.KINDS, the arrays "kind/0", "kind/1", ... in NHWC. The oracle is diffusers with
torch on the CPU in float32; their versions are in the golden.
"""

from pathlib import Path

import numpy as np

from tests.diffusion.models.text_vae_cases import random_weights
from tests.diffusion.models.unet_cases import KINDS, inputs_of, torch_model, torch_outputs

GOLDEN = Path(__file__).parent.parent / "goldens" / "diffusion_unet.npz"


def make() -> dict[str, np.ndarray]:
    """Return the golden's arrays."""
    import diffusers
    import torch

    torch.set_num_threads(1)
    versions = [f"{m.__name__} {m.__version__}" for m in (torch, diffusers)]
    arrays = {"versions": np.array(versions)}
    for kind, config in KINDS.items():
        shapes = {n: tuple(t.shape) for n, t in torch_model(config).state_dict().items()}
        model = torch_model(config, random_weights(shapes))
        outputs = torch_outputs(model, inputs_of(config))
        arrays |= {f"{kind}/{i}": output for i, output in enumerate(outputs)}
    return arrays


if __name__ == "__main__":
    golden = make()
    np.savez_compressed(GOLDEN, **golden)
    print(f"{GOLDEN.name}: {len(golden) - 1} arrays, {GOLDEN.stat().st_size} bytes")
