"""What makes a base model that base model: short hashes kept with every adapter."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from macai.errors import FormatError

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
    tensors: dict[str, tuple[str, list[int], Path, int, int]] = {}
    for file in sorted(path.glob("model*.safetensors")):
        start, header = _header(file)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            tensors[name] = (entry["dtype"], entry["shape"], file, start + begin, start + end)
    digest = hashlib.sha256()
    # By name, not by file: a sharded copy of a model is the same model.
    for name, (dtype, shape, file, begin, end) in sorted(tensors.items()):
        digest.update(f"{name} {dtype} {shape}\n".encode())
        with file.open("rb") as f:
            f.seek(begin)
            digest.update(f.read(min(SAMPLE_BYTES, end - begin)))
            f.seek(max(begin, end - SAMPLE_BYTES))
            digest.update(f.read(min(SAMPLE_BYTES, end - begin)))
    return digest


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Return where the tensors' bytes start and the header of a safetensors file."""
    size = file.stat().st_size
    with file.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if length > size - 8:
            raise FormatError(f"{file}: truncated or not a safetensors file")
        try:
            header = json.loads(f.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError) as e:
            raise FormatError(f"{file}: its header is not JSON") from e
    header.pop("__metadata__", None)
    return 8 + length, header


def _short(digest: Any) -> str:
    return str(digest.hexdigest()[:32])
