import json

import mlx.core as mx
import mlx.nn as nn
import pytest

from macai.data.rows import Row
from macai.errors import AdapterError
from macai.models import requantise as module
from macai.models.fuse import write_model
from macai.models.load import load_model
from macai.models.requantise import WHOLE
from macai.train.agreement import fuse_requantised, likeliest
from macai.train.loss import logits_for
from tests.adapters import adapt

ROWS = [
    Row(source=f"r:{i}", prompt=f"What is {i} plus {i}?", completion=f"It is {2 * i}, I think.")
    for i in range(12)
]


def examples(loaded):
    from macai.data.tokens import prepare

    return prepare([ROWS], loaded.tokenizer, max_length=200, truncation="error")[0].examples


def said(loaded):
    return likeliest(loaded.model, examples(loaded), logits_for(loaded.model))


def test_what_is_written_answers_as_the_adapter_did(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "AGREEMENT", 0.9)  # random weights are the hardest to round
    adapt(tiny)
    before = said(tiny)
    result = fuse_requantised(tiny, ROWS, bits=4, raise_bits=True)
    write_model(tiny, tmp_path, dtype="float16", quantization=result.config(4))
    again = load_model(tmp_path)
    same = (said(again) == before).mean().item()
    assert same == pytest.approx(result.agreement, abs=1e-6)
    assert same >= 0.9 > result.plain_agreement
    stored = mx.load(str(tmp_path / "model.safetensors"))
    packed = {name.removesuffix(".scales") for name in stored if name.endswith(".scales")}
    assert packed == {path for path, bits in result.bits.items() if bits != WHOLE}
    assert len(packed) > 2
    config = json.loads((tmp_path / "config.json").read_text())["quantization"]
    assert config["bits"] == 4
    assert {p: c["bits"] for p, c in config.items() if isinstance(c, dict)} == {
        path: bits for path, bits in result.bits.items() if bits not in (4, WHOLE)
    }


def test_more_bits_are_refused_by_name_unless_they_are_allowed(tiny):
    adapt(tiny)
    with pytest.raises(AdapterError) as caught:
        fuse_requantised(tiny, ROWS, bits=2, raise_bits=False)
    assert caught.value.message.startswith("in 2 bits ")
    assert "of the answers stay, and 99% must; more bits are needed by lm_head (" in (
        caught.value.message
    )
    assert "--raise-bits" in caught.value.hint


def test_where_8_bits_are_enough_nothing_is_raised(tiny, monkeypatch):
    monkeypatch.setattr(module, "AGREEMENT", 0.9)
    adapt(tiny)
    result = fuse_requantised(tiny, ROWS, bits=8, raise_bits=False)
    assert set(result.bits.values()) == {8}
    assert result.agreement == result.plain_agreement >= 0.9
    assert isinstance(tiny.model.lm_head, nn.QuantizedLinear)


def test_rounding_takes_most_of_a_small_adapter_away_in_4_bits():
    weight = mx.random.normal((64, 256), key=mx.random.key(0)) * 0.02
    base = module._rounded(weight, 4)
    noise = mx.random.normal((64, 4), key=mx.random.key(1))
    delta = noise @ mx.random.normal((4, 256), key=mx.random.key(2))
    delta = delta * (0.02 * mx.linalg.norm(base) / mx.linalg.norm(delta))
    kept = module._rounded(base + delta, 4) - base
    assert mx.linalg.norm(kept - delta).item() > 0.5 * mx.linalg.norm(delta).item()
    assert mx.linalg.norm(module._rounded(base + delta, WHOLE) - base - delta).item() < 1e-5
