"""What the names in a checkpoint of torch stand for when torch is not there: plain descriptions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from macai.diffusion.loading.pickle_machine import Named, Opaque
from macai.models.safetensors import MAX_DIMENSIONS

_STORAGES = {
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "IntStorage": "I32",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
}
_MAX_NUMBERS = 1 << 50


@dataclass(frozen=True, slots=True)
class StorageType:
    """A type of numbers, by safetensors' name."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers elsewhere in the file: how the file calls it, its type and its length."""

    key: str
    dtype: str
    size: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A view of a storage; `offset` and `strides` count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def storage(identity: object) -> Storage:
    """Return the storage a persistent id describes: ("storage", type, key, device, size).

    Older files have a sixth part, which says that it is a view of another: None in all but a few.

    Raises:
        TypeError: it describes none.
    """
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        raise TypeError("it describes no storage")
    _, kind, key, _, size = identity[:5]
    if type(kind) is not StorageType or type(key) is not str or not _naturals((size,)):
        raise TypeError("it describes no storage")
    if len(identity) == 6 and identity[5] is not None:
        raise TypeError("it is a view of another storage")
    return Storage(key, kind.dtype, size)


def _tensor(
    storage: object, offset: object, shape: object, strides: object, *_: object
) -> PickledTensor:
    """torch._utils._rebuild_tensor_v2; what follows are gradients and hooks."""
    if type(storage) is not Storage:
        raise TypeError("a tensor of no storage")
    if type(offset) is not int or not _naturals((offset,)):
        raise TypeError("an offset that cannot be")
    if type(shape) is not tuple or not _naturals(shape):
        raise TypeError("a shape that cannot be")
    if type(strides) is not tuple or not _naturals(strides) or len(strides) != len(shape):
        raise TypeError("strides that cannot be")
    size = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if size > storage.size or (size and last >= storage.size):
        raise TypeError(f"a tensor {list(shape)} outside its storage of {storage.size} numbers")
    return PickledTensor(storage, offset, shape, strides)


def _parameter(tensor: object, *_: object) -> object:
    """torch._utils._rebuild_parameter."""
    return tensor


def _ordered_dict(pairs: object = None) -> dict[str, object]:
    """Python 3 calls it without anything and fills it then, Python 2 with all its items."""
    if pairs is None:
        return {}
    if type(pairs) is not list:
        raise TypeError("not of pairs")
    made = {}
    for pair in pairs:
        if type(pair) not in (tuple, list) or len(pair) != 2 or type(pair[0]) is not str:
            raise TypeError("not of pairs of a name and a value")
        made[pair[0]] = pair[1]
    pairs.clear()  # a list that is said once and used a million times makes one dict
    return made


def _size(numbers: object) -> tuple[int, ...]:
    if type(numbers) is not tuple or not _naturals(numbers):
        raise TypeError("not of lengths")
    return numbers


def _naturals(values: tuple[object, ...]) -> bool:
    short = len(values) <= MAX_DIMENSIONS
    return short and all(type(v) is int and 0 <= v <= _MAX_NUMBERS for v in values)


def _opaque(name: str) -> Named:
    return Named(name, lambda *_: Opaque(name))


# What Lightning and numpy leave in a training checkpoint beside the weights: none of it is needed.
_BESIDE = (
    "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "numpy dtype",
    "_codecs encode",
    "builtins set",
    "__builtin__ set",
    "torch device",
)
NAMES: Mapping[str, object] = {
    **{f"torch {name}": StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{name: _opaque(name.replace(" ", ".")) for name in _BESIDE},
    "torch._utils _rebuild_tensor": Named("torch._utils._rebuild_tensor", _tensor),
    "torch._utils _rebuild_tensor_v2": Named("torch._utils._rebuild_tensor_v2", _tensor),
    "torch._utils _rebuild_parameter": Named("torch._utils._rebuild_parameter", _parameter),
    "torch Size": Named("torch.Size", _size),
    "collections OrderedDict": Named("collections.OrderedDict", _ordered_dict),
    "pytorch_lightning.utilities.parsing AttributeDict": Named(
        "pytorch_lightning.utilities.parsing.AttributeDict", _ordered_dict
    ),
}
"""All that a checkpoint may name, by "module name"."""
