"""Which matrices of a model are stored in fewer bits, and how: what Settings.compress asks.

Only matrices that a Linear multiplies with or a Take reads rows of are ever asked about; norms,
biases and tables of RoPE are not.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from macai.coreml.gptq import (
    Inputs,
    palettize_rows_with_inputs,
    palettize_with_inputs,
    round_with_inputs,
)
from macai.coreml.palettize import palettize, palettize_rows
from macai.coreml.rounding import EXACT, round_to_blocks
from macai.coreml.stored import Stored
from macai.errors import UsageError

PALETTE_BITS = (1, 2, 3, 4, 6, 8)
LARGEST = float(np.finfo(np.float16).max)
_NAME = re.compile(r"(int8|int4|uint4|affine4|palette[123468])(?:-(\d+))?|(scaled[123468])")


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to store a matrix [rows, columns].

    Attributes:
        form: "int8": whole numbers with a float16 scale for each row. "int4": likewise for each
            block of a row. "uint4": with an offset of four bits for each block too. "affine4": with
            a float16 one, as MLX and GGUF have it. "palette": indices into a float16 table.
            "scaled": into one for all, with a float16 scale for each row.
        bits: Of a code or index.
        part: The columns of a block; of a palette the rows that share a table. None: all.
    """

    form: str
    bits: int
    part: int | None = None

    @classmethod
    def parse(cls, name: str) -> "Scheme":
        """Return the scheme called "int8", "uint4-64", "palette4", "palette4-16", "scaled4"."""
        found = _NAME.fullmatch(name)
        if found is None or found[2] == "0":
            raise UsageError(
                f"unknown weight compression '{name}'",
                hint="full, keep, int8, int4-32, uint4-64, affine4-32, scaled4, palette4 or "
                "palette4-16 (16 rows each)",
            )
        form, part = found[1] or found[3], int(found[2]) if found[2] else None
        if form.startswith(("palette", "scaled")):
            return cls(form[:-1], int(form[-1]), part)
        if form == "int8":
            return cls(form, 8, part)
        return cls(form, 4, part or 32)

    def __str__(self) -> str:
        bits = str(self.bits) if self.form in ("palette", "scaled") else ""
        return f"{self.form}{bits}" + (f"-{self.part}" if self.part else "")

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        """Return why a weight of this shape cannot be stored so, or None."""
        if self.part is None:
            return None
        if self.form == "palette":
            return (
                f"{shape[0]} rows are no multiple of {self.part}" if shape[0] % self.part else None
            )
        return (
            f"{shape[1]} columns are no multiple of {self.part}" if shape[1] % self.part else None
        )

    def size_bytes(self, shape: tuple[int, int]) -> int:
        """Return what a weight of this shape takes in a float16 package."""
        rows, columns = shape
        codes = math.ceil(rows * columns * self.bits / 8)
        if self.form == "scaled":
            return codes + 2 * (2**self.bits + rows)
        if self.form == "palette":
            return codes + 2 * 2**self.bits * (rows // self.part if self.part else 1)
        blocks = rows * (columns // self.part if self.part else 1)
        offsets = {"uint4": math.ceil(blocks / 2), "affine4": 2 * blocks}
        return codes + 2 * blocks + offsets.get(self.form, 0)

    def apply(self, weight: np.ndarray, inputs: Inputs | None = None) -> Stored:
        """Return a weight stored so.

        Args:
            weight: float [rows, columns].
            inputs: What it is multiplied with: errors are then weighed by it, and fed back.
        """
        if self.form == "scaled":
            if inputs is None:
                return palettize_rows(weight, bits=self.bits)
            return palettize_rows_with_inputs(weight, inputs, bits=self.bits)
        if self.form == "palette":
            if inputs is None:
                return palettize(weight, bits=self.bits, group=self.part)
            return palettize_with_inputs(weight, inputs, bits=self.bits, group=self.part)
        block = self.part or weight.shape[1]
        offset = {"uint4": "whole", "affine4": "float16"}.get(self.form, "none")
        if inputs is None:
            return round_to_blocks(weight, bits=self.bits, block=block, offset=offset)
        return round_with_inputs(weight, inputs, bits=self.bits, block=block, offset=offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one matrix.

    Attributes:
        scheme: How it is stored; None if it stays as it is.
        reason: Why it stays as it is.
        error: Squared error relative to the squared weight.
    """

    shape: tuple[int, ...]
    bytes: int
    scheme: Scheme | None = None
    reason: str = ""
    error: float = 0.0


@dataclass(slots=True, kw_only=True)
class Compression:
    """Compresses each matrix once, however many functions use it; `outcomes` says what it did.

    Attributes:
        default: For matrices that `schemes` does not name; None leaves them as they are.
        schemes: By path of the weight.
        least_elements: Smaller matrices stay as they are.
    """

    default: Scheme | None = None
    schemes: Mapping[str, Scheme | None] = field(default_factory=dict)
    least_elements: int = 2048
    outcomes: dict[str, Outcome] = field(default_factory=dict, init=False)
    _stored: dict[str, Stored | None] = field(default_factory=dict, init=False)

    def __call__(
        self, path: str, weight: np.ndarray, inputs: Inputs | None = None
    ) -> Stored | None:
        """Return how the weight is stored, or None if it stays as it is.

        `inputs` is what it is multiplied with; what was stored before is not stored again.
        """
        if path not in self._stored:
            self._stored[path], self.outcomes[path] = self._compressed(path, weight, inputs)
        return self._stored[path]

    def _compressed(
        self, path: str, weight: np.ndarray, inputs: Inputs | None
    ) -> tuple[Stored | None, Outcome]:
        scheme = self.schemes.get(path, self.default)
        reason = self._reason(scheme, weight)
        if scheme is None or reason:
            return None, Outcome(shape=weight.shape, bytes=2 * weight.size, reason=reason)
        stored = _exactly(scheme, weight)
        if stored is None:
            wanted = weight if inputs is None else inputs.target(weight)
            stored = scheme.apply(wanted, inputs)
        outcome = Outcome(
            shape=weight.shape,
            bytes=stored.size_bytes(),
            scheme=scheme,
            error=_error(stored, weight),
        )
        return stored, outcome

    def _reason(self, scheme: Scheme | None, weight: np.ndarray) -> str:
        if scheme is None:
            return "not asked for"
        if weight.size < self.least_elements:
            return f"{weight.size} elements, fewer than {self.least_elements}"
        if not np.isfinite(weight).all():
            return "values that are not finite"
        largest = float(np.abs(weight).max(initial=0))
        if largest > LARGEST:
            return f"values up to {largest:g}, beyond float16"
        return scheme.refusal(weight.shape) or ""

    @property
    def bits_per_weight(self) -> float:
        """Bits in the package for each weight of all matrices seen, scales and tables included."""
        weights = sum(math.prod(o.shape) for o in self.outcomes.values())
        return 8 * sum(o.bytes for o in self.outcomes.values()) / weights if weights else 0.0

    def skipped(self) -> dict[str, str]:
        """Return why matrices stay as they are that should not have, by path."""
        return {p: o.reason for p, o in self.outcomes.items() if not o.scheme and self._wanted(p)}

    def _wanted(self, path: str) -> bool:
        return self.schemes.get(path, self.default) is not None


def _error(stored: Stored, weight: np.ndarray) -> float:
    size = float(np.square(weight, dtype=np.float64).sum())
    error = float(np.square(stored.dense() - weight, dtype=np.float64).sum())
    return error / size if size else 0.0


def _exactly(scheme: Scheme, weight: np.ndarray) -> Stored | None:
    """Return a weight that was stored like this before, as it was: no feedback could do better."""
    if (
        scheme.form in ("palette", "scaled")
        or _error(scheme.apply(weight[:16]), weight[:16]) > EXACT
    ):
        return None
    stored = scheme.apply(weight)
    return stored if _error(stored, weight) <= EXACT else None
