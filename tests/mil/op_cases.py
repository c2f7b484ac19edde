"""What each operation gives, worked out by hand or by Python's own arithmetic, never by numpy.

Long because it is a table: an entry or more for each of the runtime's operations.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Case = tuple[dict[str, Any], Any]
"""(inputs, expected); expected is a tuple where there are several outputs."""

F = np.float32
INF = math.inf
XS = [-2.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.5]
UNIT = [-0.9, -0.5, 0.0, 0.25, 0.9]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def elementwise(xs: list[float], f: Callable[..., float], **others: Any) -> Case:
    """Apply f to each number, as a tensor of shape [1, n]."""
    return {"x": [xs], **others}, [[f(x) for x in xs]]


def pairs(f: Callable[[Any, Any], Any], xs: list[Any], ys: list[Any]) -> list[Case]:
    """A table of every x with every y, by broadcasting [n, 1] against [m]."""
    expected = [[f(x, y) for y in ys] for x in xs]
    return [({"x": [[x] for x in xs], "y": ys}, expected)]


def compare(f: Callable[[Any, Any], bool]) -> list[Case]:
    return pairs(f, [-1.0, 0.0, 2.0], [-1.0, 2.0]) + pairs(f, [1, 2, 3], [2])


def logical(f: Callable[[bool, bool], bool]) -> list[Case]:
    return pairs(f, [False, True], [False, True])


UNARY: dict[str, list[Case]] = {
    "abs": [elementwise(XS, abs), ({"x": [-3, 0, 4]}, [3, 0, 4])],
    "acos": [elementwise(UNIT, math.acos)],
    "asin": [elementwise(UNIT, math.asin)],
    "atan": [elementwise(XS, math.atan)],
    "atanh": [elementwise(UNIT, math.atanh)],
    "ceil": [elementwise(XS, math.ceil)],
    "cos": [elementwise(XS, math.cos)],
    "cosh": [elementwise(XS, math.cosh)],
    "erf": [elementwise([-6.0, -3.9, *XS, 1e-4, 3.0, 4.2], math.erf)],
    "exp": [elementwise(XS, math.exp)],
    "exp2": [elementwise(XS, lambda x: 2**x)],
    "floor": [elementwise(XS, math.floor)],
    "identity": [elementwise(XS, lambda x: x)],
    "logical_not": [({"x": [True, False]}, [False, True])],
    "round": [elementwise([-2.5, -1.5, -0.4, 0.5, 0.6, 1.5], round)],
    "sign": [elementwise(XS, lambda x: (x > 0) - (x < 0))],
    "sin": [elementwise(XS, math.sin)],
    "sinh": [elementwise(XS, math.sinh)],
    "sqrt": [elementwise([0.0, 2.0, 9.0], math.sqrt)],
    "square": [elementwise(XS, lambda x: x * x)],
    "tan": [elementwise(XS, math.tan)],
    "tanh": [elementwise(XS, math.tanh)],
    "clip": [elementwise(XS, lambda x: min(max(x, -0.7), 1.2), alpha=F(-0.7), beta=F(1.2))],
    "threshold": [elementwise(XS, lambda x: max(x, 0.7), alpha=F(0.7))],
    "inverse": [elementwise([0.5, 2.0], lambda x: 1 / (x + 0.5), epsilon=F(0.5))],
    "log": [
        elementwise([0.5, 2.0], math.log),
        elementwise([0.5, 2.0], lambda x: math.log(x + 1), epsilon=F(1)),
    ],
    "rsqrt": [
        elementwise([0.5, 4.0], lambda x: x**-0.5),
        elementwise([3.0], lambda x: 0.5, epsilon=F(1)),
    ],
    "cast": [
        ({"x": [-1.9, -0.5, 1.9, 3e9, math.nan], "dtype": "int32"}, [-1, 0, 1, 2147483647, 0]),
        ({"x": [-200.0, 130.7], "dtype": "int8"}, [-128, 127]),
        ({"x": [0.0, 0.5, -1.0], "dtype": "bool"}, [False, True, True]),
        ({"x": [True, False], "dtype": "fp16"}, [1.0, 0.0]),
        ({"x": [3, -4], "dtype": "fp32"}, [3.0, -4.0]),
    ],
}

BINARY: dict[str, list[Case]] = {
    "add": pairs(lambda x, y: x + y, [1.5, -2.0], [3.0, 0.25])
    + pairs(lambda x, y: x + y, [1], [2]),
    "sub": pairs(lambda x, y: x - y, [1.5, -2.0], [3.0, 0.25]),
    "mul": pairs(lambda x, y: x * y, [1.5, -2.0], [3.0, 0.25]),
    "real_div": [
        *pairs(lambda x, y: x / y, [1.5, -2.0], [3.0, 0.25]),
        *pairs(lambda x, y: int(x / y), [7, -7], [2, -3]),
    ],
    "floor_div": [
        *pairs(lambda x, y: x // y, [7.5, -7.5], [2.0, -2.0]),
        *pairs(lambda x, y: x // y, [7, -7], [2, -3]),
    ],
    "mod": [
        *pairs(lambda x, y: x % y, [7.5, -7.5], [2.0, -2.0]),
        *pairs(lambda x, y: x % y, [7, -7], [2, -3]),
    ],
    "pow": pairs(lambda x, y: x**y, [0.5, 2.0], [-1.0, 0.0, 3.0]),
    "maximum": pairs(max, [-1.0, 2.0], [0.0, 3.0]),
    "minimum": pairs(min, [-1.0, 2.0], [0.0, 3.0]),
    "equal": compare(lambda x, y: x == y),
    "not_equal": compare(lambda x, y: x != y),
    "greater": compare(lambda x, y: x > y),
    "greater_equal": compare(lambda x, y: x >= y),
    "less": compare(lambda x, y: x < y),
    "less_equal": compare(lambda x, y: x <= y),
    "logical_and": logical(lambda x, y: x and y),
    "logical_or": logical(lambda x, y: x or y),
    "logical_xor": logical(lambda x, y: x != y),
    "select": [({"cond": [[True], [False]], "a": [1.0, 2.0], "b": F(9)}, [[1, 2], [9, 9]])],
}

ACTIVATION: dict[str, list[Case]] = {
    "sigmoid": [elementwise(XS, sigmoid), ({"x": [-200.0, 200.0]}, [0, 1])],
    "silu": [elementwise(XS, lambda x: x * sigmoid(x))],
    "relu": [elementwise(XS, lambda x: max(x, 0))],
    "relu6": [elementwise([-1.0, 3.0, 7.0], lambda x: min(max(x, 0), 6))],
    "clamped_relu": [
        elementwise(XS, lambda x: min(x if x >= 0 else 0.5 * x, 1), alpha=F(0.5), beta=F(1))
    ],
    "leaky_relu": [elementwise(XS, lambda x: x if x >= 0 else 0.5 * x, alpha=F(0.5))],
    "thresholded_relu": [elementwise(XS, lambda x: x if x >= 1 else 0, alpha=F(1))],
    "prelu": [
        ({"x": [[[-1.0, 2.0], [-1.0, 2.0]]], "alpha": [0.5, 0.25]}, [[[-0.5, 2], [-0.25, 2]]])
    ],
    "elu": [elementwise(XS, lambda x: x if x >= 0 else 0.5 * (math.exp(x) - 1), alpha=F(0.5))],
    "gelu": [
        elementwise(XS, lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2),
        elementwise(XS, lambda x: x * sigmoid(1.702 * x), mode="SIGMOID_APPROXIMATION"),
        elementwise(
            XS,
            lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
            mode="TANH_APPROXIMATION",
        ),
    ],
    "linear_activation": [elementwise(XS, lambda x: 2 * x + 3, alpha=F(2), beta=F(3))],
    "scaled_tanh": [elementwise(XS, lambda x: 2 * math.tanh(3 * x), alpha=F(2), beta=F(3))],
    "sigmoid_hard": [
        elementwise(XS, lambda x: min(max(0.25 * x + 0.5, 0), 1), alpha=F(0.25), beta=F(0.5))
    ],
    "softplus": [
        elementwise([*XS, 30.0], lambda x: math.log1p(math.exp(x))),
        ({"x": [200.0]}, [200.0]),
    ],
    "softplus_parametric": [
        (
            {"x": [[[1.0], [1.0]]], "alpha": [2.0, 3.0], "beta": [1.0, -1.0]},
            [[[2 * math.log1p(math.e)], [3 * math.log1p(1 / math.e)]]],
        )
    ],
    "softsign": [elementwise(XS, lambda x: x / (1 + abs(x)))],
    "softmax": [
        ({"x": [[0.0, math.log(3)], [500.0, 500.0]]}, [[0.25, 0.75], [0.5, 0.5]]),
        ({"x": [[0.0, 1.0], [math.log(3), 1.0]], "axis": 0}, [[0.25, 0.5], [0.75, 0.5]]),
    ],
}

LINEAR: dict[str, list[Case]] = {
    "linear": [
        ({"x": [[[1.0, 2.0]]], "weight": [[1.0, 0.0], [3.0, 4.0], [0.0, -1.0]]}, [[[1, 11, -2]]]),
        ({"x": [1.0, 2.0], "weight": [[3.0, 4.0]], "bias": [0.5]}, [11.5]),
    ],
    "matmul": [
        ({"x": [[1.0, 2.0]], "y": [[3.0], [4.0]]}, [[11]]),
        ({"x": [[1.0], [2.0]], "y": [[3.0, 4.0]], "transpose_x": True, "transpose_y": True},
         [[11]]),
        ({"x": [[[1.0, 2.0]], [[3.0, 4.0]]], "y": [[1.0], [1.0]]}, [[[3]], [[7]]]),
        ({"x": [1.0, 2.0], "y": [3.0, 4.0]}, 11),
    ],
    "einsum": [
        ({"values": ([[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]), "equation": "ij,kj->ki"},
         [[11], [17]]),
        ({"values": ([[1.0, 2.0]], [[3.0, 4.0]]), "equation": "ij,kl->jl"}, [[3, 4], [6, 8]]),
        ({"values": ([[[1.0, 2.0]], [[3.0, 4.0]]], [[[1.0], [1.0]]]), "equation": "bij,bjk->bik"},
         [[[3]], [[7]]]),
        ({"values": ([[1.0, 2.0], [3.0, 4.0]],), "equation": "ii->i"}, [1, 4]),
    ],
    "scaled_dot_product_attention": [
        (
            {
                "query": [[[math.log(3) * 2, 0.0, 0.0, 0.0]]],
                "key": [[[0.0] * 4, [1.0, 0.0, 0.0, 0.0]]],
                "value": [[[0.0], [8.0]]],
            },
            [[[6]]],
        ),
        (
            {
                "query": [[[1.0]]], "key": [[[5.0], [2.0], [2.0]]],
                "value": [[[1.0], [4.0], [6.0]]],
                "attn_mask": [[False, True, True]],
            },
            [[[5]]],
        ),
        (
            {
                "query": [[[0.0]]], "key": [[[1.0], [1.0]]], "value": [[[0.0], [4.0]]],
                "attn_mask": [[0.0, math.log(3)]],
            },
            [[[3]]],
        ),
    ],
}  # fmt: skip

NORMALIZATION: dict[str, list[Case]] = {
    "layer_norm": [
        (
            {"x": [[1.0, 3.0], [0.0, 0.0]], "axes": [1], "gamma": [2.0, 3.0], "beta": [0.5, 0.0],
             "epsilon": F(0)},
            [[-1.5, 3], [math.nan, math.nan]],
        ),
        ({"x": [[0.0, 2.0], [0.0, 2.0]], "epsilon": F(3)}, [[-0.5, 0.5], [-0.5, 0.5]]),
    ],
    "instance_norm": [
        ({"x": [[[1.0, 3.0], [0.0, 4.0]]], "gamma": [1.0, 2.0], "beta": [0.0, 1.0],
          "epsilon": F(0)}, [[[-1, 1], [-1, 3]]]),
    ],
    "batch_norm": [
        (
            {"x": [[[1.0, 2.0], [3.0, 4.0]]], "mean": [1.0, 3.0], "variance": [3.0, 0.0],
             "gamma": [2.0, 1.0], "beta": [0.0, 5.0], "epsilon": F(1)},
            [[[0, 1], [5, 6]]],
        ),
        ({"x": [[4.0]], "mean": [2.0], "variance": [4.0], "epsilon": F(0)}, [[1]]),
    ],
    "l2_norm": [({"x": [[[3.0, 4.0]], [[0.0, 0.0]]], "epsilon": F(0)}, [[[0.6, 0.8]], [[0, 0]]])],
    "local_response_norm": [
        ({"x": [[[1.0], [2.0], [3.0]]], "size": 2, "alpha": F(2), "beta": F(1), "k": F(1)},
         [[[1 / 2], [2 / 6], [3 / 14]]]),
        ({"x": [[[1.0], [2.0], [3.0]]], "size": 3, "alpha": F(3), "beta": F(1), "k": F(1)},
         [[[1 / 6], [2 / 15], [3 / 14]]]),
    ],
}  # fmt: skip

M = [[1.0, 2.0, 3.0], [-4.0, 5.0, 6.0]]
REDUCTION: dict[str, list[Case]] = {
    "reduce_l1_norm": [({"x": M, "axes": [1]}, [6, 15])],
    "reduce_l2_norm": [({"x": [[3.0, 4.0]], "axes": [1], "keep_dims": True}, [[5]])],
    "reduce_log_sum": [({"x": [[1.0, 2.0]], "axes": [-1]}, [math.log(3)])],
    "reduce_log_sum_exp": [
        ({"x": [[500.0, 500.0], [-INF, 0.0]], "axes": [1]}, [500 + math.log(2), 0]),
        ({"x": [[0.0], [0.0]], "axes": [0], "keep_dims": True}, [[math.log(2)]]),
    ],
    "reduce_max": [({"x": M, "axes": [0]}, [1, 5, 6]), ({"x": M}, 6)],
    "reduce_mean": [({"x": M, "axes": [0, 1], "keep_dims": True}, [[13 / 6]])],
    "reduce_min": [({"x": M, "axes": [1], "keep_dims": True}, [[1], [-4]])],
    "reduce_prod": [({"x": M, "axes": [1]}, [6, -120])],
    "reduce_sum": [({"x": M, "axes": [-2]}, [-3, 7, 9]), ({"x": [[1, 2]], "axes": [1]}, [3])],
    "reduce_sum_square": [({"x": M, "axes": [1]}, [14, 77])],
    "reduce_argmax": [
        ({"x": M}, [2, 2]),
        ({"x": M, "axis": 0, "keep_dims": True}, [[0, 1, 1]]),
        ({"x": [1.0, 7.0, 7.0]}, 1),
    ],
    "reduce_argmin": [({"x": M, "axis": 0}, [1, 0, 0])],
}

X3 = [[[0, 1], [2, 3], [4, 5]]]
SHAPE: dict[str, list[Case]] = {
    "reshape": [
        ({"x": X3, "shape": [3, 2]}, [[0, 1], [2, 3], [4, 5]]),
        ({"x": X3, "shape": [0, -1]}, [[0, 1, 2, 3, 4, 5]]),
    ],
    "reshape_like": [
        (
            {"x": [0, 1, 2, 3], "ref_tensors": ([[0.0, 0.0, 0.0]] * 2, [0.0] * 2), "begins": [0, 0],
             "ends": [1, 1], "end_masks": [False, True]},
            [[0, 1], [2, 3]],
        )
    ],
    "flatten2d": [
        ({"x": X3, "axis": 2}, [[0, 1], [2, 3], [4, 5]]),
        ({"x": X3}, [[0, 1, 2, 3, 4, 5]]),
    ],
    "transpose": [({"x": X3, "perm": [2, 0, 1]}, [[[0, 2, 4]], [[1, 3, 5]]])],
    "expand_dims": [({"x": [1, 2], "axes": [0, -1]}, [[[1], [2]]])],
    "squeeze": [({"x": [[[1], [2]]], "axes": [0]}, [[1], [2]]), ({"x": [[[1], [2]]]}, [1, 2])],
    "concat": [
        ({"values": ([[1, 2]], [[3, 4]]), "axis": 0}, [[1, 2], [3, 4]]),
        ({"values": ([[1, 2]], [[3, 4]]), "axis": -1}, [[1, 2, 3, 4]]),
        ({"values": ([[1, 2]], [[3, 4]]), "axis": 1, "interleave": True}, [[1, 3, 2, 4]]),
    ],
    "stack": [({"values": ([1, 2], [3, 4]), "axis": 1}, [[1, 3], [2, 4]])],
    "split": [
        ({"x": [1, 2, 3, 4], "num_splits": 2, "axis": 0}, ([1, 2], [3, 4])),
        ({"x": [[1, 2, 3]], "split_sizes": [1, 2], "axis": 1}, ([[1]], [[2, 3]])),
    ],
    "tile": [({"x": [[1, 2]], "reps": [2, 2]}, [[1, 2, 1, 2], [1, 2, 1, 2]])],
    "reverse": [
        ({"x": [[1, 2], [3, 4]], "axes": [1]}, [[2, 1], [4, 3]]),
        ({"x": [[1, 2], [3, 4]]}, [[4, 3], [2, 1]]),
    ],
    "reverse_sequence": [
        ({"x": [[1, 2, 3], [4, 5, 6]], "lengths": [2, 3], "seq_axis": 1}, [[2, 1, 3], [6, 5, 4]])
    ],
    "shape": [({"x": X3}, [1, 3, 2])],
    "depth_to_space": [
        ({"x": [[[[c]] for c in range(8)]], "block_size": 2},
         [[[[0, 2], [4, 6]], [[1, 3], [5, 7]]]])
    ],
    "space_to_depth": [
        ({"x": [[[[0, 2], [4, 6]], [[1, 3], [5, 7]]]], "block_size": 2},
         [[[[c]] for c in range(8)]])
    ],
    "pixel_shuffle": [
        ({"x": [[[[c]] for c in range(8)]], "upscale_factor": 2},
         [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]])
    ],
    "pixel_unshuffle": [
        ({"x": [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]], "downscale_factor": 2},
         [[[[c]] for c in range(8)]])
    ],
    "space_to_batch": [
        ({"x": [[[[1, 2], [3, 4]]]], "block_shape": [2, 2], "paddings": [[0, 0], [0, 0]]},
         [[[[1]]], [[[2]]], [[[3]]], [[[4]]]]),
        ({"x": [[[[1, 2]]]], "block_shape": [1, 2], "paddings": [[1, 0], [0, 2]]},
         [[[[0, 0], [1, 0]]], [[[0, 0], [2, 0]]]]),
    ],
    "batch_to_space": [
        ({"x": [[[[1]]], [[[2]]], [[[3]]], [[[4]]]], "block_shape": [2, 2],
          "crops": [[0, 0], [0, 1]]}, [[[[1], [3]]]]),
    ],
    "sliding_windows": [
        ({"x": [[1, 2, 3, 4, 5]], "axis": 1, "size": 2, "stride": 2}, [[[1, 2], [3, 4]]]),
    ],
}  # fmt: skip

V = [0, 1, 2, 3, 4]
SLICING: dict[str, list[Case]] = {
    "slice_by_index": [
        ({"x": V, "begin": [1], "end": [4]}, [1, 2, 3]),
        ({"x": V, "begin": [-3], "end": [-1]}, [2, 3]),
        ({"x": V, "begin": [4], "end": [0], "stride": [-2]}, [4, 2]),
        ({"x": V, "begin": [4], "end": [9], "stride": [-2], "end_mask": [True]}, [4, 2, 0]),
        ({"x": V, "begin": [3], "end": [2], "begin_mask": [True]}, [0, 1]),
        ({"x": [V, V], "begin": [-1, 2], "end": [0, 4], "squeeze_mask": [True, False]}, [2, 3]),
    ],
    "slice_by_size": [
        ({"x": V, "begin": [1], "size": [2]}, [1, 2]),
        ({"x": [V], "begin": [0, -2], "size": [1, -1]}, [[3, 4]]),
    ],
    "slice_update": [
        ({"x": V, "update": [7, 8], "begin": [1], "end": [3]}, [0, 7, 8, 3, 4]),
        ({"x": V, "update": [7, 8, 9], "begin": [0], "end": [0], "stride": [2],
          "begin_mask": [True], "end_mask": [True]}, [7, 1, 8, 3, 9]),
        ({"x": [V], "update": [7], "begin": [0, 1], "end": [1, 2], "squeeze_mask": [True, False]},
         [[0, 7, 2, 3, 4]]),
    ],
    "crop": [
        ({"x": [[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]], "crop_height": [1, 0], "crop_width": [0, 2]},
         [[[[4], [7]]]])
    ],
}  # fmt: skip

TENSOR: dict[str, list[Case]] = {
    "fill": [({"shape": [2, 1], "value": F(3)}, [[3.0], [3.0]]), ({"shape": [1]}, [0.0])],
    "fill_like": [({"ref_tensor": [[1, 2]], "value": F(3)}, [[3.0, 3.0]])],
    "range_1d": [
        ({"end": np.int32(7), "start": np.int32(1), "step": np.int32(3)}, [1, 4]),
        ({"end": F(0), "start": F(1), "step": F(-0.5)}, [1.0, 0.5]),
    ],
    "one_hot": [
        ({"indices": [1, 3, -1], "one_hot_vector_size": 3}, [[0, 1, 0], [0, 0, 0], [0, 0, 0]]),
        ({"indices": [0], "one_hot_vector_size": 2, "axis": 0, "on_value": F(5), "off_value": F(2)},
         [[5.0], [2.0]]),
    ],
    "non_zero": [({"x": [[0, 3], [4, 0]]}, [[0, 1], [1, 0]])],
    "pad": [
        ({"x": [[1, 2]], "pad": [1, 0, 0, 2], "constant_val": np.int32(9)},
         [[9] * 4, [1, 2, 9, 9]]),
        ({"x": [[1, 2, 3]], "pad": [2, 1], "mode": "reflect"}, [[3, 2, 1, 2, 3, 2]]),
        ({"x": [[1, 2, 3]], "pad": [2, 1], "mode": "replicate"}, [[1, 1, 1, 2, 3, 3]]),
        ({"x": [1, 2, 3], "pad": [-1, 1]}, [2, 3, 0]),
    ],
    "band_part": [
        ({"x": [[1, 2, 3]] * 3, "lower": 1, "upper": 0}, [[1, 0, 0], [1, 2, 0], [0, 2, 3]]),
        ({"x": [[1, 2, 3]] * 3, "upper": 1}, [[1, 2, 0], [1, 2, 3], [1, 2, 3]]),
    ],
    "cumsum": [
        ({"x": [[1, 2], [3, 4]]}, [[1, 2], [4, 6]]),
        ({"x": [1, 2, 3], "exclusive": True}, [0, 1, 3]),
        ({"x": [1, 2, 3], "reverse": True, "exclusive": True}, [5, 3, 0]),
    ],
    "argsort": [
        ({"x": [2.0, 3.0, 1.0, 3.0]}, [1, 3, 0, 2]),
        ({"x": [[2.0], [1.0]], "axis": 0, "ascending": True}, [[1], [0]]),
    ],
    "topk": [
        ({"x": [2.0, 3.0, 1.0, 3.0], "k": 3}, ([3.0, 3.0, 2.0], [1, 3, 0])),
        ({"x": [[2.0, 0.0], [1.0, 5.0]], "axis": 0, "ascending": True}, ([[1.0, 0.0]], [[1, 0]])),
        ({"x": [2.0, 3.0], "k": -1, "return_indices": False}, [3.0, 2.0]),
    ],
}  # fmt: skip

D = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
SCATTER_GATHER: dict[str, list[Case]] = {
    "gather": [
        ({"x": D, "indices": [2, -3]}, [[5, 6], [1, 2]]),
        ({"x": D, "indices": np.int32(1), "axis": 1}, [2, 4, 6]),
        ({"x": D, "indices": [[1, 0]], "axis": -1}, [[[2, 1]], [[4, 3]], [[6, 5]]]),
        ({"x": D, "indices": [[1], [0], [1]], "axis": 1, "batch_dims": 1}, [[2], [3], [6]]),
    ],
    "gather_along_axis": [({"x": D, "indices": [[2, 0], [-1, 1]]}, [[5, 2], [5, 4]])],
    "gather_nd": [
        ({"x": D, "indices": [[2, 0], [0, -1]]}, [5, 2]),
        ({"x": D, "indices": [[[1]]]}, [[[3, 4]]]),
        ({"x": D, "indices": [[[1]], [[0]], [[1]]], "batch_dims": 1}, [[2], [3], [6]]),
    ],
    "scatter": [
        ({"data": D, "indices": [0, 0], "updates": [[1.0, 1.0], [2.0, 2.0]]},
         [[4, 5], [3, 4], [5, 6]]),
        ({"data": D, "indices": [-1], "updates": [[7.0], [8.0], [9.0]], "axis": 1,
          "mode": "update"}, [[1, 7], [3, 8], [5, 9]]),
    ],
    "scatter_along_axis": [
        ({"data": D, "indices": [[2, 0]], "updates": [[9.0, 8.0]], "mode": "update"},
         [[1, 8], [3, 4], [9, 6]]),
        ({"data": D, "indices": [[0], [1], [1]], "updates": [[10.0]] * 3, "axis": 1, "mode": "mul"},
         [[10, 2], [3, 40], [5, 60]]),
        ({"data": D, "indices": [[2, 0]], "updates": [[9.0, 1.5]], "mode": "max"},
         [[1, 2], [3, 4], [9, 6]]),
    ],
    "scatter_nd": [
        ({"data": D, "indices": [[1, 0], [1, 0]], "updates": [1.0, 2.0]},
         [[1, 2], [6, 4], [5, 6]]),
        ({"data": D, "indices": [[2]], "updates": [[1.0, 2.0]], "mode": "sub"},
         [[1, 2], [3, 4], [4, 4]]),
        ({"data": D, "indices": [[2]], "updates": [[2.0, 3.0]], "mode": "div"},
         [[1, 2], [3, 4], [2.5, 2]]),
        ({"data": D, "indices": [[2]], "updates": [[1.0, 9.0]], "mode": "min"},
         [[1, 2], [3, 4], [1, 6]]),
    ],
}  # fmt: skip


def u8(*values: int) -> np.ndarray:
    return np.array(values, np.uint8)


def half(values: Any) -> np.ndarray:
    return np.array(values, np.float16)


COMPRESSION: dict[str, list[Case]] = {
    "constexpr_blockwise_shift_scale": [
        (
            {"data": np.array([[1, 2, 3, 4]], np.int8), "scale": half([[0.5, 2.0]]),
             "offset": np.array([[1, 0]], np.int8)},
            [[0, 0.5, 6, 8]],
        ),
        ({"data": np.array([[255], [1]], np.uint8), "scale": half([[2.0], [1.0]])}, [[510], [1]]),
    ],
    "constexpr_affine_dequantize": [
        (
            {"quantized_data": np.array([[1, 2], [3, 4]], np.int8), "axis": 1,
             "scale": half([1.0, 10.0]), "zero_point": np.array([1, 0], np.int8)},
            [[0, 20], [2, 40]],
        ),
        ({"quantized_data": u8(0, 255), "axis": 0, "scale": half(2.0), "zero_point": np.uint8(1)},
         [-2, 508]),
    ],
    "dequantize": [
        ({"input": np.array([[1, 2]], np.int8), "scale": half([3.0, 4.0]), "axis": -1}, [[3, 8]])
    ],
    "quantize": [
        ({"input": [0.24, 0.25, 0.75, 99.0, -99.0], "scale": F(0.5), "output_dtype": "int8"},
         [0, 0, 2, 127, -128]),
        ({"input": [[1.0, 1.0]], "scale": half([1.0, 0.5]), "axis": 1, "output_dtype": "uint8",
          "zero_point": u8(3, 4)}, [[4, 6]]),
    ],
    "constexpr_lut_to_dense": [
        ({"indices": u8(0b11100100), "lut": half([0.0, 1.0, 2.0, 3.0]), "shape": [2, 2]},
         [[0, 1], [2, 3]]),
        (
            {"indices": np.array([[2, 3], [3, 0], [1, 0], [3, 0], [2, 1], [0, 3]], np.uint8),
             "lut": half([1.0, 5.0, 9.0, 13.0, 2.0, 10.0, 18.0, 26.0]).reshape(2, 1, 4, 1)},
            [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]],
        ),
        (
            {"indices": u8(0, 1), "lut": half([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape(1, 2, 3),
             "vector_axis": 0},
            [1, 2, 3, 4, 5, 6],
        ),
        (
            {"indices": np.array([[0, 1]], np.uint8), "vector_axis": 0,
             "lut": half([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2)},
            [[1, 3], [2, 4]],
        ),
    ],
    "constexpr_sparse_to_dense": [
        ({"nonzero_data": half([3.0, 4.0]), "mask": np.array([[0, 1], [1, 0]], np.uint8)},
         [[0, 3], [4, 0]]),
        ({"nonzero_data": half([3.0, 4.0]), "mask": u8(0b0110), "shape": [2, 2]}, [[0, 3], [4, 0]]),
    ],
    "constexpr_lut_to_sparse": [
        (
            {"indices_mask": np.array([[0, 1], [1, 0]], np.uint8), "indices_nonzero_data": u8(1, 0),
             "lut": half([7.0, 8.0]).reshape(1, 1, 2, 1)},
            ([[0, 1], [1, 0]], [8, 7]),
        ),
        (
            {"indices_mask": np.array([[0, 1]], np.uint8), "indices_nonzero_data": u8(1),
             "lut": half([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2), "vector_axis": 0},
            ([[0, 1], [0, 1]], [3, 4]),
        ),
    ],
    "constexpr_sparse_blockwise_shift_scale": [
        (
            {"data_mask": np.array([[1, 0], [1, 1]], np.uint8),
             "nonzero_data": np.array([10, 4, 5], np.int8), "scale": half([[0.5, 2.0]]),
             "offset": np.array([[2, 1]], np.int8)},
            ([[1, 0], [1, 1]], [4, 1, 8]),
        )
    ],
    "constexpr_cast": [({"source_val": half([1.5]), "output_dtype": "fp32"}, [1.5])],
}  # fmt: skip

ROW = [[[1.0, 2.0, 3.0, 4.0]]]
CONVOLUTION: dict[str, list[Case]] = {
    "conv": [
        ({"x": ROW, "weight": [[[1.0, 10.0]]]}, [[[21, 32, 43]]]),
        ({"x": ROW, "weight": [[[1.0, 10.0]]], "bias": [0.5], "strides": [2]}, [[[21.5, 43.5]]]),
        ({"x": ROW, "weight": [[[1.0, 10.0]]], "dilations": [3]}, [[[41]]]),
        ({"x": ROW, "weight": [[[1.0, 10.0]]], "pad_type": "custom", "pad": [1, 0]},
         [[[10, 21, 32, 43]]]),
        ({"x": ROW, "weight": [[[1.0, 10.0]]], "pad_type": "same"}, [[[21, 32, 43, 4]]]),
        ({"x": ROW, "weight": [[[1.0, 10.0]]], "pad_type": "same_lower"}, [[[10, 21, 32, 43]]]),
        ({"x": [[[1.0], [2.0]]], "weight": [[[3.0]], [[4.0]], [[5.0]], [[6.0]]], "groups": 2},
         [[[3], [4], [10], [12]]]),
        ({"x": [[[1.0], [2.0], [3.0], [4.0]]], "weight": [[[1.0], [10.0]], [[1.0], [10.0]]],
          "groups": 2}, [[[21], [43]]]),
        ({"x": [[[[1.0, 2.0], [3.0, 4.0]]]], "weight": [[[[1.0, 10.0], [100.0, 1000.0]]]]},
         [[[[4321]]]]),
    ],
    "conv_transpose": [
        ({"x": [[[1.0, 2.0]]], "weight": [[[1.0, 10.0, 100.0]]], "strides": [2],
          "pad_type": "custom", "pad": [0, 2]}, [[[1, 10, 102]]]),
        ({"x": [[[1.0, 2.0]]], "weight": [[[1.0, 10.0, 100.0]]]}, [[[1, 12, 120, 200]]]),
        ({"x": [[[1.0, 2.0]]], "weight": [[[1.0, 10.0, 100.0]]], "strides": [2]},
         [[[1, 10, 102, 20, 200]]]),
        ({"x": [[[1.0, 2.0]]], "weight": [[[1.0, 10.0, 100.0]]], "strides": [2],
          "pad_type": "custom", "pad": [1, 1]}, [[[10, 102, 20]]]),
        ({"x": [[[1.0, 2.0]]], "weight": [[[1.0, 10.0, 100.0]]], "strides": [2],
          "pad_type": "custom", "pad": [1, 1], "output_shape": [1, 1, 5], "bias": [0.5]},
         [[[10.5, 102.5, 20.5, 200.5, 0.5]]]),
        ({"x": [[[1.0, 2.0]]], "weight": [[[1.0, 10.0, 100.0]]], "strides": [2],
          "pad_type": "same"}, [[[1, 10, 102, 20]]]),
        ({"x": [[[1.0], [2.0]]], "weight": [[[1.0], [10.0]], [[1.0], [10.0]]], "groups": 2},
         [[[1], [10], [2], [20]]]),
    ],
    "max_pool": [
        ({"x": [[[-1.0, -2.0, -3.0]]], "kernel_sizes": [2], "pad_type": "custom", "pad": [1, 1]},
         [[[-1, -1, -2, -3]]]),
        ({"x": ROW, "kernel_sizes": [3], "strides": [2], "pad_type": "valid", "ceil_mode": True},
         [[[3, 4]]]),
    ],
    "avg_pool": [
        ({"x": ROW, "kernel_sizes": [2], "pad_type": "custom", "pad": [1, 1]},
         [[[0.5, 1.5, 2.5, 3.5, 2]]]),
        ({"x": ROW, "kernel_sizes": [2], "pad_type": "custom", "pad": [1, 1],
          "exclude_padding_from_average": True}, [[[1, 1.5, 2.5, 3.5, 4]]]),
        ({"x": ROW, "kernel_sizes": [3], "strides": [2], "pad_type": "valid", "ceil_mode": True},
         [[[2, 3.5]]]),
        ({"x": ROW, "kernel_sizes": [3], "strides": [2], "pad_type": "same"}, [[[2, 7 / 3]]]),
    ],
    "l2_pool": [({"x": [[[3.0, 4.0, 0.0]]], "kernel_sizes": [2], "pad_type": "valid"}, [[[5, 4]]])],
}  # fmt: skip

PAIR = [[[[0.0, 1.0]]]]


def grid(mode: str, n: int, expected: list[float]) -> Case:
    """The worked examples of MIL's own documentation: [0, 1] in n steps."""
    inputs = {"x": PAIR, "target_size_height": 1, "target_size_width": n, "sampling_mode": mode}
    return inputs, [[[expected]]]


