"""A language model's weights in fewer bits: which scheme each matrix gets, and what that costs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.calibrate import input_moments, matrix_paths
from macai.coreml.compress import Compression, Scheme
from macai.coreml.sensitivity import measure_sensitivity
from macai.errors import UsageError
from macai.models.load import LoadedModel

# What a mix is made of: blocks, which GPUs run best, and palettes below and above them.
CANDIDATES = ("palette3-16", "uint4-32", "palette6-16", "int8")
CALIBRATION_TOKENS = 128
"""Of one text; longer ones tell little more of a matrix's inputs."""
BUDGET_SECONDS = 180.0
Progress = Callable[[str, int, int], None]


def calibration_text() -> str:
    """Return the text that matrices are weighed on where none is given; it is not verify's."""
    return Path(__file__).with_name("calibration_text.txt").read_text(encoding="utf-8")


def compress_model(
    loaded: LoadedModel,
    *,
    scheme: str | None = None,
    bits_per_weight: float | None = None,
    text: str | None = None,
    plain_tables: bool = False,
    budget_seconds: float = BUDGET_SECONDS,
    progress: Progress = lambda what, done, total: None,
) -> Compression:
    """Return how each matrix of a model is stored.

    Args:
        loaded: The model as it is to be exported, its adapter fused, in float32.
        scheme: One for all matrices: see Scheme.parse.
        bits_per_weight: Instead, the mean number of bits, spent where they matter most; scales and
            tables are counted.
        text: What the model is for, best: errors are weighed by the inputs it gives matrices.
        plain_tables: Leave an embedding as it is that is no head too.
        budget_seconds: How long costs are measured at most; the rest is estimated.
        progress: Called with what is being done, and how much of it.

    Raises:
        UsageError: an unknown scheme, or fewer bits than there are.
    """
    if (scheme is None) == (bits_per_weight is None):
        raise UsageError("either one scheme for all weights, or a mean number of bits")
    default = None if scheme is None else Scheme.parse(scheme)
    batches = _batches(loaded, text or calibration_text())
    progress("weighing inputs", 0, 1)
    moments = input_moments(loaded.model, batches)
    progress("weighing inputs", 1, 1)
    if bits_per_weight is None:
        kept: dict[str, Scheme | None] = {}
        if plain_tables:
            tables = {p for p, m in matrix_paths(loaded.model).items() if type(m) is nn.Embedding}
            kept = dict.fromkeys(tables - moments.keys())
        return Compression(default=default, schemes=kept, moments=moments)
    sensitivity = measure_sensitivity(
        loaded.model,
        batches[:1],
        [Scheme.parse(name) for name in CANDIDATES],
        moments=moments,
        budget_seconds=budget_seconds,
        progress=lambda done, total: progress("measuring what bits are worth", done, total),
    )
    return Compression(schemes=sensitivity.choose(bits_per_weight), moments=moments)


def replace_weights(model: nn.Module, compression: Compression) -> None:
    """Give a model the weights that its package has, in place."""
    for path, module in matrix_paths(model).items():
        weight = np.array(module.weight.astype(mx.float16)).astype(np.float32)
        stored = compression(path, weight)
        module.weight = mx.array(weight if stored is None else stored.dense())
    mx.eval(model.parameters())


def perplexity(model: nn.Module, ids: Sequence[int]) -> float:
    """Return exp of the mean loss of each id after those before it."""
    tokens = mx.array(list(ids))[None]
    logits = model(tokens)[0, :-1].astype(mx.float32)
    losses = nn.losses.cross_entropy(logits, tokens[0, 1:])
    return float(mx.exp(losses.mean()).item())  # type: ignore[arg-type]


def cost(original: float, compressed: float, compression: Compression) -> dict[str, Any]:
    """Return what compression did, as verify.json tells it."""
    return {
        "bits_per_weight": compression.bits_per_weight,
        "perplexity": {
            "model": original,
            "compressed": compressed,
            "delta": compressed / original - 1,
        },
        "left_as_they_are": compression.skipped(),
    }


def _batches(loaded: LoadedModel, text: str) -> list[mx.array]:
    ids = loaded.tokenizer.encode(text)
    starts = range(0, max(len(ids) - CALIBRATION_TOKENS // 2, 1), CALIBRATION_TOKENS)
    return [mx.array(ids[start : start + CALIBRATION_TOKENS])[None] for start in starts]
