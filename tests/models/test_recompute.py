"""Gradient checkpointing: the same numbers for less memory."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import llama

from macai.models.arrays import named_arrays
from macai.models.lora import add_lora, target_paths
from macai.models.recompute import recomputed
from macai.train.gradient import Gradient
from macai.train.job import training_ops
from macai.train.loss import _picked
from tests.train.cases import batch_of, make_examples
from tests.train.defects import draw_dropout_anew_when_recomputing

EXAMPLES = make_examples((40, 12), (24, 1), (17, 6))
for example in EXAMPLES:
    example.ids[:9] = range(10, 19)
    example.learn[:10] = False


def sums_of(model, *, recompute, prefix=0):
    with training_ops(model, recompute=recompute):
        parts = [(n, lambda r=r: batch_of(EXAMPLES, r, prefix=prefix)) for n, r in enumerate(ROWS)]
        return Gradient(model, _picked)(parts, 3)


ROWS = ([0], [1, 2])


def same(a, b):
    return a.loss == b.loss and mx.array_equal(a.vector, b.vector).item()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("prefix", [0, 9])
def test_loss_and_gradient_are_the_same_to_the_last_bit(adapted, dropout, prefix):
    model = adapted(dropout=dropout)
    model.train()
    before = {k: np.array(v) for k, v in named_arrays(model.parameters()).items()}
    kept, again = (sums_of(model, recompute=r, prefix=prefix) for r in (False, True))
    assert same(again, kept)
    assert mx.abs(kept.vector).max().item() > 0
    after = named_arrays(model.parameters())
    assert all((np.array(after[k]) == v).all() for k, v in before.items())


def test_another_mask_the_second_time_would_be_noticed(adapted, monkeypatch):
    model = adapted(dropout=0.4)
    model.train()
    kept = sums_of(model, recompute=False)
    draw_dropout_anew_when_recomputing(monkeypatch)
    again = sums_of(model, recompute=True)
    assert not same(again, kept)
    difference = mx.abs(again.vector - kept.vector).max() / mx.abs(kept.vector).max()
    assert difference.item() > 0.05


def test_what_is_drawn_after_it_is_the_same(adapted):
    model = adapted(dropout=0.4)
    model.train()
    drawn = []
    for recompute in (False, True):
        sums_of(model, recompute=recompute)
        drawn.append(mx.random.uniform().item())
    assert drawn[0] == drawn[1]


def test_layers_are_themselves_again_afterwards_also_after_an_error(adapted):
    model = adapted()
    kinds = [type(layer) for layer in model.layers]
    with recomputed(model):
        assert all(type(layer) is not kind for layer, kind in zip(model.layers, kinds, strict=True))
        assert all(isinstance(layer, llama.TransformerBlock) for layer in model.layers)
    assert [type(layer) for layer in model.layers] == kinds
    with pytest.raises(TypeError), recomputed(model):
        model()
    assert [type(layer) for layer in model.layers] == kinds
    with recomputed(model, wanted=False):
        assert [type(layer) for layer in model.layers] == kinds


def test_a_deep_model_needs_less_memory():
    args = llama.ModelArgs(
        model_type="llama",
        hidden_size=32,
        num_hidden_layers=12,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=4,
        rms_norm_eps=1e-5,
        vocab_size=64,
    )
    model = llama.Model(args)
    add_lora(model, target_paths(model, ["all-linear"]), rank=2, alpha=4.0)
    examples = make_examples((250, 20), (250, 20))
    for example in examples:
        example.ids[:] %= 64
    peaks = []
    for recompute in (False, True):
        with training_ops(model, recompute=recompute):
            gradient = Gradient(model, _picked)
            mx.reset_peak_memory()
            gradient([(0, lambda: batch_of(examples))], 0)
            peaks.append(mx.get_peak_memory())
    assert peaks[1] < 0.5 * peaks[0]
