"""Tensors of a LoRA file, sorted by layer and put together to what they say of it."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal

import mlx.core as mx

from macai.diffusion.lora.updates import (
    Factors,
    Full,
    Hadamard,
    Kronecker,
    LowRank,
    Magnitude,
    Update,
)
from macai.models.arrays import scalar

# Raw PEFT models have the adapter's name before ".weight", or last.
_NAMED = r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?"
_OLDER = r"\.lora_{0}\.weight|[._]lora\.{0}\.weight|\.lora_linear_layer\.{0}\.weight"
_HADA = r"hada_(?:w[12]_[ab]|t[12])"
_LOKR = r"lokr_(?:w[12](?:_[ab])?|t2)"
_TENSOR = re.compile(
    rf"(?P<layer>.+?)(?:(?P<down>{_OLDER.format('down')}|\.lora_A{_NAMED})"
    rf"|(?P<up>{_OLDER.format('up')}|\.lora_B{_NAMED})"
    rf"|\.(?:(?P<magnitude>lora_magnitude_vector){_NAMED}"
    rf"|(?P<lycoris>{_HADA}|{_LOKR}){_NAMED}|(?P<mid>lora_mid)\.weight"
    rf"|(?P<plain>alpha|dora_scale|diff|diff_b)|lora_B(?:\.[^.]+)?\.(?P<bias>bias)))"
)


class BrokenLayerError(ValueError):
    """Tensors of one layer that do not go together; says what is wrong with them."""


def sort_tensors(names: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return what each tensor is, {layer's name: {part: tensor's name}}, and names of other kinds.

    Parts are "down", "up", "mid", "alpha", "magnitude", "dora_scale", "diff", "diff_b", "bias" and
    those of LyCORIS under their own names ("hada_w1_a", "lokr_t2").

    Raises:
        BrokenLayerError: two tensors are the same part of the same layer.
    """
    layers: dict[str, dict[str, str]] = {}
    others = []
    for name in names:
        if (match := _TENSOR.fullmatch(name)) is None:
            others.append(name)
            continue
        kind = str(match.lastgroup)
        part = match[kind] if kind in ("plain", "lycoris") else kind
        other = layers.setdefault(match["layer"], {}).setdefault(part, name)
        if other != name:
            raise BrokenLayerError(f"{name} and {other} are the same part of the same layer")
    return layers, others


def make_update(parts: Mapping[str, mx.array]) -> Update:
    """Put the tensors of one layer together.

    Args:
        parts: By what they are, as `sort_tensors` says. Without "alpha" the scale is 1, as it is
            for factors without a rank.

    Raises:
        BrokenLayerError: a part is missing, too many, or of the wrong shape or type.
    """
    rest = dict(parts)
    alpha = rest.pop("alpha", None)
    if wrong := [n for n, a in rest.items() if not mx.issubdtype(a.dtype, mx.floating)]:
        raise BrokenLayerError(f"{wrong[0]} is {parts[wrong[0]].dtype}")
    magnitude, bias = _magnitude(rest), rest.pop("diff_b", None)
    factors = _factors(rest)
    if rest:
        raise BrokenLayerError(f"{', '.join(sorted(rest))} beside {type(factors).__name__}")
    _require_shapes(factors)
    if bias is not None and bias.shape != factors.shape[:1]:
        raise BrokenLayerError(f"diff_b is {list(bias.shape)}")
    scale = _scale(alpha, factors.rank)
    return Update(factors=factors, scale=scale, magnitude=magnitude, bias=bias)


def _scale(alpha: mx.array | None, rank: int | None) -> float:
    if alpha is None or rank is None:
        return 1.0
    if alpha.size != 1:
        raise BrokenLayerError(f"alpha is {list(alpha.shape)}, not one number")
    number = scalar(alpha.astype(mx.float32))
    if not math.isfinite(number):
        raise BrokenLayerError(f"alpha is {number}")
    return number / rank if number else 1.0  # kohya's scripts take 0 as they take none


def _factors(rest: dict[str, mx.array]) -> Factors:
    """Take one kind of factors out of `rest`."""
    if any(n.startswith("hada_") for n in rest):
        w1_a, w1_b, w2_a, w2_b = (_take(rest, f"hada_w{n}_{x}") for n in "12" for x in "ab")
        t1, t2 = rest.pop("hada_t1", None), rest.pop("hada_t2", None)
        if (t1 is None) != (t2 is None):
            raise BrokenLayerError("hada_t1 or hada_t2 is missing")
        return Hadamard(w1_a=w1_a, w1_b=w1_b, w2_a=w2_a, w2_b=w2_b, t1=t1, t2=t2)
    if any(n.startswith("lokr_") for n in rest):
        w1, w2 = _whole_or_pair(rest, "lokr_w1"), _whole_or_pair(rest, "lokr_w2")
        core = rest.pop("lokr_t2", None) if isinstance(w2, tuple) else None
        return Kronecker(w1=w1, w2=w2, t2=core)
    if "diff" in rest:
        return Full(diff=_take(rest, "diff"))
    return LowRank(down=_take(rest, "down"), up=_take(rest, "up"), mid=rest.pop("mid", None))


def _whole_or_pair(rest: dict[str, mx.array], name: str) -> mx.array | tuple[mx.array, mx.array]:
    if name in rest:
        return rest.pop(name)
    return _take(rest, f"{name}_a"), _take(rest, f"{name}_b")


def _take(rest: dict[str, mx.array], name: str) -> mx.array:
    if name not in rest:
        raise BrokenLayerError(f"{name} is missing")
    return rest.pop(name)


def _magnitude(rest: dict[str, mx.array]) -> Magnitude | None:
    """Take DoRA's vector out of `rest`: kohya's has the weight's number of axes, all but one 1."""
    peft, kohya = rest.pop("magnitude", None), rest.pop("dora_scale", None)
    if peft is not None and kohya is not None:
        raise BrokenLayerError("it has both dora_scale and lora_magnitude_vector")
    vector = peft if kohya is None else kohya
    if vector is None:
        return None
    if vector.size != max(vector.shape, default=0):
        raise BrokenLayerError(f"its DoRA vector is {list(vector.shape)}")
    per: Literal["output", "input"] = "output"
    if kohya is not None and vector.ndim > 1 and vector.shape[0] == 1:
        per = "input"
    return Magnitude(vector=vector.reshape(-1), per=per, strength_inside=kohya is None)


def _require_shapes(factors: Factors) -> None:
    """Raise BrokenLayerError unless the factors' shapes agree; computes nothing."""
    try:
        product, rank = factors.product(), factors.rank
        # Differences of norms have one axis: no layer here takes them, and nothing is wrong.
        axes = (1, 2, 4) if isinstance(factors, Full) else (2, 4)
        agree = product.shape == factors.shape and product.ndim in axes
    except (ValueError, IndexError) as e:
        raise BrokenLayerError(f"its shapes do not go together ({_shapes(factors)})") from e
    if not agree or rank == 0 or product.size == 0:
        raise BrokenLayerError(f"its shapes do not go together ({_shapes(factors)})")


def _shapes(factors: Factors) -> str:
    return ", ".join(str(list(a.shape)) for a in Update(factors=factors).arrays)
