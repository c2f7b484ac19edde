"""Run a pickle without running anything it asks for.

A pickle is a program: GLOBAL names any Python function and REDUCE calls it. Here pickletools takes
the program apart, and this machine knows plain data and those names it is given; any other name
ends it. Nothing is imported, no method of an object is called, and each opcode costs memory in
proportion to its bytes at most.
"""

import io
import pickletools
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macai.errors import FormatError, ModelError
from macai.models.shown import shown

MAX_PICKLE_BYTES = 16 << 20  # tensors take about 300 bytes each: fifty thousand
MAX_ARGUMENTS = 16
MAX_OPCODES = 2_000_000  # tensors take about 30 each
_KEYS = (str, int, float, bool, bytes, type(None))


@dataclass(frozen=True, slots=True)
class Named:
    """What a name in a pickle stands for here.

    Attributes:
        name: As the pickle has it, with its module.
        build: Called with what the pickle would call the real one with; raises TypeError for
            arguments that cannot be.
    """

    name: str
    build: Callable[..., object]


@dataclass(frozen=True, slots=True)
class Opaque:
    """An object that was described, of which nothing is needed."""

    name: str


class Machine:
    """Runs one pickle.

    Args:
        path: The file, for messages.
        names: What each "module name" may stand for.
        persistent: Called with each persistent id, which is what torch stores a storage as.
    """

    def __init__(
        self,
        path: Path,
        names: Mapping[str, object],
        persistent: Callable[[object], object] | None = None,
    ) -> None:
        self._path = path
        self._names = names
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> Any:
        """Return what the pickle that begins where `stream` is stands for; leave it after it.

        Dicts and OrderedDicts come as dicts, other data as Python's own.

        Raises:
            ModelError: it names a function or class that is not among `names`.
            FormatError: it is damaged, or calls one of `names` with what cannot be.
        """
        with warnings.catch_warnings():  # of a "\\o" in a text of protocol 0
            warnings.simplefilter("ignore", DeprecationWarning)
            for opcode, arg, _ in self._opcodes(stream):
                if opcode.name == "STOP":
                    return self._pop()
                act = _ACTS.get(opcode.name)
                if act is None:
                    raise self.damaged(f"uses the opcode {opcode.name}, which no checkpoint needs")
                act(self, arg)
        raise self.damaged("has no end")

    def damaged(self, message: str) -> FormatError:
        """Return an error about this pickle."""
        return FormatError(
            f"{self._path}: its pickle {message}",
            hint="the file is damaged or made to do harm; nothing in it was run",
        )

    def _opcodes(self, stream: io.BytesIO) -> Iterator[tuple[Any, Any, Any]]:
        opcodes = pickletools.genops(stream)
        for _ in range(MAX_OPCODES):
            try:
                yield next(opcodes)
            except StopIteration:
                return
            except (ValueError, OverflowError, IndexError, struct.error) as e:
                raise self.damaged(f"cannot be taken apart: {shown(e, 200)}") from e
        raise self.damaged(f"has more than {MAX_OPCODES} opcodes")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self.damaged("takes from an empty stack")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        value = self._pop()
        self._push(value)
        if type(value) is not kind:
            raise self.damaged(f"fills a {type(value).__name__} as if it were a {kind.__name__}")
        return value

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise self.damaged("ends a list that it did not begin")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _put(self, index: int | None) -> None:
        value = self._pop()
        self._push(value)
        self._memo[len(self._memo) if index is None else index] = value

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise self.damaged("refers to what it did not say before")
        self._push(self._memo[index])

    def _name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise self.damaged("has a name that is no text")
        wanted = f"{module} {name}"
        if wanted not in self._names:
            what = f"{shown(module, 60)}.{shown(name, 60)}"
            raise ModelError(
                f"{self._path}: it wants to run {what}, which no weights need; nothing was run",
                hint="get the model as .safetensors: such a file holds nothing that can be run",
            )
        self._push(self._names[wanted])

    def _global(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self._name(module, name)

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)

    def _reduce(self, _: Any) -> None:
        args, function = self._pop(), self._pop()
        if type(function) is not Named or type(args) is not tuple:
            raise self.damaged(f"calls a {type(function).__name__}")
        if len(args) > MAX_ARGUMENTS:  # said once, they could be used over and over
            raise self.damaged(f"calls {function.name} with {len(args)} arguments")
        try:
            self._push(function.build(*args))
        except TypeError as e:
            what = f"calls {function.name} with arguments that cannot be: {shown(e, 200)}"
            raise self.damaged(what) from e

    def _build(self, _: Any) -> None:
        self._pop()  # attributes: a state dict's _metadata, or those of an Opaque
        target = self._pop()
        if type(target) not in (dict, Opaque):
            raise self.damaged(f"gives attributes to a {type(target).__name__}")
        self._push(target)

    def _set_items(self, items: list[Any], target: Any) -> None:
        if len(items) % 2:
            raise self.damaged("has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Others may take for ever to hash: a tuple of tuples of tuples, each twice.
            if type(key) not in (*_KEYS, Named, Opaque):
                raise self.damaged(f"has a {type(key).__name__} as a key")
            target[key] = value

    def _setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value], self._top(dict))

    def _setitems(self, _: Any) -> None:
        items = self._pop_mark()
        self._set_items(items, self._top(dict))

    def _dict(self, _: Any) -> None:
        made: dict[Any, Any] = {}
        self._set_items(self._pop_mark(), made)
        self._push(made)

    def _append(self, _: Any) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _appends(self, _: Any) -> None:
        values = self._pop_mark()
        self._top(list).extend(values)

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(values[::-1]))

    def _persistent_id(self, _: Any) -> None:
        if self._persistent is None:
            raise self.damaged("has a persistent id where none can be")
        self._push(self._persistent(self._pop()))


Act = Callable[[Machine, Any], object]


def _constant(make: Callable[[], Any]) -> Act:
    return lambda machine, _: machine._push(make())


def _tuple_of(count: int) -> Act:
    return lambda machine, _: machine._tuple(count)


_LITERALS = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
)  # fmt: skip
_ACTS: dict[str, Act] = {
    **dict.fromkeys(_LITERALS, Machine._push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine._put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine._get),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), Machine._reduce),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_TUPLE": _tuple_of(0),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": lambda machine, _: machine._push(tuple(machine._pop_mark())),
    "LIST": lambda machine, _: machine._push(machine._pop_mark()),
    "DICT": Machine._dict,
    "MARK": Machine._mark,
    "POP": lambda machine, _: machine._pop(),
    "POP_MARK": lambda machine, _: machine._pop_mark(),
    "SETITEM": Machine._setitem,
    "SETITEMS": Machine._setitems,
    "APPEND": Machine._append,
    "APPENDS": Machine._appends,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent_id,
}
