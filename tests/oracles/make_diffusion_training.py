"""Write what diffusers says of weights by noise, and of averaged weights.

    python -m tests.oracles.make_diffusion_training

diffusion_training.json holds the weights of min-SNR-gamma at some timesteps, by prediction type and
gamma, and what EMAModel makes of a weight that grows. Its version is in the golden.
"""

import json

from tests.diffusion.training.training_oracle import GOLDEN, golden

if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n", encoding="utf-8")
