import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.rope_utils import Llama3RoPE

from macai.errors import FormatError, ModelError

Tiny = Callable[..., Any]
Convert = Callable[..., Path]


def rope_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())["rope_scaling"]


def llama3_divisors(
    head_dim: int, base: float, factor: float, low: float, high: float, original: int
) -> np.ndarray:
    """What a converter to GGUF writes: Llama 3's rule, one frequency at a time, in float32."""
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * base ** (i / head_dim)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize(
    ("head_dim", "base", "rule"),
    [
        (64, 500000.0, (32.0, 1.0, 4.0, 8192)),
        (128, 500000.0, (8.0, 1.0, 4.0, 8192)),
        (128, 1000000.0, (4.0, 1.0, 8.0, 4096)),
        (128, 500000.0, (16.0, 1.0, 2.5, 10000)),
        (16, 10000.0, (8.0, 1.0, 4.0, 8192)),
    ],
)
def test_llama3_parameters_are_found_from_the_frequencies(
    tiny_gguf: Tiny, convert: Convert, head_dim: int, base: float, rule: tuple[Any, ...]
) -> None:
    model = tiny_gguf(head_dim=head_dim)
    model.metadata["llama.rope.freq_base"] = base
    divisors = llama3_divisors(head_dim, base, *rule)
    model.tensors["rope_freqs.weight"] = divisors
    scaling = rope_of(convert(model))
    assert scaling["rope_type"] == "llama3"
    assert scaling["factor"] == rule[0]
    assert scaling["original_max_position_embeddings"] == rule[3]
    rope = Llama3RoPE(head_dim, base=base, scaling_config=scaling)
    wanted = base ** (np.arange(0, head_dim, 2) / head_dim) * divisors
    np.testing.assert_allclose(np.array(rope._freqs.astype(mx.float32)), wanted, rtol=2e-5)


def test_frequencies_that_are_not_scaled_need_no_scaling(tiny_gguf: Tiny, convert: Convert) -> None:
    model = tiny_gguf()
    model.tensors["rope_freqs.weight"] = np.ones(8, np.float32)
    assert rope_of(convert(model)) is None


@pytest.mark.parametrize(
    "divisors",
    [[1, 2, 3, 4, 5, 6, 7, 8], [8, 4, 2, 1, 1, 1, 1, 1], [1, 1, 5, 5, 5, 5, 1, 8], [2] * 8],
)
def test_frequencies_of_another_rule_are_refused(
    tiny_gguf: Tiny, convert: Convert, divisors: list[int]
) -> None:
    model = tiny_gguf()
    model.tensors["rope_freqs.weight"] = np.array(divisors, np.float32)
    with pytest.raises(ModelError, match="not of Llama 3's rule"):
        convert(model)


@pytest.mark.parametrize("divisors", [[1.0] * 7, [0.0] * 8, [float("nan")] * 8])
def test_frequencies_that_cannot_be_are_refused(
    tiny_gguf: Tiny, convert: Convert, divisors: list[float]
) -> None:
    model = tiny_gguf()
    model.tensors["rope_freqs.weight"] = np.array(divisors, np.float32)
    with pytest.raises(ModelError, match=r"rope_freqs\.weight is not 8 positive numbers"):
        convert(model)


YARN = {"type": "yarn", "factor": 4.0, "original_context_length": 32}


@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        ({"scaling.type": "none"}, None),
        ({"scale_linear": 1.0}, None),
        ({"scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"scaling.type": "linear", "scaling.factor": 2.0},
            {"rope_type": "linear", "factor": 2.0},
        ),
        (
            {f"scaling.{key}": value for key, value in YARN.items()},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
        (
            {f"scaling.{key}": value for key, value in YARN.items()}
            | {"scaling.yarn_beta_fast": 16.0, "scaling.yarn_beta_slow": 2.0},
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
            },
        ),
    ],
)
def test_scaling_in_the_metadata_is_in_the_config(
    tiny_gguf: Tiny, convert: Convert, metadata: dict[str, Any], scaling: Any
) -> None:
    model = tiny_gguf()
    model.metadata |= {f"llama.rope.{key}": value for key, value in metadata.items()}
    assert rope_of(convert(model)) == scaling


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"scaling.type": "longrope", "scaling.factor": 2.0}, "'longrope' is not supported"),
        ({"scaling.type": "linear"}, "'llama.rope.scaling.factor' is missing"),
        ({"scaling.type": "yarn", "scaling.factor": 2.0}, "original_context_length' is missing"),
        ({"scaling.type": "linear", "scaling.factor": 0.0}, "factor' is 0.0, not a positive"),
        ({"scaling.attn_factor": 2.0}, "not understood: rope.scaling.attn_factor"),
        ({"scaling.yarn_log_multiplier": 0.1}, "not understood: rope.scaling.yarn_log_multiplier"),
    ],
)
def test_scaling_that_cannot_be_kept_is_refused(
    tiny_gguf: Tiny, convert: Convert, metadata: dict[str, Any], what: str
) -> None:
    model = tiny_gguf()
    model.metadata |= {f"llama.rope.{key}": value for key, value in metadata.items()}
    with pytest.raises((ModelError, FormatError)) as caught:
        convert(model)
    assert what in str(caught.value)


def test_two_kinds_of_scaling_are_refused(tiny_gguf: Tiny, convert: Convert) -> None:
    model = tiny_gguf()
    model.metadata |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    model.tensors["rope_freqs.weight"] = llama3_divisors(16, 10000.0, 8.0, 1.0, 4.0, 8192)
    with pytest.raises(ModelError, match=r"both rope_freqs\.weight and linear"):
        convert(model)
