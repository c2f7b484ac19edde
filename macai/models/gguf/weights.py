"""Turn GGUF tensors into safetensors: what type each gets, and its bytes, piece by piece.

With dtype `keep`, Q4_0, Q4_1 and Q8_0 matrices stay quantised, exactly (see `affine`); F16, BF16
and F32 matrices keep their type, and other quantised ones become float16. An F32 vector takes the
type the model computes in, that of the embedding, when that changes no value: a float32 norm would
make every activation after it float32.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from macai.errors import ModelError
from macai.models.converter import Dtype
from macai.models.gguf import affine
from macai.models.gguf.architecture import Slot
from macai.models.gguf.blocks import decode
from macai.models.gguf.reader import GGUFFile, Tensor
from macai.models.gguf.shards import Output

PIECE_VALUES = 1 << 22
"""Values decoded at a time: 16 MiB of float32."""

SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
NAMES = {short: name for name, short in SAFETENSORS.items()}
EMBEDDING = "token_embd.weight"


def plan(
    gguf: GGUFFile, slots: Mapping[str, Slot], config: Mapping[str, Any], dtype: Dtype
) -> list[Output]:
    """Return the tensors to write, in the order of the model."""
    computing = computing_dtype(gguf, dtype)
    outputs: list[Output] = []
    for name, slot in slots.items():
        tensor = gguf.tensors[name]
        order = _row_order(tensor, slot, config)
        if dtype == "keep" and is_packed(tensor):
            outputs += _packed_outputs(slot.name, tensor, order)
        else:
            short = SAFETENSORS[dtype] if dtype != "keep" else _kept(tensor, computing)
            outputs.append(_plain_output(slot.name, tensor, order, short))
    return outputs


def computing_dtype(gguf: GGUFFile, dtype: Dtype) -> str:
    """Return the type the model computes in: float32, float16 or bfloat16."""
    if dtype != "keep":
        return dtype
    embedding = gguf.tensors[EMBEDDING]
    if is_packed(embedding):
        return NAMES[_scale_dtype(embedding)]
    return NAMES[_kept(embedding, "float16")]


def quantization(gguf: GGUFFile, slots: Mapping[str, Slot]) -> dict[str, Any] | None:
    """Return mlx-lm's `quantization` of config.json for dtype `keep`; None when nothing is packed.

    The most common bits are the rule, and every other layer is named with its own.
    """
    bits = {
        slot.name.removesuffix(".weight"): affine.BITS[gguf.tensors[name].type]
        for name, slot in slots.items()
        if is_packed(gguf.tensors[name])
    }
    if not bits:
        return None
    common = Counter(bits.values()).most_common(1)[0][0]
    rule = {"group_size": affine.GROUP_SIZE, "bits": common, "mode": "affine"}
    return rule | {path: rule | {"bits": n} for path, n in bits.items() if n != common}


def is_packed(tensor: Tensor) -> bool:
    """Whether dtype `keep` leaves this tensor quantised."""
    return tensor.type in affine.BITS and len(tensor.shape) == 2


def _kept(tensor: Tensor, computing: str) -> str:
    if tensor.type != "F32":
        return tensor.type if tensor.type in NAMES else "F16"
    short = SAFETENSORS[computing]
    if len(tensor.shape) > 1 or short == "F32":
        return "F32"
    values = decode(tensor.rows, tensor.type)
    same = np.array_equal(_decoded(_encode(values, short), short), values)
    return short if same else "F32"


def _row_order(tensor: Tensor, slot: Slot, config: Mapping[str, Any]) -> np.ndarray | None:
    """Return which row of the file is which of the model, int64 [R]; None when all stay.

    llama.cpp rotates neighbours, Hugging Face a head's first half with its second, so a converter
    to GGUF interleaves the halves of the rows of q and k.
    """
    if slot.heads is None:
        return None
    heads = config["num_attention_heads" if slot.heads == "q" else "num_key_value_heads"]
    pairs = np.arange(tensor.shape[0]).reshape(heads, -1, 2)
    return pairs.swapaxes(1, 2).reshape(-1)


def _plain_output(name: str, tensor: Tensor, order: np.ndarray | None, short: str) -> Output:
    def encode(rows: np.ndarray) -> bytes:
        return _checked(tensor, decode(rows, tensor.type), short)

    def vector() -> Iterator[bytes]:
        values = decode(tensor.rows, tensor.type)[0]
        yield _checked(tensor, values if order is None else values[order], short)

    pieces = vector if len(tensor.shape) == 1 else _in_pieces(tensor, order, encode)
    return Output(name, short, tensor.shape, pieces)


def _packed_outputs(name: str, tensor: Tensor, order: np.ndarray | None) -> list[Output]:
    n_rows, n_values = tensor.shape
    path = name.removesuffix(".weight")
    short = _scale_dtype(tensor)
    groups = (n_rows, n_values // affine.GROUP_SIZE)
    packed = (n_rows, n_values * affine.BITS[tensor.type] // 32)

    def numbers(read: Callable[[np.ndarray, str], np.ndarray]) -> Callable[[np.ndarray], bytes]:
        return lambda rows: _checked(tensor, read(rows, tensor.type).astype(np.float32), short)

    def weight(rows: np.ndarray) -> bytes:
        return affine.packed_weight(rows, tensor.type).tobytes()

    return [
        Output(name, "U32", packed, _in_pieces(tensor, order, weight)),
        Output(f"{path}.scales", short, groups, _in_pieces(tensor, order, numbers(affine.scales))),
        Output(f"{path}.biases", short, groups, _in_pieces(tensor, order, numbers(affine.biases))),
    ]


def _scale_dtype(tensor: Tensor) -> str:
    return "F16" if affine.fits_float16(tensor.rows, tensor.type) else "F32"


def _in_pieces(
    tensor: Tensor, order: np.ndarray | None, encode: Callable[[np.ndarray], bytes]
) -> Callable[[], Iterator[bytes]]:
    """Return a maker of the encoded rows of a tensor, a few at a time, in the model's order."""

    def pieces() -> Iterator[bytes]:
        rows = tensor.rows
        step = max(1, PIECE_VALUES // tensor.shape[-1])
        for at in range(0, len(rows), step):
            yield encode(rows[at : at + step] if order is None else rows[order[at : at + step]])

    return pieces


def _checked(tensor: Tensor, values: np.ndarray, short: str) -> bytes:
    """Encode float32 values; ModelError when one is or becomes infinite or not a number."""
    if not np.isfinite(values).all():
        raise ModelError(
            f"tensor {tensor.name!r} holds values that are not finite numbers",
            hint="the file is damaged, or the model was never right",
        )
    encoded = _encode(values, short)
    if not np.isfinite(_decoded(encoded, short)).all():
        raise ModelError(
            f"tensor {tensor.name!r}: its largest value, {np.abs(values).max():.4g}, "
            f"is beyond {NAMES[short]}",
            hint="convert with --dtype bfloat16 or float32",
        )
    return encoded.tobytes()


def _encode(values: np.ndarray, short: str) -> np.ndarray:
    """Round float32 to nearest, ties to even; bfloat16 comes as its bits in uint16."""
    if short == "F32":
        return values
    if short == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    bits = np.ascontiguousarray(values).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)


def _decoded(encoded: np.ndarray, short: str) -> np.ndarray:
    if short == "BF16":
        return (encoded.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return encoded.astype(np.float32, copy=False)
