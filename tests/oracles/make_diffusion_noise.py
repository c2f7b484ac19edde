"""Write tests/goldens/diffusion_noise.json: what torch.randn draws on the CPU.

    python tests/oracles/make_diffusion_noise.py

Of each seed one generator draws all sizes in turn. Of more than 64 numbers, 24 over the whole
length and the last 20 are kept, where torch draws the tail anew.
"""

import json
from pathlib import Path

import torch

GOLDEN = Path(__file__).parent.parent / "goldens" / "diffusion_noise.json"
SEEDS = (0, 42, 2**32 - 1, 2**32 + 7, 2**63 + 11, -5)
SIZES = (1, 2, 3, 15, 1, 16, 17, 5, 31, 32, 33, 7, 100, 16384, 4 * 33 * 47, 1)


def main() -> None:
    streams = []
    for seed in SEEDS:
        generator, draws = torch.Generator().manual_seed(seed), []
        for size in SIZES:
            numbers = torch.randn(size, generator=generator).tolist()
            kept = numbers if size <= 64 else [*numbers[:: size // 24][:24], *numbers[-20:]]
            draws.append({"size": size, "numbers": [float(f"{number:.8g}") for number in kept]})
        streams.append({"seed": seed, "draws": draws})
    golden = {"oracle": f"torch {torch.__version__}", "streams": streams}
    lines = json.dumps(golden).replace('{"seed"', '\n{"seed"')
    GOLDEN.write_text(f"{lines}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
