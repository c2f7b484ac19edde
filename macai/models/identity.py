"""What makes a base model that base model: short hashes kept with every adapter."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from macai.models.safetensors import read_safetensors
from macai.models.stored import ITEM_BYTES, StoredTensor

SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Identity:
    """Hashes of a model directory: its weights, its tokenizer, its chat template."""

    weights: str
    tokenizer: str
    chat_template: str

    def to_json(self) -> dict[str, str]:
        """Return the three hashes by name."""
        return asdict(self)


def identify(path: Path, *, chat_template: str | None) -> Identity:
    """Return the identity of the model directory `path`.

    The hash of the weights covers each tensor's name, type and shape and the first and last 4 KiB
    of its bytes: any tuning of a model changes those, and tens of gigabytes need not be read.
    """
    tokenizer = b""
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path / name).is_file():
            tokenizer += (path / name).read_bytes()
    return Identity(
        weights=_short(_weights_digest(path)),
        tokenizer=_short(hashlib.sha256(tokenizer)),
        chat_template=_short(hashlib.sha256((chat_template or "").encode())),
    )


def _weights_digest(path: Path) -> Any:
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(path.glob("model*.safetensors")):
        tensors |= read_safetensors(file).tensors
    digest = hashlib.sha256()
    # By name, not by file: a sharded copy of a model is the same model.
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        size = tensor.size * ITEM_BYTES[tensor.dtype]
        with tensor.file.open("rb") as f:
            for begin in (0, max(0, size - SAMPLE_BYTES)):
                f.seek(tensor.begin + begin)
                digest.update(f.read(min(SAMPLE_BYTES, size)))
    return digest


def _short(digest: Any) -> str:
    return str(digest.hexdigest()[:32])
