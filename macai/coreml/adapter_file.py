"""The file of an adapter that an app downloads: safetensors, which any language reads in a page.

    8 bytes    length of the header, little-endian
    header     JSON: {"__metadata__": {...}, "<layer>.A": {"dtype": "F16", "shape": [r, in],
               "data_offsets": [begin, end]}, "<layer>.B": {... [r, out] ...}, ...}
    the rest   the matrices, float16, row by row; offsets count from here

B is transposed, and has the scale (alpha / rank) in it. The metadata, all strings, are "format" and
"version", "name", "rank", and the model's identity: "base.weights", "base.tokenizer",
"base.chat_template". Layers that are not in the file are left as they are.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from macai.coreml.slot import Pair
from macai.errors import AdapterError
from macai.files import atomic_file

FORMAT, VERSION = "macai-adapter", "1"
_METADATA = "__metadata__"
_BASE = "base."
_LENGTH_BYTES = 8
_HEADER_LIMIT = 16 << 20  # a layer takes 200 bytes
_INFINITE = 0x7C00  # the exponent of infinities and NaN


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """What is in one.

    Attributes:
        name: What the adapter is called.
        base: Identity of the model it belongs to: see models.identity.
        layers: A and B by the layer's path.
    """

    name: str
    base: Mapping[str, str]
    layers: Mapping[str, Pair]

    @property
    def rank(self) -> int:
        """The highest of its layers."""
        return max((a.shape[0] for a, _ in self.layers.values()), default=0)

    def facts(self) -> dict[str, Any]:
        """Return what it is, as JSON values: all but its numbers."""
        kinds = sorted({path.rpartition(".")[2] for path in self.layers})
        return {
            "name": self.name,
            "rank": self.rank,
            "layers": len(self.layers),
            "targets": kinds,
            "base": dict(self.base),
        }


def write_adapter_file(file: Path, adapter: AdapterFile) -> None:
    """Write it, atomically; the same bytes for the same adapter.

    Raises:
        OutputError: it cannot be written.
    """
    metadata = {"format": FORMAT, "version": VERSION, "name": adapter.name}
    metadata |= {"rank": str(adapter.rank)} | {_BASE + k: v for k, v in adapter.base.items()}
    header: dict[str, Any] = {_METADATA: metadata}
    end = 0
    matrices = []
    for path, pair in adapter.layers.items():
        for letter, matrix in zip("AB", pair, strict=True):
            begin, end = end, end + matrix.nbytes
            shape, offsets = list(matrix.shape), [begin, end]
            header[f"{path}.{letter}"] = {"dtype": "F16", "shape": shape, "data_offsets": offsets}
            matrices.append(matrix)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with atomic_file(file) as temporary, temporary.open("wb") as f:
        f.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for matrix in matrices:
            f.write(np.ascontiguousarray(matrix, "<f2").tobytes())


def read_adapter_file(file: Path) -> AdapterFile:
    """Read and check all of a file.

    Raises:
        AdapterError: it is truncated, no such file, or holds what is not finite.
    """
    try:
        with file.open("rb") as f:
            return _read(f, file.stat().st_size)
    except OSError as e:
        raise AdapterError(f"{file}: cannot be read: {e.strerror or e}") from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        reason = f"it has no {e}" if isinstance(e, KeyError) else str(e)
        raise AdapterError(
            f"{file}: no adapter file, or a damaged one: {reason}",
            hint="macai export adapter writes them; is the copy complete? Of a bundle or a package "
            "give the folder",
        ) from e


def _read(f: BinaryIO, size: int) -> AdapterFile:
    length = int.from_bytes(f.read(_LENGTH_BYTES), "little")
    if length > min(_HEADER_LIMIT, size - _LENGTH_BYTES):
        raise ValueError(f"a header of {length} bytes in {size}")
    header = json.loads(f.read(length))
    metadata = header.pop(_METADATA)
    given = metadata.get("format"), metadata.get("version")
    if given != (FORMAT, VERSION):
        raise ValueError(f"format {given[0]!r}, version {given[1]!r}")
    "".join((*header, *metadata.values())).encode()  # only what can be printed
    body = memoryview(f.read())
    matrices = {name: _matrix(name, entry, body) for name, entry in header.items()}
    if sum(matrix.nbytes for matrix in matrices.values()) != len(body):
        raise ValueError(f"its matrices do not fill its {len(body)} bytes")
    return AdapterFile(
        name=str(metadata["name"]),
        base={k.removeprefix(_BASE): v for k, v in metadata.items() if k.startswith(_BASE)},
        layers=_pairs(matrices),
    )


def _matrix(name: str, entry: Mapping[str, Any], body: memoryview) -> np.ndarray:
    rank, width = entry["shape"]
    begin, end = entry["data_offsets"]
    sizes = (rank, width, begin, end)
    if entry["dtype"] != "F16" or not all(type(n) is int and n >= 0 for n in sizes):
        raise ValueError(f"{name!r} is {entry['dtype']} {entry['shape']} at {begin} to {end}")
    if rank < 1 or width < 1 or end > len(body) or end - begin != 2 * rank * width:
        raise ValueError(f"{name!r} [{rank}, {width}] is not at {begin} to {end} of {len(body)}")
    matrix = np.frombuffer(body[begin:end], "<f2").reshape(rank, width)
    if not is_finite(matrix):
        raise ValueError(f"{name!r} is not finite")
    return matrix


def is_finite(matrix: np.ndarray) -> bool:
    """Return whether no element of a float16 matrix is infinite or NaN."""
    return not bool((matrix.view(np.uint16) & _INFINITE == _INFINITE).any())


def _pairs(matrices: Mapping[str, np.ndarray]) -> dict[str, Pair]:
    paths = dict.fromkeys(name.rpartition(".")[0] for name in matrices)
    expected = {f"{path}.{letter}" for path in paths for letter in "AB"}
    if odd := sorted(expected ^ matrices.keys()):
        raise ValueError(f"{odd[0]!r} is {'missing' if odd[0] in expected else 'neither A nor B'}")
    pairs = {path: (matrices[f"{path}.A"], matrices[f"{path}.B"]) for path in paths}
    if uneven := [path for path, (a, b) in pairs.items() if a.shape[0] != b.shape[0]]:
        raise ValueError(f"{uneven[0]!r} has A and B of two ranks")
    return pairs
