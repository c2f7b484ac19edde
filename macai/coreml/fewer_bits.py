"""A language model's weights in fewer bits: which scheme each matrix gets, and what that costs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.coreml.compress import Compression, Scheme
from macai.coreml.gradients import Gradients, squared_gradients
from macai.coreml.matrices import matrix_paths
from macai.coreml.sensitivity import expect_divergences
from macai.coreml.sequential import round_model
from macai.errors import UsageError
from macai.models.load import LoadedModel

# What a mix is made of, beside blocks as a model quantised by MLX or for GGUF has them already.
CANDIDATES = ("scaled3", "scaled4", "int4-64", "affine4-64", "scaled6", "int8")
PIECE = 512  # tokens of text that are run at once
CALIBRATION_TOKENS = 8192
"""At most: an input of 1,536 numbers needs thousands of tokens to be known by its moments."""
FEWEST_TOKENS = 64
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
    progress: Progress = lambda what, done, total: None,
) -> Compression:
    """Return how each matrix of a model is stored; the model has these weights afterwards.

    Args:
        loaded: The model as it is to be exported, its adapter fused, in float32.
        scheme: One for all matrices: see Scheme.parse.
        bits_per_weight: Instead, the mean number of bits, spent where they matter most; scales and
            tables are counted.
        text: What the model is for, best: errors are weighed by the inputs it gives matrices.
        plain_tables: Leave an embedding as it is that is no head too.
        progress: Called with what is being done, and how much of it.

    Raises:
        UsageError: an unknown scheme, or fewer bits than there are.
    """
    if (scheme is None) == (bits_per_weight is None):
        raise UsageError("either one scheme for all weights, or a mean number of bits")
    default = None if scheme is None else Scheme.parse(scheme)
    pieces = text_pieces(loaded.tokenizer.encode(text or calibration_text()))
    gradients = squared_gradients(
        loaded.model, pieces, lambda done, total: progress("weighing tokens", done, total)
    )
    schemes: dict[str, Scheme | None] = {}
    if bits_per_weight is not None:
        schemes |= choose_schemes(loaded, pieces, gradients, bits_per_weight, progress)
    elif plain_tables:
        schemes |= dict.fromkeys(_plain_tables(loaded.model, gradients))
    compression = Compression(default=default, schemes=schemes)
    round_model(
        loaded.model,
        pieces,
        gradients,
        compression,
        progress=lambda done, total: progress("rounding blocks", done, total),
    )
    return compression


def choose_schemes(
    loaded: LoadedModel,
    pieces: Sequence[mx.array],
    gradients: Mapping[str, Gradients],
    bits_per_weight: float,
    progress: Progress,
) -> dict[str, Scheme]:
    """Return the scheme of each matrix for a mean number of bits."""
    group = loaded.config.get("quantization", {}).get("group_size", 32)
    sensitivity = expect_divergences(
        loaded.model,
        pieces,
        gradients,
        [Scheme.parse(name) for name in dict.fromkeys((*CANDIDATES, f"affine4-{group}"))],
        progress=lambda done, total: progress("weighing matrices", done, total),
    )
    return sensitivity.choose(bits_per_weight)


def text_pieces(ids: Sequence[int]) -> list[mx.array]:
    """Return the ids that are calibrated with, int32 [1, L] each: two pieces or more.

    Raises:
        UsageError: they are too few.
    """
    used = list(ids[:CALIBRATION_TOKENS])
    if len(used) < FEWEST_TOKENS:
        raise UsageError(
            f"{len(used)} tokens of text are too few to calibrate with", hint="some pages are good"
        )
    piece = min(PIECE, len(used) // 2)
    starts = range(0, len(used) - piece // 2, piece)
    return [mx.array(used[start : start + piece])[None] for start in starts]


def _plain_tables(model: nn.Module, gradients: Mapping[str, Gradients]) -> set[str]:
    tables = {p for p, m in matrix_paths(model).items() if type(m) is nn.Embedding}
    return {path for path in tables if not gradients[path].multiplies}


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
