"""Write safetensors files a piece of a tensor at a time: no tensor is ever whole in memory."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from macai.files import explained, write_json

MAX_SHARD_BYTES = 5_000_000_000
"""As mlx-lm and transformers cut them."""

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4}


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor to write.

    Attributes:
        name: Its key in the file.
        dtype: safetensors' name of its type.
        shape: Its dimensions, outermost first.
        pieces: Makes its bytes, row-major and little-endian, in order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[bytes]]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        count = ITEM_BYTES[self.dtype]
        for size in self.shape:
            count *= size
        return count


def write_shards(
    folder: Path,
    outputs: list[Output],
    wrote: Callable[[Output], None],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `outputs` as model.safetensors, or as numbered shards and their index.

    `wrote` is called after each tensor.
    """
    shards = _split(outputs, max_shard_bytes)
    weight_map: dict[str, str] = {}
    with explained(folder):
        for number, shard in enumerate(shards, start=1):
            name = "model.safetensors"
            if len(shards) > 1:
                name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            _write_file(folder / name, shard, wrote)
            weight_map.update(dict.fromkeys((output.name for output in shard), name))
    if len(shards) > 1:
        total = sum(output.nbytes for output in outputs)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / "model.safetensors.index.json", index)


def _split(outputs: list[Output], max_shard_bytes: int) -> list[list[Output]]:
    shards: list[list[Output]] = [[]]
    room = max_shard_bytes
    for output in outputs:
        if shards[-1] and output.nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(output)
        room -= output.nbytes
    return shards


def _write_file(path: Path, outputs: list[Output], wrote: Callable[[Output], None]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for output in outputs:
        header[output.name] = {
            "dtype": output.dtype,
            "shape": list(output.shape),
            "data_offsets": [at, at + output.nbytes],
        }
        at += output.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers after it stay aligned
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little"))
        f.write(text)
        for output in outputs:
            start = f.tell()
            for piece in output.pieces():
                f.write(piece)
            assert f.tell() - start == output.nbytes, output.name
            wrote(output)
