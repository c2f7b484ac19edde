"""Functions that use each op of the table, with inputs: realistic ones and tricky ones.

Inputs are exact in float16, so that what compares or rounds them gives the same at any precision.
A table of all ops in one place, hence its length.
"""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np

Case = tuple[Callable, tuple[mx.array, ...]]
_rng = np.random.default_rng(0)
mx.random.seed(0)  # the modules below


def f(*shape: int) -> mx.array:
    return mx.array(_rng.normal(size=shape).astype(np.float16).astype(np.float32))


def u(*shape: int, low: float = 0.0, high: float = 1.0) -> mx.array:
    return mx.array(_rng.uniform(low, high, shape).astype(np.float16).astype(np.float32))


def i(*shape: int, low: int = 0, high: int = 5, dtype: mx.Dtype = mx.int32) -> mx.array:
    return mx.array(_rng.integers(low, high, shape)).astype(dtype)


def b(*shape: int) -> mx.array:
    return mx.array(_rng.integers(0, 2, shape).astype(bool))


def module(made: nn.Module, *inputs: mx.array) -> Case:
    mx.eval(made.parameters())
    return made.eval(), inputs


def unary(fn: Callable, *, low: float = -2.0, high: float = 2.0) -> list[Case]:
    return [
        (fn, (u(2, 3, 4, low=low, high=high),)),
        (fn, (u(5, low=low, high=high),)),
        (fn, (mx.array(np.float32((low + high) / 2 + 0.25)),)),
    ]


def binary(fn: Callable, *, low: float = -2.0, high: float = 2.0) -> list[Case]:
    def v(*shape: int) -> mx.array:
        return u(*shape, low=low, high=high)

    return [
        (fn, (v(2, 3, 4), v(2, 3, 4))),
        (fn, (v(2, 3, 4), v(4))),
        (fn, (v(3, 1), v(2, 1, 4))),
        (fn, (mx.array(np.float32(0.75)), v(2, 3))),
        (lambda x: fn(x, 1.5), (v(2, 3),)),
        (lambda x: fn(1.5, x), (v(2, 3),)),
    ]


def integers(fn: Callable) -> list[Case]:
    return [
        (fn, (i(3, 4, low=-9, high=9), mx.array([1, 2, -3, 4]))),
        (lambda x: fn(x, 3), (i(2, 5, low=-9, high=9),)),
    ]


def booleans(fn: Callable) -> list[Case]:
    return [(fn, (b(3, 4), b(4))), (fn, (b(2, 1), b(1, 3)))]


def compared(fn: Callable) -> list[Case]:
    ties = (i(4, 5).astype(mx.float32), i(5).astype(mx.float32))
    return [*binary(fn), *integers(fn), *booleans(fn), (fn, ties)]


def attend(**options: object) -> Callable:
    return lambda q, k, v, *rest: mx.fast.scaled_dot_product_attention(
        q, k, v, **{"scale": 0.35, **options}, **({"mask": rest[0]} if rest else {})
    )


def heads(h: int, kv: int, t: int, s: int, d: int = 8, *, batch: int = 1) -> tuple[mx.array, ...]:
    return f(batch, h, t, d), f(batch, kv, s, d), f(batch, kv, s, d)


def shown(*shape: int) -> mx.array:
    mask = np.array(b(*shape))
    mask[..., 0] = True  # no row that sees nothing
    return mx.array(mask)


def sinks(q: mx.array, k: mx.array, v: mx.array, s: mx.array) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.35, mask="causal", sinks=s)


def rope(dims: int, **options: object) -> Callable:
    given = {"traditional": False, "base": 10000.0, "scale": 1.0, "offset": 0, **options}
    return lambda x, *offset: mx.fast.rope(
        x, dims, **(given | ({"offset": offset[0]} if offset else {}))
    )


def set_to(x: mx.array, place: object, value: mx.array | float) -> mx.array:
    x = x + 0
    x[place] = value
    return x


def normalize(kind: str, eps: float) -> Callable:
    missing = 1 if kind == "rms_norm" else 2

    def fn(x: mx.array, *affine: mx.array) -> mx.array:
        weights = [*affine, None, None][:missing]
        return getattr(mx.fast, kind)(x, *weights, eps)

    return fn