POINTS = {"coordinates_mode": "unnormalized", "align_corners": True, "padding_value": F(9)}
IMAGE: dict[str, list[Case]] = {
    "upsample_nearest_neighbor": [
        ({"x": PAIR, "scale_factor_height": 2, "scale_factor_width": F(1.5)}, [[[[0, 0, 1]] * 2]])
    ],
    "resize_nearest_neighbor": [
        ({"x": PAIR, "target_size_height": 1, "target_size_width": 4}, [[[[0, 0, 1, 1]]]])
    ],
    "upsample_bilinear": [
        ({"x": PAIR, "scale_factor_width": F(2.5), "align_corners": False},
         [[[[0, 0.1, 0.5, 0.9, 1]]]]),
        ({"x": PAIR, "scale_factor_width": F(2.5)}, [[[[0, 0.25, 0.5, 0.75, 1]]]]),
        ({"x": PAIR, "scale_factor_width": F(2.5), "align_corners": False,
          "half_pixel_centers": False}, [[[[0, 0.4, 0.8, 1, 1]]]]),
    ],
    "resize_bilinear": [
        grid("UNALIGN_CORNERS", 5, [0, 0.1, 0.5, 0.9, 1]),
        grid("STRICT_ALIGN_CORNERS", 5, [0, 0.25, 0.5, 0.75, 1]),
        grid("DEFAULT", 5, [0, 0.4, 0.8, 1, 1]),
        grid("OFFSET_CORNERS", 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
        grid("ALIGN_CORNERS", 1, [0.5]),
        grid("STRICT_ALIGN_CORNERS", 1, [0]),
    ],
    "resize": [
        ({"x": PAIR, "shape": [9, 0, 6], "resized_dims": 2, "sampling_mode": "DEFAULT"},
         [[[[0, 1 / 3, 2 / 3, 1, 1, 1]]]]),
        ({"x": [[1, 2]], "shape": [4], "resized_dims": 1, "interpolation_mode": "NEAREST_NEIGHBOR"},
         [[1, 1, 2, 2]]),
    ],
    "resample": [
        ({"x": PAIR, "coordinates": [[[[0.25, 0.0], [3.0, 0.0], [0.5, 0.5]]]],
          "sampling_mode": "bilinear", "padding_mode": "constant", **POINTS},
         [[[[0.25, 9, 4.75]]]]),
        ({"x": PAIR, "coordinates": [[[[3.0, 0.0], [-1.0, 0.0]]]], "sampling_mode": "nearest",
          "padding_mode": "border", **POINTS}, [[[[1, 0]]]]),
        ({"x": [[[[0.0, 1.0, 2.0]]]], "coordinates": [[[[3.0, 0.0], [-1.0, 0.0]]]],
          "sampling_mode": "bilinear", "padding_mode": "reflection", **POINTS}, [[[[1, 1]]]]),
        ({"x": [[[[0.0, 1.0, 2.0]]]], "coordinates": [[[[3.0, 0.0], [-1.0, 0.0]]]],
          "sampling_mode": "bilinear", "padding_mode": "symmetric", **POINTS}, [[[[2, 0]]]]),
        ({"x": PAIR, "coordinates": [[[[0.5, 0.5], [0.75, 0.5]]]], "sampling_mode": "bilinear",
          "padding_mode": "border", **POINTS, "coordinates_mode": "normalized_zero_to_one",
          "align_corners": False}, [[[[0.5, 1]]]]),
        ({"x": PAIR, "coordinates": [[[[0.0, 0.0], [1.0, 0.0]]]], "sampling_mode": "bilinear",
          "padding_mode": "border", **POINTS, "coordinates_mode": "normalized_minus_one_to_one"},
         [[[[0.5, 1]]]]),
    ],
    "affine": [
        ({"x": [[[[1.0, 2.0], [3.0, 4.0]]]], "transform_matrix": [[-1.0, 0.0, 0.0, 0.0, 1.0, 0.0]],
          "output_height": 2, "output_width": 2, "sampling_mode": "bilinear",
          "padding_mode": "constant", **POINTS,
          "coordinates_mode": "normalized_minus_one_to_one"}, [[[[2, 1], [4, 3]]]]),
    ],
}  # fmt: skip

NEAR = [[[0.0, 0.0, 2.0, 2.0], [0.5, 0.0, 2.0, 2.0], [5.0, 5.0, 2.0, 2.0]]]
FOUR = [[[[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]]]
DETECTION: dict[str, list[Case]] = {
    "non_maximum_suppression": [
        # The first two overlap by 3 of 5.
        (
            {"boxes": NEAR, "scores": [[[0.1, 0.8], [0.9, 0.0], [0.3, 0.2]]],
             "iou_threshold": F(0.5), "max_boxes": 3, "score_threshold": F(0.2)},
            ([[NEAR[0][1], NEAR[0][2], [0] * 4]], [[[0.9, 0], [0.3, 0.2], [0, 0]]],
             [[1, 2, -1]], [2]),
        ),
        (
            {"boxes": NEAR, "scores": [[[0.1, 0.8], [0.9, 0.0], [0.3, 0.2]]],
             "iou_threshold": F(0.5), "max_boxes": 2, "per_class_suppression": True},
            ([[NEAR[0][1], NEAR[0][0]]], [[[0.9, 0], [0.1, 0.8]]], [[1, 0]], [2]),
        ),
        (
            {"boxes": NEAR, "scores": [[[0.1], [0.9], [0.3]]], "iou_threshold": F(0.7),
             "max_boxes": 2, "score_threshold": F(0.4)},
            ([[NEAR[0][1], [0] * 4]], [[[0.9], [0]]], [[1, -1]], [1]),
        ),
    ],
    "crop_resize": [
        ({"x": FOUR, "boxes": [[0.0, 1.0, 1.0, 2.0]], "target_height": 2, "target_width": 3,
          "sampling_mode": "STRICT_ALIGN_CORNERS"}, [[[[1, 1.5, 2], [5, 5.5, 6]]]]),
        ({"x": FOUR, "boxes": [[0.0, 0.0, 1.0, 1.0]], "target_height": 1, "target_width": 2,
          "sampling_mode": "STRICT_ALIGN_CORNERS", "normalized_coordinates": True,
          "box_coordinate_mode": "CORNERS_WIDTH_FIRST"}, [[[[0, 3]]]]),
        ({"x": FOUR, "roi": [[[[[2.0]], [[0.5]], [[4.0]], [[0.0]]]]], "target_height": 1,
          "target_width": 2, "sampling_mode": "STRICT_ALIGN_CORNERS",
          "box_coordinate_mode": "CENTER_SIZE_WIDTH_FIRST", "pad_value": F(9)}, [[[[[2, 9]]]]]),
        ({"x": [*FOUR, *FOUR], "roi": [[[[[1.0]], [[2.0]], [[2.0]], [[2.0]], [[4.0]]]]],
          "target_height": 1, "target_width": 2, "sampling_mode": "STRICT_ALIGN_CORNERS",
          "spatial_scale": F(0.5)}, [[[[[5, 6]]]]]),
    ],
}  # fmt: skip

ONES = {"weight_ih": [[1.0]] * 4, "weight_hh": [[0.0]] * 4, "initial_h": [[0.0]]}
RECURRENT: dict[str, list[Case]] = {
    "rnn": [
        (
            {"x": [[[1.0]], [[2.0]]], "initial_h": [[1.0]], "weight_ih": [[2.0]],
             "weight_hh": [[10.0]], "bias": [0.5], "activation": "linear", "output_sequence": True},
            ([[[12.5]], [[129.5]]], [[129.5]]),
        ),
        (
            {"x": [[[1.0]], [[2.0]]], "initial_h": [[1.0]], "weight_ih": [[2.0]],
             "weight_hh": [[10.0]], "activation": "linear", "direction": "reverse"},
            ([[[142]]], [[142]]),
        ),
    ],
    "lstm": [
        (
            {**ONES, "x": [[[1.0]]], "initial_c": [[2.0]], "recurrent_activation": "linear",
             "cell_activation": "linear", "activation": "linear", "bias": [0.0, 1.0, 2.0, 3.0]},
            ([[[24]]], [[24]], [[8]]),
        ),
        (
            {**ONES, "x": [[[1.0]]], "initial_c": [[2.0]], "recurrent_activation": "linear",
             "cell_activation": "linear", "activation": "linear", "peephole": [1.0, 2.0, 3.0],
             "clip": F(6)},
            ([[[19 * 6]]], [[19 * 6]], [[6]]),
        ),
    ],
    "gru": [
        (
            {"x": [[[1.0]]], "initial_h": [[2.0]], "weight_ih": [[3.0], [5.0], [7.0]],
             "weight_hh": [[1.0], [10.0], [0.0]], "recurrent_activation": "linear",
             "activation": "linear", "bias": [0.0, 1.0, 0.0]},
            # r = 5, z = 7, o = 5 + 10·5·2 + 1 = 106, h = -6·106 + 7·2
            ([[[-622]]], [[-622]]),
        ),
        (
            {"x": [[[1.0]]], "initial_h": [[2.0]], "weight_ih": [[3.0], [5.0], [7.0]],
             "weight_hh": [[1.0], [10.0], [0.0]], "recurrent_activation": "linear",
             "activation": "linear", "bias": [0.0, 1.0, 0.0], "reset_after": True},
            # o = 5 + 5·(10·2 + 1) = 110
            ([[[-646]]], [[-646]]),
        ),
    ],
}  # fmt: skip

CASES: dict[str, list[Case]] = {
    **UNARY, **BINARY, **ACTIVATION, **LINEAR, **NORMALIZATION, **REDUCTION, **SHAPE, **SLICING,
    **TENSOR, **SCATTER_GATHER, **COMPRESSION, **CONVOLUTION, **IMAGE, **DETECTION,
    **RECURRENT,
}  # fmt: skip

ELSEWHERE = {
    "read_state", "write_state", "coreml_update_state", "cond", "while_loop", "make_list",
    "list_length", "list_read", "list_write", "list_gather", "list_scatter", "random_uniform",
    "random_normal", "random_bernoulli", "random_categorical",
}  # fmt: skip
"""Operations that are more than a function of their inputs: test_state.py and test_control.py."""
