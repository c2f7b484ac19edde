"""Arithmetic, comparisons, logic, changes of type: element by element."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from coremltools.converters.mil import Builder as mb

from macai.coreml.graph import Node
from macai.coreml.ops.table import Var, lowers

if TYPE_CHECKING:
    from macai.coreml.lower import Lowering

UNARY: dict[str, Callable[..., Var]] = {
    "Abs": mb.abs,
    "ArcCos": mb.acos,
    "ArcSin": mb.asin,
    "ArcTan": mb.atan,
    "ArcTanh": mb.atanh,
    "Ceil": mb.ceil,
    "Cos": mb.cos,
    "Cosh": mb.cosh,
    "Erf": mb.erf,
    "Exp": mb.exp,
    "Floor": mb.floor,
    "LogicalNot": mb.logical_not,
    "Round": mb.round,
    "Sigmoid": mb.sigmoid,
    "Sign": mb.sign,
    "SiLU": mb.silu,
    "Sin": mb.sin,
    "Sinh": mb.sinh,
    "Square": mb.square,
    "Tan": mb.tan,
    "Tanh": mb.tanh,
}
BINARY: dict[str, Callable[..., Var]] = {
    "Add": mb.add,
    "Equal": mb.equal,
    "Greater": mb.greater,
    "GreaterEqual": mb.greater_equal,
    "Less": mb.less,
    "LessEqual": mb.less_equal,
    "LogicalAnd": mb.logical_and,
    "LogicalOr": mb.logical_or,
    "Maximum": mb.maximum,
    "Minimum": mb.minimum,
    "Multiply": mb.mul,
    "NotEqual": mb.not_equal,
    "Power": mb.pow,
    "Remainder": mb.mod,
    "Subtract": mb.sub,
}


@lowers(*UNARY, broadcasts=True)
def unary(lowering: "Lowering", node: Node, x: Var) -> Var:
    """[...] -> [...]."""
    return UNARY[node.op](x=x)


@lowers(*BINARY, broadcasts=True)
def binary(lowering: "Lowering", node: Node, x: Var, y: Var) -> Var:
    """[...] and [...] -> [...], broadcast by MIL."""
    return BINARY[node.op](x=x, y=y)


@lowers("Divide", broadcasts=True)
def divide(lowering: "Lowering", node: Node, x: Var, y: Var) -> Var:
    """Of floats, or rounding down, as MLX divides integers by `//` only."""
    return mb.real_div(x=x, y=y) if node.outputs[0].is_float else mb.floor_div(x=x, y=y)


@lowers("Negative", broadcasts=True)
def negative(lowering: "Lowering", node: Node, x: Var) -> Var:
    """-x."""
    return mb.mul(x=x, y=_like(x, -1))


@lowers("Sqrt", broadcasts=True)
def sqrt(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Square root, or one over it: MLX has one primitive for both."""
    return mb.rsqrt(x=x) if node.arguments[0] else mb.sqrt(x=x)


def _log_base(node: Node) -> str | None:
    return None if node.arguments[0] in (0, 1, 2) else f"base {node.arguments[0]}"


@lowers("Log", broadcasts=True, accepts=_log_base)
def log(lowering: "Lowering", node: Node, x: Var) -> Var:
    """To base 2, 10 or e (MLX's enumeration: 0, 1, 2)."""
    natural = mb.log(x=x)
    per_unit = {0: 1 / np.log(2), 1: 1 / np.log(10)}.get(node.arguments[0])
    return natural if per_unit is None else mb.mul(x=natural, y=_like(x, per_unit))


@lowers("Log1p", broadcasts=True)
def log1p(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Log(1 + x)."""
    return mb.log(x=mb.add(x=x, y=_like(x, 1)))


@lowers("Expm1", broadcasts=True)
def expm1(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Exp(x) - 1."""
    return mb.sub(x=mb.exp(x=x), y=_like(x, 1))


@lowers("LogAddExp", broadcasts=True)
def log_add_exp(lowering: "Lowering", node: Node, x: Var, y: Var) -> Var:
    """Log(exp x + exp y), by the greater plus log(1 + exp(-|x - y|)): it cannot overflow."""
    distance = mb.abs(x=mb.sub(x=x, y=y))
    rest = mb.log(x=mb.add(x=mb.exp(x=mb.mul(x=distance, y=_like(x, -1))), y=_like(x, 1)))
    return mb.add(x=mb.maximum(x=x, y=y), y=rest)


@lowers("GELU", broadcasts=True)
def gelu(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Multiply x by the normal distribution's share below x, exact or by tanh."""
    return mb.gelu(x=x, mode=node.options["mode"])


def _boolean(node: Node) -> str | None:
    if node.outputs[0].dtype != "bool":
        return "bits of integers"
    return None if node.arguments[0] in (0, 1, 2) else "shift"


@lowers("BitwiseBinary", broadcasts=True, accepts=_boolean)
def bitwise(lowering: "Lowering", node: Node, x: Var, y: Var) -> Var:
    """And, or, exclusive or of booleans (MLX's enumeration: 0, 1, 2)."""
    return (mb.logical_and, mb.logical_or, mb.logical_xor)[node.arguments[0]](x=x, y=y)


@lowers("Select", broadcasts=True, casts=True)
def select(lowering: "Lowering", node: Node, condition: Var, a: Var, b: Var) -> Var:
    """`a` where the condition holds; MIL takes the result's shape from a and b alone."""
    shape = node.outputs[0].shape
    if tuple(a.shape) != shape and tuple(b.shape) != shape:
        a = lowering.var(node.inputs[1])
        a = lowering.cast(a, lowering.mil_type(node.outputs[0]))
    return mb.select(cond=condition, a=a, b=b)


@lowers("AsType", broadcasts=True, casts=False)
def as_type(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Another type; float to integer rounds towards zero, as MLX does."""
    return lowering.cast(x, lowering.mil_type(node.outputs[0]))


@lowers("StopGradient", "Contiguous", "Copy", broadcasts=True)
def same(lowering: "Lowering", node: Node, x: Var) -> Var:
    """What has no meaning in an exported program."""
    return x


def _like(x: Var, value: float) -> Any:
    from macai.coreml.lower import MIL_TYPES

    kinds: dict[object, type] = {MIL_TYPES["fp16"]: np.float16, MIL_TYPES["int32"]: np.int32}
    return kinds.get(x.dtype, np.float32)(value)