def transposed_conv(n: int, **options: object) -> Callable:
    fn = getattr(mx, f"conv_transpose{n}d")
    kernel = f(4, *(3, 2, 2)[:n], 6 // int(options.get("groups", 1)))
    return lambda x: fn(x, kernel, **options)


def conv(n: int, out: int = 4, **options: object) -> Callable:
    fn = getattr(mx, f"conv{n}d")
    kernel = f(out, *(3, 2, 2)[:n], 6 // int(options.get("groups", 1)))
    return lambda x: fn(x, kernel, **options)


class Experts(nn.Module):
    """What mlx-lm's mixtures are made of: one matrix [out, in] an expert."""

    def __init__(self, experts: int, inner: int, out: int) -> None:
        super().__init__()
        self.weight = f(experts, out, inner)

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        return mx.gather_mm(x, self.weight.swapaxes(-1, -2), rhs_indices=chosen)


_EXPERTS = f(5, 6, 4)
_EMBEDDING = f(9, 4)
_STATIC_FREQS = mx.array(np.linspace(1, 60, 4).astype(np.float32))
SPECIAL = mx.array([-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 1e-4])

CASES: dict[str, list[Case]] = {
    "Abs": [*unary(mx.abs), (mx.abs, (i(4, low=-4),))],
    "Add": [*binary(mx.add), *integers(mx.add), *booleans(mx.add)],
    "AddMM": [
        (lambda c, x, y: mx.addmm(c, x, y, alpha=0.5, beta=2), (f(5), f(3, 2, 4), f(4, 5))),
        (mx.addmm, (f(2, 5), f(2, 4), f(4, 5))),
        (lambda x: mx.addmm(mx.ones((4,)), x, _EXPERTS[0].T[:4, :4] * 1), (f(3, 4),)),
    ],
    "ArcCos": unary(mx.arccos, low=-0.9, high=0.9),
    "ArcCosh": unary(mx.arccosh, low=1.1, high=9),
    "ArcSin": unary(mx.arcsin, low=-0.9, high=0.9),
    "ArcSinh": [*unary(mx.arcsinh), (mx.arcsinh, (mx.array([-300.0, 0.0, 300.0]),))],
    "ArcTan": unary(mx.arctan),
    "ArcTan2": [
        *binary(mx.arctan2),
        (mx.arctan2, (mx.array([0.0, 1, -1, 2, -2, 0]), mx.array([0.0, 0, 0, -1, -1, -1]))),
    ],
    "ArcTanh": unary(mx.arctanh, low=-0.9, high=0.9),
    "ArgPartition": [
        (lambda x: mx.sort(x[mx.argpartition(x, 3)[:3]]), (f(9),)),
        (lambda x: mx.argpartition(x, 2, axis=1)[:, 2], (f(4, 9),)),
    ],
    "ArgReduce": [
        (lambda x: mx.argmax(x, axis=1), (f(3, 5),)),
        (lambda x: mx.argmin(x, axis=0, keepdims=True), (f(3, 5, 2),)),
        (lambda x: mx.argmax(x), (f(3, 5),)),
        (lambda x: mx.argmax(x, axis=-1), (mx.array([[1, 3, 3], [2, 2, 1]]),)),
    ],
    "ArgSort": [
        (lambda x: mx.argsort(x, axis=0), (f(6, 3),)),
        (lambda x: mx.argsort(-x), (f(3, 6),)),
        (lambda x: mx.argsort(x), (mx.array([4, -2, 9]),)),
    ],
    "AsStrided": [
        (lambda x: mx.as_strided(x, (3, 2), (1, 2)), (f(6),)),
        (lambda x: mx.as_strided(x, (4, 3), (1, 1)), (f(2, 3),)),
        (lambda x: mx.as_strided(x, (2, 2), (3, 1), 1), (f(8),)),
    ],
    "AsType": [
        (lambda x: x.astype(mx.int32), (SPECIAL,)),
        (lambda x: x.astype(mx.uint32) * 2, (i(3),)),
        (lambda x: x.astype(mx.int64) + 1, (i(3),)),
        (lambda x: x.astype(mx.float32) / 4, (i(3),)),
        (lambda x: x.astype(mx.bool_), (SPECIAL,)),
        (lambda x: x.astype(mx.bool_), (i(5, low=-1, high=2),)),
        (lambda x: x.astype(mx.float32) * 2, (b(2, 3),)),
        (lambda x: x.astype(mx.float16).astype(mx.float32), (f(3),)),
    ],
    "AvgPool": [
        module(nn.AvgPool1d(3, 1), f(1, 8, 2)),
        module(nn.AvgPool2d(2, 2), f(2, 4, 6, 3)),
        module(nn.AvgPool2d((3, 2), (2, 1), (1, 0)), f(1, 5, 6, 3)),
        module(nn.AvgPool3d(2, 1, 1), f(1, 3, 3, 3, 2)),
    ],
    "BitwiseBinary": [
        *booleans(mx.bitwise_and),
        *booleans(mx.bitwise_or),
        *booleans(mx.bitwise_xor),
        (lambda x: x << 3, (i(4, low=-9, high=9),)),
        (lambda x: x >> 1, (i(6, low=-9, high=9),)),
        (lambda x, y: x << y, (i(4), i(4))),
        (lambda x: x & 7, (i(6, low=-90, high=90),)),
    ],
    "Broadcast": [
        (lambda x: mx.broadcast_to(x, (4, 2, 3)), (f(2, 3),)),
        (lambda x: mx.broadcast_to(x, (2, 5, 3)).sum(axis=1), (f(2, 1, 3),)),
        (lambda x: mx.broadcast_to(x[0], (3, 2)), (f(4),)),
    ],
    "Ceil": unary(mx.ceil),
    "Concatenate": [
        (lambda x, y: mx.concatenate([x, y, x], axis=1), (f(2, 3), f(2, 1))),
        (lambda x, y: mx.stack([x, y], axis=-1), (f(2, 3), f(2, 3))),
        (lambda x, y: mx.concatenate([x, y]), (i(3), i(2))),
        (lambda x, y: mx.concatenate([x, y]), (b(3), b(2))),
        (lambda x, y: mx.concatenate([x, mx.broadcast_to(y, (2, 2))]), (f(3, 2), f(2))),
        (lambda x: mx.roll(x, 2, axis=1), (f(2, 5),)),
    ],
    "Convolution": [
        (conv(1), (f(2, 7, 6),)),
        (conv(1, stride=2, padding=1, dilation=2), (f(1, 9, 6),)),
        (conv(3), (f(1, 4, 4, 3, 6),)),
        (mx.conv1d, (f(1, 8, 4), f(2, 3, 4))),
        (lambda x, w: mx.conv_general(x, w, flip=True), (f(1, 5, 2), f(3, 3, 2))),
        (lambda x: mx.conv_general(x, _EXPERTS[:, :3], flip=True), (f(1, 5, 4),)),
        (lambda x: mx.conv_general(x, _EXPERTS[:, :3], padding=([2], [0])), (f(1, 5, 4),)),
        (transposed_conv(1, stride=2), (f(1, 5, 6),)),
        (transposed_conv(1, stride=2, padding=1, output_padding=1), (f(1, 5, 6),)),
        (transposed_conv(2, stride=2), (f(1, 3, 4, 6),)),
        (transposed_conv(2, stride=(3, 2), padding=(1, 1), dilation=2), (f(2, 3, 4, 6),)),
        (transposed_conv(2, stride=2, groups=2), (f(1, 3, 4, 6),)),
        (transposed_conv(2, stride=2, padding=1, output_padding=1), (f(1, 3, 4, 6),)),
        (transposed_conv(3, stride=2), (f(1, 2, 2, 3, 6),)),
        module(nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1), f(1, 5, 5, 3)),
        (lambda x: mx.conv_general(x, _EXPERTS[:, :3], input_dilation=2), (f(1, 5, 4),)),
    ],
    "Cos": unary(mx.cos),
    "Cosh": unary(mx.cosh),
    "DivMod": [*binary(mx.divmod, low=0.5, high=4), *integers(mx.divmod)],
    "Divide": [*binary(mx.divide, low=0.5), *integers(mx.divide), (mx.divide, (f(3), i(3, low=1)))],
    "DynamicSlice": [
        (lambda x, s: mx.slice(x, s, axes=(0,), slice_size=(1, 4)), (f(5, 4), i(1))),
        (lambda x, s: mx.slice(x, s, axes=(2, 0), slice_size=(2, 3, 1)), (f(6, 3, 5), i(2))),
        (lambda x, s: mx.slice(x, s, axes=(1,), slice_size=(2, 3)), (i(2, 8), mx.array(2))),
    ],
    "DynamicSliceUpdate": [
        (lambda x, v, s: mx.slice_update(x, v, s, axes=(0,)), (f(6, 4), f(2, 4), i(1, high=4))),
        (
            lambda x, v, s: mx.slice_update(x, v, s, axes=(2, 0)),
            (f(6, 3, 5), f(2, 3, 1), i(2, high=4)),
        ),
        (lambda x, v, s: mx.slice_update(x, v, s, axes=(1,)), (i(2, 6), i(1, 2), mx.array(3))),
    ],
    "Equal": [*compared(mx.equal), (mx.array_equal, (f(3), f(3)))],
    "Erf": unary(mx.erf),
    "Exp": unary(mx.exp),
    "ExpandDims": [(lambda x: mx.expand_dims(x, (0, 2)), (f(2, 3),)), (lambda x: x[None], (i(3),))],
    "Expm1": [*unary(mx.expm1), (mx.expm1, (mx.array([1e-4, -1e-4]),))],
    "Flatten": [(lambda x: x.flatten(1), (f(2, 3, 4),)), (lambda x: x.flatten(), (f(2, 3),))],
    "Floor": unary(mx.floor),
    "FloorDivide": [*binary(mx.floor_divide, low=0.5, high=4), *integers(mx.floor_divide)],
    "Full": [(lambda x: mx.full((4, 3), x), (f(3),)), (lambda x: mx.full((2, 2), x[0]), (f(3),))],
    "GELU": [
        (nn.gelu, (f(3, 4),)),
        (nn.gelu_approx, (f(3, 4),)),
        (lambda x, y: nn.gelu_approx(x + 1) * y, (f(3, 4), f(4))),
    ],
    "Gather": [
        (lambda x, a: x[:, a], (f(6, 7), i(3))),
        (lambda x, a: x[:, :, a], (f(2, 3, 7), i(4, 2))),
        (lambda x, a: mx.take(x, a, axis=1), (f(2, 7, 3), i(2, 2))),
        (lambda x, a: x[a], (f(6, 3), mx.array(2))),
        (lambda x, a: x[a] + x[a + 3], (f(6, 3), mx.array(-3))),
        (lambda x, a: mx.take(x, a, axis=1), (f(2, 7), mx.array(-2))),
        (lambda x, a: x[a, a], (f(6, 6), i(3, low=-5))),
        (lambda x, a, c: x[a, :, c], (f(6, 3, 5), i(2, 1), i(3))),
        (lambda x, a: x[:, a], (f(2, 6, 3), i(2, 2))),
        (lambda x, a: x[a, 1], (i(6, 3), i(4))),
        (lambda x: mx.diagonal(x), (f(4, 4),)),
        (lambda x, a: x[0, a], (f(2, 6), i(2, dtype=mx.uint32))),
    ],
    "GatherAxis": [
        (lambda x, a: mx.take_along_axis(x, a, axis=1), (f(3, 6), i(3, 2))),
        (lambda x, a: mx.take_along_axis(x, a, axis=0), (f(6, 2, 3), i(4, 2, 3, low=-5))),
        (lambda x: mx.take_along_axis(x, mx.argsort(x, axis=-1), axis=-1), (f(3, 6),)),
    ],
    "GatherLinear": [
        module(Experts(5, 4, 6), f(3, 1, 1, 4), i(3, 2)),
        module(Experts(3, 4, 2), f(2, 4), i(3)),
    ],
    "GatherMM": [
        (lambda x, y, n: mx.gather_mm(x, y, rhs_indices=n), (f(3, 1, 1, 4), f(5, 4, 6), i(3, 2))),
        (lambda x, y, m, n: mx.gather_mm(x, y, m, n), (f(5, 2, 4), f(5, 4, 6), i(3), i(3))),
        (lambda x, y, m: mx.gather_mm(x, y, lhs_indices=m), (f(5, 2, 4), f(3, 4, 6), i(3))),
        (
            lambda x, y, m, n: mx.gather_mm(x, y, m, n),
            (f(2, 2, 3, 4), f(5, 4, 2), i(2, 2, high=4), i(2)),
        ),
    ],
    "Greater": compared(mx.greater),
    "GreaterEqual": compared(mx.greater_equal),
    "GroupNorm": [
        module(nn.GroupNorm(2, 6, pytorch_compatible=True), f(2, 3, 4, 6)),
        module(nn.GroupNorm(3, 6, affine=False, pytorch_compatible=True), f(1, 5, 6)),
        module(nn.GroupNorm(1, 6, pytorch_compatible=True), f(1, 2, 2, 2, 6)),
    ],
    "LayerNorm": [
        (normalize("layer_norm", 1e-5), (f(2, 3, 8), f(8), f(8))),
        (normalize("layer_norm", 1e-3), (f(3, 8), f(8))),
        (normalize("layer_norm", 1e-6), (f(8),)),
        (lambda x, y: mx.fast.layer_norm(x, None, y, 1e-5), (f(3, 8), f(8))),
        module(nn.InstanceNorm(2), f(1, 3, 3, 2)),
    ],
    "Less": compared(mx.less),
    "LessEqual": compared(mx.less_equal),
    "Linear": [
        module(nn.Linear(4, 6), f(2, 3, 4)),
        module(nn.Linear(4, 6, bias=False), f(4)),
        module(nn.Linear(4, 6, bias=False), f(2, 4)),
        module(nn.Linear(4, 6), f(2, 1, 3, 4)),
    ],
    "Log": [
        *unary(mx.log, low=0.1),
        *unary(mx.log2, low=0.1),
        *unary(mx.log10, low=0.1),
        (lambda x: mx.logsumexp(x, axis=0), (f(3, 5),)),
        (mx.logsumexp, (f(3, 5),)),
    ],
    "Log1p": [*unary(mx.log1p, low=-0.5), (mx.log1p, (mx.array([1e-4, 2e-4]),))],
    "LogAddExp": [
        *binary(mx.logaddexp),
        (nn.softplus, (mx.array([-200.0, -1, 0, 20, 200]),)),
        (mx.logaddexp, (mx.array([50.0, -60]), mx.array([-50.0, -60]))),
    ],
    "LogSumExp": [
        (lambda x: mx.logsumexp(x, axis=-1), (f(3, 5),)),
        (lambda x: mx.logsumexp(x, axis=-1, keepdims=True), (200 * f(3, 5),)),
        (nn.log_softmax, (f(3, 5),)),
    ],
    "LogicalAnd": [*booleans(mx.logical_and), (mx.logical_and, (f(3), i(3)))],
    "LogicalNot": [(mx.logical_not, (b(2, 3),)), (mx.logical_not, (i(4, high=2),))],
    "LogicalOr": [*booleans(mx.logical_or), (mx.logical_or, (i(3, high=2), f(3)))],
    "Matmul": [
        (mx.matmul, (f(3, 4), f(4, 5))),
        (mx.matmul, (f(4), f(4, 5))),
        (mx.matmul, (f(3, 4), f(4))),
        (mx.matmul, (f(4), f(4))),
        (mx.matmul, (f(3, 2, 4), f(4, 5))),
        (mx.matmul, (f(2, 4), f(3, 4, 5))),
        (mx.matmul, (f(2, 1, 3, 4), f(1, 5, 4, 2))),
        (lambda x, y: x @ y.swapaxes(-1, -2), (f(2, 3, 4), f(2, 5, 4))),
        (lambda x: x @ _EXPERTS, (f(5, 3, 6),)),
        (lambda x: _EXPERTS[0] @ x, (f(4, 3),)),
        (lambda x, y: mx.einsum("bhid,bhjd->bhij", x, y), (f(2, 3, 4, 5), f(2, 3, 6, 5))),
        (lambda x, y: mx.einsum("bij,bjk->bki", x, y), (f(2, 3, 4), f(2, 4, 5))),
        (lambda x, y: mx.tensordot(x, y, axes=1), (f(3, 2, 4), f(4, 5))),
        (mx.inner, (f(2, 4), f(3, 4))),
    ],
    "MaxPool": [
        module(nn.MaxPool1d(2, 2), f(2, 8, 3)),
        module(nn.MaxPool2d(3, 2, 1), f(1, 7, 7, 2) - 5),
        module(nn.MaxPool2d((2, 3), 1), f(1, 5, 6, 2)),
        module(nn.MaxPool3d(2, 2), f(1, 4, 4, 4, 2)),
    ],
    "Maximum": [*binary(mx.maximum), *integers(mx.maximum), *booleans(mx.maximum)],
    "Mean": [
        (lambda x: mx.mean(x, axis=(0, 2)), (f(3, 2, 4),)),
        (lambda x: mx.mean(x, axis=-1, keepdims=True), (f(3, 4),)),
        (mx.mean, (f(3, 4),)),
        (lambda x: mx.var(x, axis=1), (f(3, 4),)),
        (lambda x: mx.var(x, axis=1, ddof=1), (f(3, 4),)),
        (mx.std, (f(3, 4),)),
        (lambda x: x - mx.mean(x, axis=1, keepdims=True), (20 + f(3, 64),)),
    ],
    "Minimum": [
        *binary(mx.minimum),
        *integers(mx.minimum),
        *booleans(mx.minimum),
        (lambda x: mx.clip(x, -0.5, 0.5), (f(9),)),
    ],
    "Multiply": [*binary(mx.multiply), *integers(mx.multiply), *booleans(mx.multiply)],
    "Negative": [*unary(mx.negative), (mx.negative, (i(4),))],
    "NotEqual": compared(mx.not_equal),
    "Pad": [
        (lambda x: mx.pad(x, ((1, 0), (0, 2)), constant_values=2.0), (f(2, 3),)),
        (lambda x: mx.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0))), (f(1, 2, 3, 2),)),
        (lambda x: mx.pad(x, ((1, 2), (0, 0)), constant_values=-7), (i(2, 3),)),
        (lambda x: mx.pad(x, ((1, 2),)), (b(3),)),
        (lambda x, y: mx.pad(x, ((1, 2), (0, 1)), constant_values=y), (f(2, 2), mx.array(0.5))),
    ],
    "Partition": [(lambda x: mx.sort(mx.partition(x, 3, axis=1)[:, :3]), (f(2, 8),))],
    "Pick": [
        (lambda x: x[..., -1], (f(2, 3, 4),)),
        (lambda x: x[1, ::2], (f(4, 5),)),
        (lambda x: x[::-1, 0, 1:], (i(4, 3, 5),)),
        (lambda x: x[1:2, :].squeeze(0), (b(4, 2),)),
    ],
    "Power": [
        *binary(mx.power, low=0.2),
        (lambda x: x**3, (f(5),)),
        (lambda x: x**-0.5, (u(5, low=0.2),)),
        (lambda x, y: x**y, (i(4), i(4, high=3))),
    ],
    "QuantizedEmbedding": [module(nn.QuantizedEmbedding(9, 64), i(2, 3))],
    "QuantizedMatmul": [module(nn.QuantizedLinear(64, 5, bias=False), f(3, 64))],
    "RMSNorm": [
        (normalize("rms_norm", 1e-5), (f(2, 3, 8), f(8))),
        (normalize("rms_norm", 1e-2), (f(3, 8),)),
        (normalize("rms_norm", 1e-5), (f(8), f(8))),
        (normalize("rms_norm", 1e-5), (20_000 * f(2, 8), f(8))),
        (lambda x, w: mx.fast.rms_norm(x, 1 + w, 1e-6), (f(3, 8), f(8))),
    ],
    "Reduce": [
        (lambda x: x.sum(axis=1), (f(3, 4),)),
        (lambda x: x.sum(axis=(0, -1), keepdims=True), (f(3, 4, 2),)),
        (mx.sum, (f(3, 4),)),
        (lambda x: mx.prod(x, axis=1), (f(3, 4),)),
        (lambda x: mx.max(x, axis=0), (f(3, 4),)),
        (lambda x: mx.min(x, axis=(1, 2)), (f(3, 4, 2),)),
        (lambda x: mx.any(x, axis=1), (b(3, 4),)),
        (lambda x: mx.all(x, axis=0), (b(3, 4),)),
        (lambda x: mx.any(x, axis=0), (mx.array([[0.0, 0.25, 2], [0, 0, 0]]),)),
        (lambda x: mx.all(x), (i(4, low=-1, high=2),)),
        (lambda x: x.sum(axis=1), (i(3, 4),)),
        (lambda x: x.max(axis=1), (i(3, 4),)),
        (lambda x: x.sum(axis=1), (b(3, 4),)),
        (lambda x: x.max(axis=1), (b(3, 4),)),
        (lambda x: mx.prod(x, axis=1), (b(3, 2),)),
        (lambda x: mx.linalg.norm(x, axis=-1), (f(3, 4),)),
        (lambda x: mx.linalg.norm(x, ord=1, axis=0), (f(3, 4),)),
        (lambda x: mx.linalg.norm(x, ord=float("inf"), axis=1), (f(3, 4),)),
    ],
    "Remainder": [*binary(mx.remainder, low=0.5, high=4), *integers(mx.remainder)],
    "Reshape": [
        (lambda x: x.reshape(4, 3), (f(2, 6),)),
        (lambda x: x.reshape(-1), (i(2, 3),)),
        (lambda x: x.reshape(1, 2, 1, 3), (b(2, 3),)),
        (lambda x: x.reshape(()), (f(1, 1),)),
        (lambda x: mx.repeat(x, 2, axis=2), (f(1, 3, 2, 4, 2),)),
        (lambda x: mx.tile(x, (1, 2, 3, 1)), (f(2, 3, 2, 2),)),
        (lambda x: mx.tile(x, (2, 3)), (f(2, 3),)),
        (lambda x: mx.broadcast_to(x, (4, 2, 3)).reshape(8, 3), (f(2, 3),)),
    ],
    "RoPE": [
        (rope(8), (f(1, 2, 3, 8),)),
        (rope(8, traditional=True), (f(1, 2, 3, 8),)),
        (rope(4), (f(1, 2, 3, 8),)),
        (rope(4, traditional=True, offset=7), (f(2, 3, 8),)),
        (rope(8, scale=0.25, base=500.0, offset=3), (f(1, 2, 3, 8),)),
        (rope(8), (f(1, 2, 3, 8), mx.array([5]))),
        (rope(8, scale=0.5), (f(1, 2, 3, 8), mx.array(5))),
        (rope(8, traditional=True), (f(1, 2, 1, 8), mx.array([900]))),
        (rope(8, base=None, freqs=_STATIC_FREQS), (f(1, 2, 3, 8), mx.array([5]))),
        (rope(8, base=None, freqs=_STATIC_FREQS, traditional=True, offset=2), (f(1, 2, 3, 8),)),
    ],
    "Round": [(mx.round, (SPECIAL,)), (lambda x: mx.round(x, decimals=1), (u(4),))],
    "ScaledDotProductAttention": [
        (attend(), heads(2, 2, 3, 3)),
        (attend(scale=8**-0.5), heads(2, 2, 3, 5)),
        (attend(mask="causal"), heads(2, 2, 4, 4)),
        (attend(mask="causal"), heads(4, 2, 3, 7)),
        (attend(), heads(6, 2, 3, 5)),
        (attend(), (*heads(2, 2, 3, 5), shown(3, 5))),
        (attend(), (*heads(4, 2, 3, 5), shown(1, 1, 3, 5))),
        (attend(), (*heads(4, 2, 3, 5), shown(1, 4, 3, 5))),
        (attend(), (*heads(4, 2, 3, 5, batch=2), shown(2, 4, 3, 5))),
        (attend(), (*heads(4, 2, 3, 5, batch=2), shown(2, 1, 1, 5))),
        (attend(), (*heads(4, 2, 3, 5), shown(1, 4, 1, 5))),
        (attend(), (*heads(4, 4, 3, 5), f(3, 5))),
        (attend(), (*heads(4, 2, 3, 5), f(1, 4, 3, 5))),
        (attend(), (*heads(4, 1, 1, 5), shown(1, 5))),
        (lambda q, k, v: attend()(q, k, v, mx.tri(3, 5, 2, dtype=mx.bool_)), heads(4, 2, 3, 5)),
        (lambda q, k, v: attend()(q, k, v[..., :4]), heads(2, 2, 3, 5)),
        (sinks, (*heads(4, 2, 3, 3), f(4))),
        (sinks, (*heads(2, 2, 3, 5, batch=2), f(2))),
    ],
    "Scan": [
        (lambda x: mx.cumsum(x, axis=0), (f(3, 4),)),
        (lambda x: mx.cumsum(x, axis=1, reverse=True), (f(3, 4),)),
        (lambda x: mx.cumsum(x, axis=-1, inclusive=False), (f(3, 4),)),
        (lambda x: mx.cumsum(x, axis=1, reverse=True, inclusive=False), (f(2, 3, 4),)),
        (lambda x: mx.cumsum(x, axis=1), (i(2, 4),)),
    ],
    "Scatter": [
        (lambda x, a, v: x.at[a].add(v), (f(6, 4), i(3), f(3, 4))),
        (lambda x, a, v: x.at[:, a].add(v), (f(4, 6), mx.array([0, 3, 1]), f(4, 3))),
        (lambda x, a, v: x.at[a].multiply(v), (f(6, 4), mx.array([0, -1]), f(2, 4))),
        (lambda x, a, v: x.at[a].maximum(v), (f(6), i(3), f(3))),
        (lambda x, a, v: x.at[a].minimum(v), (f(6), i(3), f(3))),
        (lambda x, a, v: set_to(x, a, v), (f(6, 4), mx.array([4, 1]), f(2, 4))),
        (lambda x, a, v: set_to(x, (slice(None), slice(None), a), v), (f(2, 3, 6), i(1), f(1))),
        (lambda x, a, v: set_to(x, (a, a), v), (i(6, 6), mx.array([4, 1]), i(2))),
        (lambda x, a, v: set_to(x, a, v), (f(6, 4), mx.array(2), f(4))),
        (mx.diag, (f(4),)),
    ],
    "ScatterAxis": [
        (lambda x, a, v: mx.put_along_axis(x, a, v, axis=1), (f(3, 6), i(3, 1), f(3, 1))),
        (
            lambda x, a: mx.put_along_axis(x, a, mx.array(0.0), axis=0),
            (f(6, 2), mx.array([[1, 2], [-1, 3]])),
        ),
        (
            lambda x, a: mx.grad(lambda y: mx.take_along_axis(y, a, axis=1).sum())(x),
            (f(3, 6), i(3, 4)),
        ),
    ],
    "Select": [
        (lambda x: mx.where(x > 0, x, 0.0), (f(3, 4),)),
        (lambda x: mx.where(x > 0, 1.0, -1.0), (f(3, 4),)),
        (lambda c, x, y: mx.where(c, x, y), (b(3, 1), f(4), f(2, 1, 1))),
        (lambda c, x: mx.where(c, x, 7), (b(3), i(3))),
        (lambda c, x, y: mx.where(c, x, y), (b(3), b(3), b(1))),
        (lambda c, x, y: mx.where(c, x, y), (mx.array(True), f(3), f(3))),
        (mx.tril, (f(4, 4),)),
        (lambda x: mx.where(mx.isnan(x), 0, x), (f(3),)),
    ],
    "SiLU": [(nn.silu, (f(3, 4),)), (lambda x, y: nn.silu(x + 1) * y, (f(3, 4), f(4)))],
    "Sigmoid": [*unary(mx.sigmoid), (lambda x: nn.glu(x), (f(3, 4),))],
    "Sign": [(mx.sign, (SPECIAL,)), (mx.sign, (i(4, low=-2, high=2),))],
    "Sin": unary(mx.sin),
    "Sinh": unary(mx.sinh),
    "Slice": [
        (lambda x: x[1:3, ::2], (f(4, 5),)),
        (lambda x: x[::-1, 1:], (f(4, 5),)),
        (lambda x: x[5:1:-2], (f(6, 2),)),
        (lambda x: x[:, ::-3], (i(2, 7),)),
        (lambda x: x[..., 1:2], (f(2, 3, 4),)),
        (lambda x: x[-2:], (b(4, 2),)),
    ],
    "SliceUpdate": [
        (lambda x, v: set_to(x, slice(1, 3), v), (f(4, 5), f(2, 5))),
        (lambda x, v: set_to(x, (slice(None), 1), v), (f(4, 5), f(4))),
        (lambda x, v: set_to(x, (slice(None), slice(0, 5, 2)), v), (f(4, 5), f(4, 3))),
        (lambda x, v: set_to(x, slice(None, None, -2), v), (f(6, 5), f(3, 5))),
        (lambda x, v: set_to(x, slice(1, 3), v), (i(4), i(2))),
        (lambda x, v: x.at[1:3].add(v), (f(4, 5), f(2, 5))),
        (lambda x, v: x.at[:, 2:].multiply(v), (f(4, 5), f(4, 3))),
        (lambda x, v: x.at[1:3].maximum(v), (f(4, 5), f(2, 5))),
    ],
    "Softmax": [
        (lambda x: mx.softmax(x, axis=-1), (f(3, 5),)),
        (lambda x: mx.softmax(x, axis=-1, precise=True), (f(3, 5),)),
        (lambda x: mx.softmax(x, axis=-1), (100 * f(2, 2, 5),)),
    ],
    "Sort": [
        (lambda x: mx.sort(x, axis=0), (f(5, 3),)),
        (lambda x: mx.sort(x), (i(3, 5),)),
        (lambda x: mx.sort(mx.topk(x, 3, axis=1), axis=1), (f(3, 6),)),
        (lambda x: mx.median(x, axis=1), (f(3, 5),)),
        (lambda x: mx.sort(x), (b(5),)),
    ],
    "Split": [
        (lambda x: mx.split(x, [1, 3], axis=1), (f(2, 5),)),
        (lambda x: mx.split(x, 2), (i(4, 2),)),
        (lambda x: mx.split(x, 3, axis=-1)[1], (f(2, 2, 6),)),
    ],
    "Sqrt": [*unary(mx.sqrt, low=0.1), *unary(mx.rsqrt, low=0.1)],
    "Square": [*unary(mx.square), (mx.square, (i(3, low=-4),))],
    "Squeeze": [(lambda x: x.squeeze(1), (f(2, 1, 3),)), (lambda x: x.squeeze(), (f(1, 1),))],
    "Subtract": [
        *binary(mx.subtract),
        *integers(mx.subtract),
        module(nn.BatchNorm(3), f(2, 4, 3)),
    ],
    "Take": [
        (lambda n: _EMBEDDING[n], (i(2, 3),)),
        (lambda x, n: x[n], (f(6, 3), i(2, low=-6))),
        (lambda x, n: mx.take(x, n, axis=0), (i(6, 2, 2), i(2, 2))),
        module(nn.Embedding(7, 4), i(1, 5, dtype=mx.uint32)),
    ],
    "Tan": unary(mx.tan, low=-1, high=1),
    "Tanh": unary(mx.tanh),
    "Transpose": [
        (lambda x: x.T, (f(2, 3),)),
        (lambda x: x.transpose(2, 0, 3, 1), (i(2, 3, 4, 5),)),
        (lambda x: x.swapaxes(0, 1), (b(2, 3),)),
        (lambda x: mx.moveaxis(x, 0, 4), (f(2, 1, 3, 2, 2),)),
        (
            lambda x: x.reshape(1, 2, 3, 2, 2, 3).transpose(0, 1, 4, 2, 5, 3).reshape(2, 6, 6),
            (f(2, 6, 6),),
        ),
        (
            lambda x: x.reshape(2, 2, 3, 2, 2, 3).transpose(5, 3, 0, 4, 2, 1).reshape(6, 24),
            (f(2, 6, 12),),
        ),
    ],
    "Unflatten": [(lambda x: mx.unflatten(x, 1, (2, 3)), (f(2, 6),))],
    "UpsampleNearest": [
        module(nn.Upsample(2), f(1, 3, 4, 2)),
        module(nn.Upsample((3, 2)), f(2, 2, 3, 2)),
    ],
}
