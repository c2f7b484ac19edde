"""Group norm over a feature map, exact to float32 on the CPU backend as well.

There MLX adds all the values of a group one after the other: in a picture of 512 pixels a side that
is a million float32 additions, and the norm is 90 dB from the exact one instead of 150.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm as torch groups channels; on the CPU, means are taken side by side first.

    Only the statistics differ, so that whoever traces or marks nn.GroupNorm.__call__ sees this one.
    """

    def __init__(self, num_groups: int, dims: int, eps: float) -> None:
        super().__init__(num_groups, dims, eps=eps, pytorch_compatible=True)

    def _pytorch_compatible_group_norm(self, x: mx.array) -> mx.array:
        """Return x [B, ..., C], normed in float32, in its own type."""
        if mx.default_device() != mx.cpu:  # elsewhere one kernel does it, and in a tree
            return super()._pytorch_compatible_group_norm(x)
        wide = x.astype(mx.float32)
        centred = wide - self._mean(wide)
        scale = mx.rsqrt(self._mean(centred.square()) + self.eps)
        return (centred * scale).astype(x.dtype)

    def _mean(self, x: mx.array) -> mx.array:
        """Return each channel's group's mean, [B, 1, ..., C]: along a side, then the next."""
        B, *sides, C = x.shape
        for _ in sides:
            x = x.mean(axis=1)
        groups = x.reshape(B, self.num_groups, -1)
        means = mx.broadcast_to(groups.mean(axis=-1, keepdims=True), groups.shape)
        return means.reshape(B, *[1] * len(sides), C)


def use_exact_norms(model: nn.Module) -> None:
    """Put a GroupNorm in place of every other nn.GroupNorm of torch's kind, with its parameters."""
    norms = []
    for path, norm in model.named_modules():
        if type(norm) is nn.GroupNorm and norm.pytorch_compatible:
            exact = GroupNorm(norm.num_groups, norm.dims, norm.eps)
            exact.update(norm.parameters())
            norms.append((path, exact))
    model.update_modules(tree_unflatten(norms))
