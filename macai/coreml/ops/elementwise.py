"""Arithmetic, comparisons, logic, changes of type: element by element."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from macai.coreml.builder import mb
from macai.coreml.graph import Node
from macai.coreml.ops.table import Var, lowers, number_like

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
    "Divide": mb.real_div,
    "Equal": mb.equal,
    "FloorDivide": mb.floor_div,
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
# What these are of booleans, for which MIL has no arithmetic.
LOGICAL: dict[str, Callable[..., Var]] = {
    "Add": mb.logical_or,
    "Maximum": mb.logical_or,
    "Minimum": mb.logical_and,
    "Multiply": mb.logical_and,
    "NotEqual": mb.logical_xor,
}


@lowers(*UNARY, broadcasts=True)
def unary(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Element by element."""
    return UNARY[node.op](x=x)


@lowers(*BINARY, broadcasts=True)
def binary(lowering: "Lowering", node: Node, x: Var, y: Var) -> Var:
    """Element by element, one broadcast to the other; comparisons give booleans."""
    if node.inputs[0].dtype == "bool" and node.op not in ("LogicalAnd", "LogicalOr"):
        if node.op in LOGICAL:
            return LOGICAL[node.op](x=x, y=y)
        x, y = lowering.cast(x, "int32"), lowering.cast(y, "int32")
    return BINARY[node.op](x=x, y=y)


@lowers("DivMod", broadcasts=True)
def div_mod(lowering: "Lowering", node: Node, x: Var, y: Var) -> tuple[Var, Var]:
    """Quotient rounded down and remainder."""
    return mb.floor_div(x=x, y=y), mb.mod(x=x, y=y)


@lowers("ArcTan2", broadcasts=True)
def arc_tan2(lowering: "Lowering", node: Node, y: Var, x: Var) -> Var:
    """Angle of (x, y): MIL has the arc tangent of a ratio alone, which is right for x > 0."""
    zero = number_like(x, 0)
    level = mb.equal(x=x, y=zero)
    ratio = mb.real_div(x=y, y=mb.select(cond=level, a=mb.add(x=x, y=number_like(x, 1)), b=x))
    angle = mb.atan(x=ratio)
    none = mb.mul(x=angle, y=zero)  # in the shape of both: select's result is as its a and b are
    half, quarter = number_like(x, np.pi), number_like(x, np.pi / 2)
    below = mb.less(x=y, y=zero)
    turn = mb.select(cond=below, a=mb.sub(x=none, y=half), b=mb.add(x=none, y=half))
    angle = mb.select(cond=mb.less(x=x, y=zero), a=mb.add(x=angle, y=turn), b=angle)
    return mb.select(cond=level, a=mb.add(x=none, y=mb.mul(x=mb.sign(x=y), y=quarter)), b=angle)


