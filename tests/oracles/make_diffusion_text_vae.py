"""Write tests/goldens/diffusion_{text,vae}.npz: what transformers and diffusers compute.

    python tests/oracles/make_diffusion_text_vae.py

From the repository's root. The models, weights and inputs are those of
tests/diffusion/models/text_vae_cases.py; torch in float32 on the CPU. Of text states every 11th
token is kept. The versions are in the goldens.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.diffusion.models.text_vae_cases import (  # noqa: E402
    TEXT_CONFIGS,
    VAE_CONFIGS,
    image,
    token_ids,
)
from tests.diffusion.models.text_vae_oracle import (  # noqa: E402
    autoencoder,
    decoded,
    encoded,
    text_encoder,
    text_states,
)

EVERY = 11


def main() -> None:
    import diffusers
    import torch
    import transformers

    torch.set_num_threads(1)
    text: dict[str, Any] = {}
    for name, config in TEXT_CONFIGS.items():
        states = text_states(text_encoder(config)[0], token_ids(config, pad=399))
        text[f"{name}/last"] = states["last_hidden_state"][:, ::EVERY]
        text[f"{name}/penultimate"] = states["hidden_states"][-2][:, ::EVERY]
        for key in ("pooled_output", "text_embeds"):
            if key in states:
                text[f"{name}/{key}"] = states[key]
    vae: dict[str, Any] = {}
    for name, config in VAE_CONFIGS.items():
        model, _ = autoencoder(config)
        latents = encoded(model, image(24, 40))
        vae |= {f"{name}/{key}": value for key, value in latents.items()}
        vae[f"{name}/image"] = decoded(model, latents["mean"])

    versions = f"torch {torch.__version__}, "
    goldens = ROOT / "tests" / "goldens"
    oracle = versions + f"transformers {transformers.__version__}"
    np.savez_compressed(goldens / "diffusion_text.npz", oracle=oracle, every=EVERY, **text)
    oracle = versions + f"diffusers {diffusers.__version__}"
    np.savez_compressed(goldens / "diffusion_vae.npz", oracle=oracle, **vae)


if __name__ == "__main__":
    main()
