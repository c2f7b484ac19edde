"""When values are last used, and how much memory those alive at one time take."""

from collections.abc import Iterator

from macai.errors import PackageError
from macai.mil.dtypes import compute_dtype
from macai.mil.program import Block, Body, Operation
from macai.mil.types import TensorType, ValueType


def used_names(operation: Operation) -> Iterator[str]:
    """Yield every name an operation reads, its nested blocks included."""
    for arguments in operation.inputs.values():
        for argument in arguments:
            if isinstance(argument, str):
                yield argument
    for block in operation.blocks:
        yield from block.outputs
        for inner in block.operations:
            yield from used_names(inner)


def last_uses(block: Block, own: set[str]) -> list[list[str]]:
    """Return for each operation the names that nothing in or after the block reads after it.

    Args:
        block: The block.
        own: Names defined by it besides its operations' outputs; those from outside are not its to
            end.
    """
    mortal = own.union(*(o.outputs.keys() for o in block.operations)) - set(block.outputs)
    dead: list[list[str]] = [[] for _ in block.operations]
    seen: set[str] = set()
    for index in range(len(block.operations) - 1, -1, -1):
        operation = block.operations[index]
        for name in (*operation.outputs, *used_names(operation)):
            if name in mortal and name not in seen:
                seen.add(name)
                dead[index].append(name)
    return dead


def check_live_bytes(body: Body, limit_bytes: int) -> None:
    """Refuse a function whose declared values take more than `limit_bytes` at any one time.

    Constants are not counted: they are no larger than their file, or within the weights' budget.
    """
    given = {name: value_bytes(type_) for name, type_ in body.inputs.items()}
    _check_block(body.block, given, sum(given.values()), limit_bytes, body.name)


def _check_block(
    block: Block, own: dict[str, int], outside: int, limit_bytes: int, function: str
) -> None:
    alive = dict(own)
    total = outside
    constants: set[str] = set()
    for operation, dead in zip(block.operations, last_uses(block, set(own)), strict=True):
        if operation.type == "const":
            constants.update(operation.outputs)
            continue
        for name, type_ in operation.outputs.items():
            alive[name] = value_bytes(type_)
            total += alive[name]
        if total > limit_bytes:
            raise PackageError(
                f"function {function!r}: {operation.type} {operation.name!r}: its values take "
                f"{total / 2**30:.1f} GiB, over the limit of {limit_bytes / 2**30:.1f}",
                hint="if the model is really that large, open it with a higher value_limit_bytes",
            )
        for inner in operation.blocks:
            given = {name: value_bytes(type_) for name, type_ in inner.inputs.items()}
            _check_block(inner, given, total + sum(given.values()), limit_bytes, function)
        for name in dead:
            total -= alive.pop(name, 0)


def value_bytes(type_: ValueType) -> int:
    """Return what a value takes in a run, counting unknown sizes as one."""
    if not isinstance(type_, TensorType):
        return 0
    return type_.elements * compute_dtype(type_.dtype).itemsize
