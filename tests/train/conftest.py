import mlx.core as mx
import pytest

from macai.models.lora import add_lora, lora_layers, target_paths


@pytest.fixture
def adapted(tiny):
    """Adapt the tiny model anew with LoRA whose B is not zero, so that A has a gradient as well."""

    def adapted(*, dropout=0.0):
        if not lora_layers(tiny.model):
            paths = target_paths(tiny.model, ["q_proj", "down_proj"])
            add_lora(tiny.model, paths, rank=4, alpha=8.0, dropout=dropout)
        key = mx.random.key(7)
        for layer in lora_layers(tiny.model).values():
            a, b, key = mx.random.split(key, 3)
            layer.lora_A = mx.random.normal(layer.lora_A.shape, key=a) * 0.1
            layer.lora_B = mx.random.normal(layer.lora_B.shape, key=b) * 0.1
        mx.eval(tiny.model.parameters())
        return tiny.model

    return adapted