@lowers("ArcSinh", broadcasts=True)
def arc_sinh(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Sign(x) log(|x| + sqrt(x^2 + 1)), in float32: x^2 may be beyond float16."""
    wide = lowering.cast(x, "fp32")
    size = mb.abs(x=wide)
    root = mb.sqrt(x=mb.add(x=mb.square(x=wide), y=np.float32(1)))
    return mb.mul(x=mb.sign(x=wide), y=mb.log(x=mb.add(x=size, y=root)))


@lowers("ArcCosh", broadcasts=True)
def arc_cosh(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Log(x + sqrt(x^2 - 1)), in float32: x^2 may be beyond float16."""
    wide = lowering.cast(x, "fp32")
    root = mb.sqrt(x=mb.sub(x=mb.square(x=wide), y=np.float32(1)))
    return mb.log(x=mb.add(x=wide, y=root))


@lowers("Negative", broadcasts=True)
def negative(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Minus x."""
    return mb.mul(x=x, y=number_like(x, -1))


@lowers("Sqrt", broadcasts=True)
def sqrt(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Square root, or one over it: MLX has one primitive for both."""
    return mb.rsqrt(x=x) if node.arguments[0] else mb.sqrt(x=x)


def _log_base(node: Node) -> str | None:
    """Base 2, 10 or e."""
    return None if node.arguments[0] in (0, 1, 2) else f"base {node.arguments[0]}"


@lowers("Log", broadcasts=True, accepts=_log_base)
def log(lowering: "Lowering", node: Node, x: Var) -> Var:
    """To base 2, 10 or e (MLX's enumeration: 0, 1, 2)."""
    natural = mb.log(x=x)
    per_unit = {0: 1 / np.log(2), 1: 1 / np.log(10)}.get(node.arguments[0])
    return natural if per_unit is None else mb.mul(x=natural, y=number_like(x, per_unit))


@lowers("Log1p", broadcasts=True)
def log1p(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Log(1 + x), in float32, and times x over what 1 + x has left of it: right for a small x."""
    wide = lowering.cast(x, "fp32")
    total = mb.add(x=wide, y=np.float32(1))
    left = mb.sub(x=total, y=np.float32(1))
    lost = mb.equal(x=left, y=np.float32(0))
    ratio = mb.real_div(x=wide, y=mb.select(cond=lost, a=total, b=left))
    return mb.select(cond=lost, a=wide, b=mb.mul(x=mb.log(x=total), y=ratio))


@lowers("Expm1", broadcasts=True)
def expm1(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Exp(x) - 1, in float32; 2 t / (1 - t) with t = tanh(x / 2) near 0, where it would vanish."""
    wide = lowering.cast(x, "fp32")
    t = mb.tanh(x=mb.mul(x=wide, y=np.float32(0.5)))
    near = mb.real_div(x=mb.add(x=t, y=t), y=mb.sub(x=np.float32(1), y=t))
    far = mb.sub(x=mb.exp(x=wide), y=np.float32(1))
    return mb.select(cond=mb.less(x=mb.abs(x=wide), y=np.float32(0.5)), a=near, b=far)


@lowers("LogAddExp", broadcasts=True)
def log_add_exp(lowering: "Lowering", node: Node, x: Var, y: Var) -> Var:
    """Log(exp x + exp y), by the greater plus log(1 + exp(-|x - y|)): it cannot overflow."""
    distance = mb.abs(x=mb.sub(x=x, y=y))
    rest = mb.log(
        x=mb.add(x=mb.exp(x=mb.mul(x=distance, y=number_like(x, -1))), y=number_like(x, 1))
    )
    return mb.add(x=mb.maximum(x=x, y=y), y=rest)


@lowers("GELU", broadcasts=True)
def gelu(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Multiply x by the normal distribution's share below x, exact or by tanh."""
    return mb.gelu(x=x, mode=node.options["mode"])


_BIT_AND, _BIT_OR, _BIT_XOR, _SHIFT_LEFT, _SHIFT_RIGHT = range(5)


@lowers("BitwiseBinary", broadcasts=True)
def bitwise(lowering: "Lowering", node: Node, x: Var, y: Var) -> Var:
    """And, or, exclusive or of booleans; shifts of integers, and their lowest n bits.

    MIL has no operations on bits: a shift is a product or a quotient, a mask of low bits a modulus.
    """
    kind = node.arguments[0]
    if node.outputs[0].dtype == "bool" and kind <= _BIT_XOR:
        return (mb.logical_and, mb.logical_or, mb.logical_xor)[kind](x=x, y=y)
    known = lowering.array(node.inputs[1])
    if kind in (_SHIFT_LEFT, _SHIFT_RIGHT):
        power = mb.pow(x=np.int32(2), y=y) if known is None else (1 << known).astype(np.int32)
        return mb.mul(x=x, y=power) if kind == _SHIFT_LEFT else mb.floor_div(x=x, y=power)
    if kind == _BIT_AND and known is not None and not (known & (known + 1)).any():
        return mb.mod(x=x, y=(known + 1).astype(np.int32))
    raise ValueError("bits of integers can only be shifted, or masked by 2^n - 1 on the right")


@lowers("Select", broadcasts=True, casts=True)
def select(lowering: "Lowering", node: Node, condition: Var, a: Var, b: Var) -> Var:
    """`a` where the condition holds, else `b`: MIL takes the result's shape from a and b alone."""
    shape = node.outputs[0].shape
    if tuple(a.shape) != shape and tuple(b.shape) != shape:
        a = lowering.var(node.inputs[1])
        a = lowering.cast(a, lowering.mil_type(node.outputs[0]))
    return mb.select(cond=condition, a=a, b=b)


@lowers("AsType", broadcasts=True, casts=False)
def as_type(lowering: "Lowering", node: Node, x: Var) -> Var:
    """Another type; float to integer rounds towards zero, as MLX does."""
    return lowering.cast(x, lowering.mil_type(node.outputs[0]))
