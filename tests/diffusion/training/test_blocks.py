import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map

from macai.diffusion.lora.layers import layers_of
from macai.diffusion.lora.names import target_paths
from macai.diffusion.lora.training import add_lora
from macai.diffusion.models.unet_2d_condition import UNet2DConditionModel
from macai.diffusion.training.blocks import checkpoint_blocks
from macai.train.optimizer import joined
from tests.diffusion.training.small import models

COUNTS = {"none": 0, "transformers": 4, "all": 9}


def result(kinds, *, dropout):
    """Loss and gradient of a LoRA on everything, with the same random numbers every time."""
    unet = models().models["unet"]
    paths = target_paths(layers_of({"unet": unet})["unet"], "conv")
    add_lora(unet, paths, name="x", rank=2, alpha=2, dropout=dropout)
    mx.random.seed(1)
    unet.update(
        tree_map(lambda a: a + 0.1 * mx.random.normal(a.shape), unet.trainable_parameters())
    )
    unet.train()
    assert checkpoint_blocks(unet, kinds) == COUNTS[kinds]
    x, hidden = mx.random.normal((2, 8, 8, 4)), mx.random.normal((2, 12, 16))
    mx.random.seed(2)
    both = nn.value_and_grad(unet, lambda m: m(x, mx.array([3.0, 600.0]), hidden).square().sum())
    loss, grads = both(unet)
    return loss.item(), joined(grads)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("kinds", ["transformers", "all"])
def test_checkpointing_changes_neither_loss_nor_gradient(kinds, dropout):
    (loss, gradient), (wanted, plain) = (
        result(kinds, dropout=dropout),
        result("none", dropout=dropout),
    )
    assert loss == wanted
    assert mx.abs(gradient - plain).max().item() <= 1e-5 * mx.abs(plain).max().item()


def test_dropout_changes_the_loss():
    assert result("all", dropout=0.5)[0] != result("all", dropout=0.0)[0]


def test_a_checkpointed_block_is_still_what_it_was():
    unet = models().models["unet"]
    before = [path for path, _ in unet.named_modules()]
    checkpoint_blocks(unet, "all")
    assert [path for path, _ in unet.named_modules()] == before
    assert isinstance(unet, UNet2DConditionModel)
    assert type(unet.down_blocks[0].resnets[0]).__name__ == "ResnetBlock2D"
    assert checkpoint_blocks(unet, "all") == 0
