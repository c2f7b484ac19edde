"""Which weights a picture was made with."""

import hashlib

from macai.diffusion.loading import Checkpoint
from macai.models.stored import ITEM_BYTES

SAMPLE_BYTES = 4096


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return 64 hex digits that another model, or another tuning of this one, does not have.

    They cover name, type and shape of every tensor and the first 4 KiB of its bytes: gigabytes need
    not be read, and tuning changes those of every tensor it touches.
    """
    digest = hashlib.sha256()
    for component, part in sorted(checkpoint.contents.parts.items()):
        for name, tensor in sorted(part.tensors.items()):
            digest.update(f"{component} {name} {tensor.dtype} {tensor.shape}\n".encode())
            with tensor.file.open("rb") as f:
                f.seek(tensor.begin)
                digest.update(f.read(min(SAMPLE_BYTES, tensor.size * ITEM_BYTES[tensor.dtype])))
    return digest.hexdigest()
