"""For machines with little memory: the same numbers, computed piece by piece."""

import contextlib
from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macai.diffusion.models.attention import Attention

PIECE_BYTES = 16 << 20  # MLX makes room for more than ten pieces before the first is done


class StripConv2d(nn.Conv2d):
    """A 3x3 convolution of some rows of a picture after the other.

    MLX's CPU backend writes the input of a convolution out as a matrix nine times as large: 2.4 GB
    for 256 channels at 512x512 in float32, in the decoder of Stable Diffusion.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """[B, H, W, C] -> [B, H, W, channels of the output]."""
        height = x.shape[1]
        rows = max(1, height * PIECE_BYTES // (9 * x.nbytes))
        if rows >= height:
            return super().__call__(x)
        strips: list[mx.array] = []
        for begin in range(0, height, rows):
            end = min(begin + rows, height)
            strip = x[:, max(begin - 1, 0) : end + 1]
            if strips:  # or MLX begins with all of them at once
                strip = mx.depends(strip, strips[-1])
            edges = (int(begin == 0), int(end == height))
            strip = mx.pad(strip, [(0, 0), edges, (0, 0), (0, 0)])
            strips.append(mx.conv2d(strip, self.weight, padding=(0, 1)))
        whole = mx.concatenate(strips, axis=1)
        return whole + self.bias if "bias" in self else whole


def spare_memory(model: nn.Module) -> None:
    """Have the attention and the convolutions of a model computed piece by piece, from now on."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.spare_memory()
    _use_strips(model)


@contextlib.contextmanager
def in_strips(model: nn.Module) -> Iterator[None]:
    """Have a CPU compute a model's convolutions piece by piece meanwhile: it is faster, too."""
    originals = _use_strips(model) if mx.default_device() == mx.cpu else []
    try:
        yield
    finally:
        if originals:
            model.update_modules(tree_unflatten(originals))


def _use_strips(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """Return the convolutions that are computed in strips from now on, by path."""
    plain = [(p, m) for p, m in model.named_modules() if type(m) is nn.Conv2d and _is_plain(m)]
    if plain:
        model.update_modules(tree_unflatten([(path, _strip(conv)) for path, conv in plain]))
    return plain


def _strip(conv: nn.Conv2d) -> StripConv2d:
    outputs, _, _, inputs = conv.weight.shape
    strip = StripConv2d(inputs, outputs, 3, padding=1, bias="bias" in conv)
    strip.update(conv.parameters())
    return strip


def _is_plain(conv: nn.Conv2d) -> bool:
    kernel = conv.weight.shape[1:3]
    return kernel == (3, 3) and conv.stride == (1, 1) == conv.padding and conv.groups == 1
