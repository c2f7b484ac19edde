"""Read the header of a safetensors file; nothing in it is believed before it is checked.

Format: 8 bytes with the length of the header, a JSON object that tells of each tensor its type,
shape and bytes, then the bytes, without gaps (github.com/huggingface/safetensors, README).
"""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from macai.errors import FormatError
from macai.models.shown import shown
from macai.models.stored import ITEM_BYTES, StoredTensor

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMENSIONS = 16
_HINT = "the file is damaged or incomplete: download it again and compare its checksum"


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """A safetensors file: its tensors by name and what it says of itself."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def read_safetensors(path: Path) -> SafetensorsFile:
    """Read the header of `path`.

    Raises:
        FormatError: no such file, not safetensors, truncated, a type not known, or tensors that
            overlap, leave gaps or are not as long as their shapes say.
    """
    header, start, size = _read_header(path)
    metadata = header.pop("__metadata__", None) or {}  # MLX writes null for none
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "its __metadata__ is not an object of strings")
    tensors: dict[str, StoredTensor] = {}
    spans = [(0, 0, "the header")]
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(path, name, entry)
        if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
            raise _damaged(
                path,
                f"{shown(name)} is {end - begin} bytes long, which {dtype} {list(shape)} is not",
            )
        if start + end > size:
            raise _damaged(path, f"{shown(name)} ends at byte {start + end}, the file at {size}")
        spans.append((begin, end, name))
        tensors[name] = StoredTensor.contiguous(path, name, dtype, shape, start + begin)
    _check_spans(path, sorted(spans), size - start)
    return SafetensorsFile(tensors, metadata)


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header, where the tensors' bytes begin, and the size of the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            beginning = f.read(8)
            length = int.from_bytes(beginning, "little")
            if size < 10 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                raise _not_safetensors(path, beginning, length)
            text = f.read(length)
    except OSError as e:
        raise FormatError(f"{path}: cannot be opened: {e.strerror or e}") from e
    if not text.startswith(b"{"):
        raise _not_safetensors(path, beginning + text[:8], length)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        raise _damaged(path, f"its header is not JSON: {shown(e)}") from e
    return header, 8 + length, size


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict):
        raise _damaged(path, f"{shown(name)} is not described by an object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise _damaged(path, f"{shown(name)} has no shape that can be")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"{shown(name)} has no place that can be")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise FormatError(
            f"{path}: {shown(name)} is of type {shown(dtype, 20)!r}, which cannot be read",
            hint=f"types that can: {', '.join(ITEM_BYTES)}",
        )
    return dtype, tuple(shape), offsets[0], offsets[1]


def _naturals(value: Any) -> TypeGuard[list[int]]:
    # A number of more than 64 bits would be no length, and printing it may fail.
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


def _check_spans(path: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
        if begin < end:
            raise _damaged(path, f"{shown(first)} and {shown(second)} overlap")
        if begin > end:
            raise _damaged(path, f"{begin - end} bytes before {shown(second)} belong to none")
    if spans[-1][1] != size:
        raise _damaged(
            path, f"{size - spans[-1][1]} bytes after {shown(spans[-1][2])} belong to none"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _not_safetensors(path: Path, beginning: bytes, length: int) -> FormatError:
    if beginning.startswith(b"version "):
        return FormatError(
            f"{path}: not the weights, but a pointer of git-lfs to them",
            hint="fetch them with `git lfs pull`, or download the file itself",
        )
    if 2 <= length <= MAX_HEADER_BYTES and beginning[8:9] in (b"", b"{"):
        return _damaged(path, f"it ends inside its header of {length} bytes: truncated")
    return FormatError(
        f"{path}: not a safetensors file: it starts with {beginning[:8]!r}",
        hint="is the download complete? a web page saved by mistake starts with b'<!DOCTYP'",
    )


def _damaged(path: Path, message: str) -> FormatError:
    return FormatError(f"{path}: {message}", hint=_HINT)
