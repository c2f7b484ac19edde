"""Write a small checkpoint as torch.save does, in both of its formats, and the numbers in it.

Oracle: torch as installed; its version is in the file.

    python tests/oracles/make_torch_files.py

torch_files.npz: FORMAT (zip, legacy) is the file's bytes, value/NAME what it holds, float32 or
int64.
"""

import io
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

GOLDENS = Path(__file__).parents[1] / "goldens"


def tensors() -> "OrderedDict[str, torch.Tensor]":
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    shared = normal(6, 8)
    return OrderedDict(
        float32=normal(3, 4),
        float16=normal(2, 2, 3, 3).half(),
        bfloat16=normal(7).bfloat16(),
        float64=normal(3).double(),
        int64=torch.arange(5).expand(1, -1),
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 4),
        shared=shared,
        rows=shared[2:5],
        transposed=shared.T,
        stepped=shared[::2, 1::3],
        parameter=torch.nn.Parameter(normal(2, 2)),
    )


def main() -> None:
    found = tensors()
    arrays: dict[str, np.ndarray] = {"torch": np.array(torch.__version__.encode())}
    for name, value in found.items():
        numbers = value.detach()
        arrays[f"value/{name}"] = (
            numbers.float() if numbers.is_floating_point() else numbers
        ).numpy()
    beside = {"state_dict": found, "global_step": 875000, "epoch": 3, "best": np.float64(0.5)}
    for name, zipped in (("zip", True), ("legacy", False)):
        file = io.BytesIO()
        torch.save(beside, file, _use_new_zipfile_serialization=zipped)
        arrays[name] = np.frombuffer(file.getvalue(), np.uint8)
        print(name, len(arrays[name]), "bytes")
    np.savez_compressed(GOLDENS / "torch_files.npz", **arrays)


if __name__ == "__main__":
    main()
