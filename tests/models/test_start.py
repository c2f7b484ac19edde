import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.models.adapter import AdapterConfig, load_adapter
from macai.models.load import dense_weight, load_model
from macai.models.lora import add_lora, lora_layers, target_paths
from macai.models.peft_config import PeftConfig
from macai.models.start import STARTS, truncated_svd
from tests.adapters import save

IDS = mx.array([[5, 80, 33, 7, 260, 9]])


def decaying(rows=96, columns=64, seed=0):
    """A matrix whose singular values fall as those of trained weights do."""
    rng = np.random.default_rng(seed)
    u, _, vt = np.linalg.svd(rng.standard_normal((rows, columns)), full_matrices=False)
    values = 10.0 / (1 + np.arange(min(rows, columns)))
    return (u * values) @ vt, values


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (40, 40)])
def test_a_truncated_svd_is_nearly_the_exact_one(shape):
    matrix, values = decaying(*shape)
    single = mx.array(matrix.astype(np.float32))
    u, s, vt = (np.array(x) for x in truncated_svd(single, 8, mx.random.key(1)))
    np.testing.assert_allclose(s, values[:8], rtol=1e-4)
    error = np.linalg.norm(matrix - (u * s) @ vt)
    assert error < 1.0001 * np.linalg.norm(values[8:])


@pytest.mark.parametrize("bits", [0, 2, 3, 4, 5, 6, 8])
def test_pissa_changes_nothing_at_first_and_trains_the_largest_directions(tiny, bits):
    if bits:
        nn.quantize(tiny.model, group_size=32, bits=bits)
    before, path = tiny.model(IDS), "model.layers.0.mlp.up_proj"
    weight = np.array(dense_weight(dict(tiny.model.named_modules())[path]), np.float64)
    add_lora(tiny.model, [path], rank=4, alpha=6, init="pissa")
    assert mx.abs(tiny.model(IDS) - before).max().item() < 1e-4
    (layer,) = lora_layers(tiny.model).values()
    product = layer.scale * np.array(layer.lora_B, np.float64) @ np.array(layer.lora_A, np.float64)
    values = np.linalg.svd(weight, compute_uv=False)
    left = np.linalg.norm(weight - product)
    assert left < 1.01 * np.linalg.norm(values[4:])
    assert left < 0.99 * np.linalg.norm(values)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_pissa_is_saved_as_a_plain_lora_for_the_base_as_it_is(tiny, tiny_dir, tmp_path, options):
    paths = target_paths(tiny.model, ["q_proj", "up_proj"])
    add_lora(tiny.model, paths, rank=4, alpha=6, init="pissa", **options)
    for layer in lora_layers(tiny.model).values():
        layer.lora_B = layer.lora_B * 1.3
    sizes = PeftConfig(4, 6, options.get("rank_pattern", {}), {}, options.get("use_rslora", False))
    save(tiny, tmp_path, sizes=sizes)
    again = load_model(tiny_dir)
    config: AdapterConfig = load_adapter(again, tmp_path)
    assert config.sizes.rank == 8
    assert mx.abs(again.model(IDS) - tiny.model(IDS)).max().item() < 1e-5
    assert mx.abs(load_model(tiny_dir).model(IDS) - tiny.model(IDS)).max().item() > 1e-2


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_loftq_starts_nearer_to_the_original_than_the_quantised_base(tiny, tiny_dir, bits):
    original = load_model(tiny_dir).model
    nn.quantize(tiny.model, group_size=32, bits=bits)
    path = "model.layers.0.mlp.up_proj"
    add_lora(tiny.model, [path], rank=16, alpha=16, init="loftq", original=original)
    (layer,) = lora_layers(tiny.model).values()
    exact = dense_weight(dict(original.named_modules())[path])
    lost = exact - dense_weight(layer.linear)
    values = np.linalg.svd(np.array(lost), compute_uv=False)
    left = mx.linalg.norm(exact - layer.merged_weight()).item()
    assert left == pytest.approx(np.linalg.norm(values[16:]), rel=0.02)
    assert left < 0.9 * np.linalg.norm(values)


def test_every_start_has_a_recipe_name():
    from typing import get_args, get_type_hints

    from macai.recipe import Adapter

    assert set(get_args(get_type_hints(Adapter)["init"])) == {"default", *STARTS}
