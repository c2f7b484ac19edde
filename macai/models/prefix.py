"""What all rows of a batch begin with, computed once for them all.

Rows that share a system prompt share its hidden states too: attention is causal, so nothing that
comes after changes them. Their keys and values are computed from one row and attended to by every
row, and the gradients of all rows come back through them.
"""

import mlx.core as mx
import mlx.nn as nn

# Of the largest logit. Two orders of summation come closer; half precision was not measured.
PROBE_TOLERANCE = {mx.float32: 1e-4, mx.float16: 5e-3, mx.bfloat16: 3e-2}


class PrefixCache:
    """Keys and values of one layer: the first call's, which all later calls attend to.

    It stands where mlx-lm's attention expects its KVCache. A call in which it is still empty leaves
    the prefix in it, [1, heads, P, head_dim]; each later call is of one batch of B rows.
    """

    def __init__(self) -> None:
        self.offset = 0
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def kept(self) -> list[mx.array]:
        """Keys and values, or nothing yet: a block's gradient goes through them too."""
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    @kept.setter
    def kept(self, arrays: list[mx.array]) -> None:
        self.keys, self.values = arrays or (None, None)
        self.offset = 0 if self.keys is None else self.keys.shape[2]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Return what the queries of this call attend to, [B, heads, P + L, head_dim]."""
        if self.keys is None or self.values is None:
            self.keys, self.values, self.offset = keys, values, keys.shape[2]
            return keys, values
        return _after(self.keys, keys), _after(self.values, values)

    def make_mask(
        self, rows: int, *, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Return the causal mask of `rows` queries after the prefix, as mlx-lm's caches do."""
        from mlx_lm.models.cache import create_attention_mask

        return create_attention_mask(rows, self.offset, return_array, window_size)


def _after(prefix: mx.array, new: mx.array) -> mx.array:
    return mx.concatenate([mx.broadcast_to(prefix, (new.shape[0], *prefix.shape[1:])), new], axis=2)


def prefix_caches(model: nn.Module, prefix: mx.array) -> list[PrefixCache]:
    """Return a cache for each layer that holds `prefix`, int32 [P]."""
    caches = [PrefixCache() for _ in model.layers]
    model(prefix[None], cache=caches)  # lazy: its logits are never computed
    return caches


def can_share_prefix(model: nn.Module) -> bool:
    """Return whether this model gives its own numbers after a shared prefix.

    Not if its layers remember more than keys and values, or if a probe differs.
    """
    probe = mx.arange(1, 13).reshape(2, 6)
    probe[1, :3] = probe[0, :3]
    try:
        if not remembers_keys(model):
            return False
        expected = model(probe)[:, 3:]
        actual = model(probe[:, 3:], cache=prefix_caches(model, probe[0, :3]))
    except (AttributeError, TypeError, ValueError, IndexError):
        return False
    difference = mx.abs(actual - expected).max()
    allowed = PROBE_TOLERANCE[expected.dtype] * mx.abs(expected).max()
    return bool((difference <= allowed).item())


def remembers_keys(model: nn.Module) -> bool:
    """Return whether all that its layers remember is keys and values: no weight is looked at."""
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    return all(type(layer) is KVCache for layer in make_prompt_cache(model))
