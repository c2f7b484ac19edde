"""MLX functions whose graphs have the operations of passes/pictures_first.py; as in cases.py.

Those of ROWS need the pass that also turns rows.
"""

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.models.attention import Attention, BasicTransformerBlock
from tests.coreml.cases import conv, f, module, transposed_conv


class Picture(nn.Module):
    """A convolution, then something."""

    def __init__(self, channels: int, then: nn.Module) -> None:
        super().__init__()
        self.conv, self.then = nn.Conv2d(channels, channels, 3, padding=1), then

    def __call__(self, x: mx.array) -> mx.array:
        return self.then(self.conv(x))


class Rows(nn.Module):
    """A convolution, then something of its pixels as rows, and of others' rows if it takes them."""

    def __init__(self, channels: int, then: nn.Module) -> None:
        super().__init__()
        self.conv, self.then = nn.Conv2d(channels, channels, 1), then

    def __call__(self, x: mx.array, *context: mx.array) -> mx.array:
        B, H, W, C = x.shape
        more = [other.squeeze(2).swapaxes(1, 2) for other in context]
        y = self.then(self.conv(x).reshape(B, H * W, C), *more)
        return y.reshape(B, H, W, -1).transpose(0, 3, 1, 2)


def norm(groups: int, channels: int, **options: bool) -> nn.Module:
    return Picture(channels, nn.GroupNorm(groups, channels, pytorch_compatible=True, **options))


def attend(**options: bool) -> nn.Module:
    return Attention(8, heads=2, dim_head=4, **options)


CASES = {
    "PictureConvolution": [
        (conv(2), (f(1, 5, 6, 6),)),
        (conv(2, stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (f(2, 7, 6, 6),)),
        (conv(2, groups=2), (f(1, 5, 5, 6),)),
        (conv(2, out=6, groups=6), (f(1, 5, 5, 6),)),
        (transposed_conv(2), (f(1, 3, 4, 6),)),
        (mx.conv2d, (f(1, 5, 6, 2), f(3, 2, 2, 2))),
        module(nn.Conv2d(3, 4, 3, padding=1), f(1, 5, 5, 3)),
        (lambda x, w: mx.conv_general(x, w, flip=True), (f(1, 4, 5, 2), f(3, 3, 2, 2))),
    ],
    "PictureGroupNorm": [
        module(norm(2, 6), f(2, 3, 4, 6)),
        module(norm(3, 6, affine=False), f(1, 5, 3, 6)),
    ],
    "PictureUpsample": [
        module(Picture(2, nn.Upsample(2)), f(1, 3, 4, 2)),
        module(Picture(2, nn.Upsample((3, 2))), f(2, 2, 3, 2)),
    ],
}
ROWS = {
    "RowsLinear": [
        module(Rows(6, nn.Linear(6, 4)), f(2, 3, 4, 6)),
        module(Rows(6, nn.Linear(6, 4, bias=False)), f(1, 2, 2, 6)),
        module(Picture(6, nn.Linear(6, 4)), f(1, 3, 2, 6)),
    ],
    "RowsLayerNorm": [
        module(Rows(6, nn.LayerNorm(6)), f(2, 3, 4, 6)),
        module(Rows(6, nn.LayerNorm(6, affine=False)), f(1, 2, 2, 6)),
    ],
    "RowsAttention": [
        module(Rows(8, attend()), f(2, 3, 4, 8)),
        module(Rows(8, attend(upcast_attention=True, bias=True)), f(1, 3, 2, 8)),
        module(
            Rows(
                8,
                BasicTransformerBlock(
                    8, num_attention_heads=2, attention_head_dim=4, cross_attention_dim=6
                ),
            ),
            f(2, 3, 2, 8),
            f(2, 6, 1, 5),
        ),
    ],
}
