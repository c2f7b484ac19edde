"""Layers that add LoRAs at run time.

A strength is an array in its module's state: it changes between images without loading anything,
also inside a compiled function that has the state among its inputs.
"""

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macai.diffusion.lora.names import Layers, Shape
from macai.diffusion.lora.updates import LowRank, Update, delta
from macai.models.lora import linear_shape


class LowRankBranch(nn.Module):
    """One LoRA on one layer, kept as its factors; the only kind that is trained.

    Attributes:
        name: The adapter's, the same on all its layers.
        scale: alpha / rank.
        lora_A: [rank, in], of a convolution [rank, height, width, in].
        lora_B: [out, rank].
        lora_mid: [rank, height, width, rank] in LoCon's Tucker form, where lora_A is [rank, in].
    """

    def __init__(
        self,
        name: str,
        lora_A: mx.array,  # noqa: N803  # PEFT's names
        lora_B: mx.array,  # noqa: N803
        *,
        scale: float,
        lora_mid: mx.array | None = None,
        bias: mx.array | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.name = name
        self.scale = scale
        self.lora_A, self.lora_B = lora_A, lora_B
        if lora_mid is not None:
            self.lora_mid = lora_mid
        if bias is not None:
            self._bias = bias
        self.dropout = nn.Dropout(dropout)
        self._strength = mx.array(1.0)

    def __call__(self, x: mx.array, base: nn.Module) -> mx.array:
        """Return what is added to base(x), in the type of `x`."""
        down = self.lora_A.astype(x.dtype)
        low = self.dropout(x)
        if down.ndim == 2:
            low = low @ down.T
        else:
            low = _convolve(low, down, base)
        if "lora_mid" in self:
            low = _convolve(low, self.lora_mid.astype(x.dtype), base)
        # The factor goes to the smaller matrix, where it is multiplied in float32.
        factor = self._strength * self.scale
        out = low @ (factor * self.lora_B.astype(mx.float32)).astype(x.dtype).T
        if "_bias" in self:
            out = out + (self._strength * self._bias).astype(x.dtype)
        return out

    def to_update(self) -> Update:
        """Return the LoRA as files have it, in torch's layout."""
        down, up, mid = self.lora_A, self.lora_B, self.get("lora_mid")
        if mid is not None or down.ndim == 4:
            up = up[:, :, None, None]
            down = down[:, :, None, None] if down.ndim == 2 else _to_torch(down)
        factors = LowRank(down=down, up=up, mid=None if mid is None else _to_torch(mid))
        return Update(factors=factors, scale=self.scale, bias=self.get("_bias"))


class DeltaBranch(nn.Module):
    """One LoHa, LoKr, DoRA or whole difference on one layer: its delta is made anew at each call.

    That costs time where keeping it would cost the memory of another model; fused it costs neither.
    """

    def __init__(self, name: str, update: Update) -> None:
        super().__init__()
        self.name = name
        self._update = update
        self._strength = mx.array(1.0)

    def __call__(self, x: mx.array, base: nn.Module) -> mx.array:
        """Return what is added to base(x), in the type of `x`."""
        weight = weight_of(base)
        change = delta(self._update, weight=weight, strength=self._strength).astype(x.dtype)
        out = x @ change.T if change.ndim == 2 else _convolve(x, _to_mlx(change), base)
        if self._update.bias is not None:
            out = out + (self._strength * self._update.bias).astype(x.dtype)
        return out

    def to_update(self) -> Update:
        """Return the update as its file has it."""
        return self._update


Branch = LowRankBranch | DeltaBranch


class LoraLinear(nn.Module):
    """A linear layer, plain or quantised, plus what its branches say."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.branches: list[Branch] = []

    @property
    def base(self) -> nn.Module:
        return self.linear

    @property
    def weight(self) -> mx.array:
        return self.linear.weight

    def __call__(self, x: mx.array) -> mx.array:
        """[..., in] -> [..., out]."""
        out = self.linear(x)
        for branch in self.branches:
            out = out + branch(x, self.linear)
        return out


class LoraConv2d(nn.Module):
    """A convolution plus what its branches say."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.branches: list[Branch] = []

    @property
    def base(self) -> nn.Module:
        return self.conv

    @property
    def weight(self) -> mx.array:
        return self.conv.weight

    def __call__(self, x: mx.array) -> mx.array:
        """[B, H, W, in] -> [B, H', W', out]."""
        out = self.conv(x)
        for branch in self.branches:
            out = out + branch(x, self.conv)
        return out


Adapted = LoraLinear | LoraConv2d
_PLAIN = (nn.Linear, nn.QuantizedLinear, nn.Conv2d)


def new_branch(name: str, update: Update, base: nn.Module) -> Branch:
    """Return what adds `update`, which fits the weight of `base`, under the adapter's `name`."""
    factors, shape = update.factors, shape_of(base)
    if not isinstance(factors, LowRank) or update.magnitude is not None:
        return DeltaBranch(name, update)
    down, up, mid = factors.down, factors.up.reshape(shape[0], -1), factors.mid
    if mid is not None or len(shape) == 2:
        down = down.reshape(down.shape[0], -1)
    else:
        down = _to_mlx(down.reshape(down.shape[0], *shape[1:]))
    return LowRankBranch(
        name,
        down,
        up,
        scale=update.scale,
        lora_mid=None if mid is None else _to_mlx(mid),
        bias=update.bias,
    )


def adaptable(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers and convolutions by path, adapted ones as they are, in order."""
    modules = dict(model.named_modules())
    found = {
        path: module
        for path, module in modules.items()
        if isinstance(module, (*_PLAIN, LoraLinear, LoraConv2d))
        and not isinstance(modules.get(path.rpartition(".")[0]), (LoraLinear, LoraConv2d))
        and getattr(module, "groups", 1) == 1
    }
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def adapted(model: nn.Module) -> dict[str, Adapted]:
    """Return the layers with branches by path, in order."""
    layers = adaptable(model).items()
    return {p: m for p, m in layers if isinstance(m, (LoraLinear, LoraConv2d))}


def layers_of(components: Mapping[str, nn.Module]) -> Layers:
    """Return the shapes of all weights a LoRA may be for, as `macai.diffusion.lora.names` has them.

    Args:
        components: Models by their names in a pipeline: "unet", "text_encoder", "text_encoder_2".
    """
    return {
        component: {path: shape_of(base_of(m)) for path, m in adaptable(model).items()}
        for component, model in components.items()
    }


def base_of(layer: nn.Module) -> nn.Module:
    """Return the layer itself, without branches."""
    return layer.base if isinstance(layer, (LoraLinear, LoraConv2d)) else layer


def shape_of(base: nn.Module) -> Shape:
    """Return the shape of a layer's weight in torch's layout."""
    if isinstance(base, nn.Conv2d):
        out, height, width, into = base.weight.shape
        return (out, into, height, width)
    return linear_shape(base)


def weight_of(base: nn.Module) -> mx.array:
    """Return a layer's weight in torch's layout, float32, dequantised where it is quantised."""
    if isinstance(base, nn.Conv2d):
        return _to_torch(base.weight.astype(mx.float32))
    if not isinstance(base, nn.QuantizedLinear):
        return base.weight.astype(mx.float32)
    scales, biases = base.scales, base.get("biases")
    if biases is not None:  # affine: products of float16 scales would be rounded
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    weight = mx.dequantize(base.weight, scales, biases, base.group_size, base.bits, base.mode)
    return weight.astype(mx.float32)


def set_weight(base: nn.Module, weight: mx.array) -> None:
    """Put `weight`, in torch's layout, into a layer in its own layout and type, in place."""
    own = _to_mlx(weight) if isinstance(base, nn.Conv2d) else weight
    if isinstance(base, nn.QuantizedLinear):
        kind = base.scales.dtype if base.mode == "affine" else mx.float32
        packed = mx.quantize(own.astype(kind), base.group_size, base.bits, mode=base.mode)
        base.weight, base.scales, *biases = packed
        base.biases = biases[0] if biases else None
    else:
        base.weight = own.astype(base.weight.dtype)


def put(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put layers in place of those at the same paths."""
    model.update_modules(tree_unflatten(list(layers.items())))


def _convolve(x: mx.array, weight: mx.array, base: nn.Module) -> mx.array:
    return mx.conv2d(x, weight, base.stride, base.padding, base.dilation)


def _to_mlx(weight: mx.array) -> mx.array:
    return weight.transpose(0, 2, 3, 1)


def _to_torch(weight: mx.array) -> mx.array:
    return weight.transpose(0, 3, 1, 2)


def _natural(path: str) -> list[tuple[bool, int, str]]:
    """Sort key under which blocks.2 comes before blocks.10."""
    return [(p.isdigit(), int(p) if p.isdigit() else 0, p) for p in path.split(".")]
