"""What Hugging Face's config.json says about rotary positions, from GGUF metadata."""

from typing import Any

import numpy as np

from macai.errors import ModelError
from macai.models.gguf.blocks import decode
from macai.models.gguf.metadata import Metadata
from macai.models.gguf.reader import GGUFFile

FACTORS = "rope_freqs.weight"
"""Divisors of the frequencies, float32 [head_dim / 2]: how llama.cpp stores Llama 3's scaling."""

KEYS = (
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)
"""The metadata this module understands."""

TOLERANCE = 1e-4


def rope_scaling(
    gguf: GGUFFile, metadata: Metadata, *, base: float, head_dim: int
) -> dict[str, Any] | None:
    """Return the config's `rope_scaling`, or None for plain rotary positions.

    Raises:
        ModelError: the scaling cannot be said in config.json without changing it.
    """
    divisors = _divisors(gguf, head_dim)
    scaling = _from_metadata(gguf, metadata)
    if divisors is None or np.all(divisors == 1):
        return scaling
    if scaling is not None:
        raise ModelError(f"{gguf.path}: both {FACTORS} and {scaling['rope_type']} rope scaling")
    return _llama3(gguf, divisors.astype(np.float64), base=base, head_dim=head_dim)


def _from_metadata(gguf: GGUFFile, metadata: Metadata) -> dict[str, Any] | None:
    kind = metadata.text("rope.scaling.type", "none")
    if kind == "none" and metadata.has("rope.scale_linear"):
        factor = metadata.number("rope.scale_linear")
        return {"rope_type": "linear", "factor": factor} if factor != 1 else None
    if kind == "none":
        return None
    factor = metadata.number("rope.scaling.factor")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise ModelError(
            f"{gguf.path}: rope scaling of type {kind!r} is not supported",
            hint="none, linear, yarn and Llama 3's are",
        )
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": metadata.count("rope.scaling.original_context_length"),
    }
    for key in ("beta_fast", "beta_slow"):
        if metadata.has(f"rope.scaling.yarn_{key}"):
            scaling[key] = metadata.number(f"rope.scaling.yarn_{key}")
    return scaling


def _divisors(gguf: GGUFFile, head_dim: int) -> np.ndarray | None:
    tensor = gguf.tensors.get(FACTORS)
    if tensor is None:
        return None
    divisors = decode(tensor.rows, tensor.type)[0]
    if tensor.shape != (head_dim // 2,) or not np.all(np.isfinite(divisors) & (divisors > 0)):
        raise ModelError(f"{gguf.path}: {FACTORS} is not {head_dim // 2} positive numbers")
    return divisors


def _llama3(gguf: GGUFFile, divisors: np.ndarray, *, base: float, head_dim: int) -> dict[str, Any]:
    """Find the parameters of Llama 3's rule that give these divisors.

    The file holds only the rule's result. Between the two wavelengths where nothing and everything
    is scaled, the rule is a line in 1 / wavelength, so two points of it give both ends.
    """
    wavelengths = 2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    factor = float(divisors.max())
    candidates = [(1.0, 4.0, 8192)]
    between = (divisors > 1 + TOLERANCE) & (divisors < factor * (1 - TOLERANCE))
    if between.sum() >= 2 and len(set(divisors[between])) >= 2:
        smooth = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
        slope, intercept = np.polyfit(1 / wavelengths[between], smooth, 1)
        if slope > 0 > intercept:
            # Only ratios of the three show in the result: the low one is 1 in all known models.
            candidates.append((1.0, round(1 - 1 / intercept, 3), round(-slope / intercept)))
    for low, high, original in candidates:
        found = _llama3_divisors(wavelengths, factor, low=low, high=high, original=original)
        if np.allclose(found, divisors, rtol=TOLERANCE, atol=0):
            return {
                "rope_type": "llama3",
                "factor": round(factor, 4),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise ModelError(
        f"{gguf.path}: {FACTORS} holds frequencies that are not of Llama 3's rule",
        hint="such a model cannot be written as a Hugging Face directory",
    )


def _llama3_divisors(
    wavelengths: np.ndarray, factor: float, *, low: float, high: float, original: float
) -> np.ndarray:
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))
