"""Functions that use each op that passes/channels_first.py makes, with inputs."""

import mlx.core as mx
import mlx.nn as nn

from tests.coreml.cases import Case, f, i

B, N = f(24), f(16)
P = mx.array([3])


class _Layers(nn.Module):
    """What the cases have weights of: only a module's have names, and only named ones are kept."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(16, 24, bias=False)
        self.biased = nn.Linear(16, 24)
        self.table = nn.Embedding(20, 16)


LAYERS = _Layers()
mx.eval(LAYERS.parameters())


def heads(x: mx.array, count: int) -> mx.array:
    """[1, T, H D] -> [1, H, T, D], as a model has them after a product."""
    rows, width = x.shape[1], x.shape[2]
    return (x * 2).reshape(1, rows, count, width // count).transpose(0, 2, 1, 3)


def product(x: mx.array) -> mx.array:
    return LAYERS.plain(x)


def joined(x: mx.array) -> mx.array:
    y = nn.silu(heads(product(x), 3))
    return y.transpose(0, 2, 1, 3).reshape(1, x.shape[1], 24) + 1


def turned(**options) -> Case:
    given = {"traditional": False, "base": 1e4, "scale": 1.0} | options
    dims = given.pop("dims", 8)
    return (
        lambda x, p: mx.fast.rope(heads(product(x), 3), dims, offset=p, **given),
        (f(1, 5, 16), P),
    )


def attended(kv: int, mask) -> Case:
    def fn(x, k, v, *masks):
        q = heads(product(x), 6)
        given = masks[0] if masks else mask
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.4, mask=given)

    arrays = [f(1, 5, 16), f(1, kv, 7, 4), f(1, kv, 7, 4)]
    return fn, (*arrays, *([mask] if isinstance(mask, mx.array) else []))


MASK = mx.array([[c <= r + 2 for c in range(7)] for r in range(5)])


CASES: dict[str, list[Case]] = {
    "ChannelAttention": [
        attended(6, None),
        attended(2, "causal"),
        attended(1, MASK),
        attended(3, mx.where(MASK, 0.0, -1e4)),
        attended(2, MASK[None, None]),
        attended(2, MASK[:1]),
    ],
    "ChannelLayerNorm": [
        (lambda x: mx.fast.layer_norm(product(x), B, B, 1e-5), (f(1, 5, 16),)),
        (lambda x: mx.fast.layer_norm(product(x), None, None, 1e-5), (f(1, 1, 16),)),
    ],
    "ChannelRMSNorm": [
        (lambda x: mx.fast.rms_norm(x, N, 1e-5), (f(1, 5, 16),)),
        (lambda x: mx.fast.rms_norm(heads(product(x), 3), N[:8], 1e-6), (f(1, 5, 16),)),
        (lambda x: mx.fast.rms_norm(product(x).reshape(1, 5, 3, 8), None, 1e-6), (f(1, 5, 16),)),
    ],
    "ChannelRoPE": [
        turned(),
        turned(traditional=True),
        turned(dims=4),
        turned(dims=4, traditional=True, scale=0.5),
    ],
    "Conv1x1": [
        (product, (f(1, 5, 16),)),
        (LAYERS.biased.__call__, (f(1, 1, 16),)),
        (lambda x: nn.gelu(product(x)) * product(x) / 3 - B, (f(1, 5, 16),)),
        (lambda x: product(x)[:, 2:4] + mx.split(product(x), 2, axis=1)[0][:, :2], (f(1, 4, 16),)),
        (lambda x: mx.concatenate(mx.split(product(x), [6, 8], axis=-1)[::-1], -1), (f(1, 4, 16),)),
        (lambda x, p: mx.slice(product(x), p, axes=(1,), slice_size=(1, 1, 24)), (f(1, 5, 16), P)),
    ],
    "Heads": [(lambda x: heads(product(x), 3), (f(1, 5, 16),)), (joined, (f(1, 1, 16),))],
    "JoinHeads": [(joined, (f(1, 5, 16),)), (joined, (f(1, 1, 16),))],
    "PlainTake": [(lambda ids: product(LAYERS.table(ids)), (i(1, 5, high=20),))],
}
