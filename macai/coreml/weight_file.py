"""The weight file of a package, written as its weights come: each once, whoever else has it."""

from pathlib import Path
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import types
from coremltools.libmilstoragepython import _BlobStorageWriter

from macai.errors import OutputError

# A smaller array is written into the program, where coremltools puts it too.
LEAST_ELEMENTS = 10
# Types by MIL's names; those of the second row may be in files since iOS 18.
_ALWAYS = ("fp16", "fp32", "int8", "uint8")
_SINCE_IOS18 = ("int16", "uint16", "int32", "uint32", "int4", "uint1", "uint2", "uint3", "uint4")
_METHODS = {"fp32": "write_float_data"} | {
    name: f"write_{name}_data" for name in (*_ALWAYS, *_SINCE_IOS18, "uint6") if name != "fp32"
}
_HEAD = 256  # bytes that tell most arrays apart


class WeightFile:
    """weight.bin of a package that is being written."""

    def __init__(self, path: Path, *, wide: bool) -> None:
        """Open it; no file is there before the first weight.

        Args:
            path: The file.
            wide: Whether it may hold all types: since iOS 18.
        """
        self._path = path
        self._writer: Any = None
        self._types = (*_ALWAYS, *_SINCE_IOS18, "uint6") if wide else _ALWAYS
        self._named: dict[str, int] = {}
        self._alike: dict[tuple[str, tuple[int, ...], bytes], list[tuple[np.ndarray, int]]] = {}

    def takes(self, var: Any) -> bool:
        """Return whether a MIL constant belongs in the file, and not in the program."""
        value = var.val
        if not isinstance(value, np.ndarray) or value.size < LEAST_ELEMENTS:
            return False
        return types.builtin_to_string(var.dtype) in self._types

    def offset(self, var: Any) -> int:
        """Return where a MIL constant is in the file; it is written if nothing equal is there.

        Raises:
            OutputError: it cannot be written.
        """
        name = getattr(var.op, "weight_id", None)
        if name in self._named:
            return self._named[name]
        kind = types.builtin_to_string(var.dtype)
        flat = np.ascontiguousarray(var.val).reshape(-1)
        octets = flat.view(np.uint8)
        alike = self._alike.setdefault((kind, var.val.shape, octets[:_HEAD].tobytes()), [])
        # Of bytes: NaN is not equal to itself, and 0 is equal to -0.
        same = (place for other, place in alike if np.array_equal(octets, other))
        place = next(same, None)
        if place is None:
            place = self._write(flat, kind)
            alike.append((octets, place))
        if name is not None:
            self._named[name] = place
        return place

    def close(self) -> None:
        """Have all of it written."""
        self._writer = None

    def _write(self, flat: np.ndarray, kind: str) -> int:
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = _BlobStorageWriter(str(self._path))
        given = flat.view(np.uint16) if kind == "fp16" else flat
        try:
            return int(getattr(self._writer, _METHODS[kind])(given))
        except RuntimeError as e:  # coremltools' for a full disk
            raise OutputError(
                f"{self._path}: cannot be written: {e}", hint="is the disk full?"
            ) from e
