"""Open checkpoints that torch.save wrote (.ckpt, .pt, .bin) without torch, running nothing in them.

Both of torch's formats: an archive (zip, not compressed) with data.pkl and a member for each
storage, and the older one, pickles followed by the storages. Numbers stay in the file.
"""

import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macai.diffusion.loading.pickle_machine import MAX_PICKLE_BYTES, Machine
from macai.diffusion.loading.torch_objects import NAMES, PickledTensor, Storage, storage
from macai.errors import FormatError
from macai.models.shown import shown
from macai.models.stored import ITEM_BYTES, StoredTensor

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
LEGACY_PROTOCOL = 1001
_MAX_DIRECTORY_BYTES = 64 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_HINT = "the file is damaged or incomplete: download it again and compare its checksum"


@dataclass(frozen=True, slots=True)
class TorchFile:
    """A checkpoint: its tensors by name, and the whole numbers beside them (global_step)."""

    tensors: dict[str, StoredTensor]
    numbers: dict[str, int] = field(default_factory=dict)


def is_torch_file(beginning: bytes) -> bool:
    """Return whether a file that begins so is one of torch's."""
    return beginning.startswith((ZIP_MAGIC, LEGACY_START))


def read_torch(path: Path) -> TorchFile:
    """Read which tensors are in a file of torch.

    Raises:
        ModelError: the file wants something run that no weights need.
        FormatError: it is damaged, compressed, or holds no tensors by name.
    """
    try:
        with path.open("rb") as f:
            zipped = f.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        value, place = (_read_archive if zipped else _read_legacy)(path)
    except OSError as e:
        raise FormatError(f"{path}: cannot be opened: {e.strerror or e}") from e
    if type(value) is not dict:
        raise FormatError(f"{path}: holds a {type(value).__name__}, not tensors by name")
    numbers = {k: v for k, v in value.items() if type(k) is str and type(v) is int}
    if type(value.get("state_dict")) is dict:
        value = value["state_dict"]
    tensors = {
        name: StoredTensor(
            path, name, t.storage.dtype, t.shape, place(t.storage, t.offset), t.strides
        )
        for name, t in value.items()
        if type(name) is str and type(t) is PickledTensor
    }
    if not tensors:
        raise FormatError(f"{path}: no tensors in it", hint="is it the weights' file?")
    return TorchFile(tensors, numbers)


Place = Callable[[Storage, int], int]  # of a storage's number, the byte in the file


class _BoundedReader(io.BufferedReader):
    """A file of which nobody reads more than a sane directory at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size)


def _read_archive(path: Path) -> tuple[Any, Place]:
    with _BoundedReader(io.FileIO(path)) as f:
        try:
            with zipfile.ZipFile(f) as archive:
                members = {info.filename: info for info in archive.infolist()}
                if len(members) != len(archive.infolist()):
                    raise _damaged(path, "a name is there twice in the archive")
                root = _root(path, members)
                pickle = io.BytesIO(archive.read(members[f"{root}data.pkl"]))
                order = members.get(f"{root}byteorder")
                if order is not None and archive.read(order) != b"little":
                    raise _damaged(path, "its numbers are big-endian, which is not supported")
        # All that zipfile raises for an archive that is not one.
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, EOFError,
                RuntimeError, IndexError, struct.error) as e:  # fmt: skip
            raise _damaged(path, f"not a whole archive: {shown(e, 200)}") from e
    value = Machine(path, NAMES, _storage_of(path)).run(pickle)
    return value, _Members(path, members, root).place


def _root(path: Path, members: dict[str, zipfile.ZipInfo]) -> str:
    """Return the folder in the archive, with its slash."""
    pickles = [name for name in members if name.endswith("data.pkl")]
    if len(pickles) != 1 or pickles[0].count("/") > 1:
        raise FormatError(
            f"{path}: a zip archive, but not one of torch: no data.pkl in it",
            hint="unpack it first, if it is a zipped model folder",
        )
    root = pickles[0].removesuffix("data.pkl")
    for name in (f"{root}data.pkl", f"{root}byteorder"):
        if name in members:
            _check_member(path, members[name], MAX_PICKLE_BYTES)
    return root


def _check_member(path: Path, info: zipfile.ZipInfo, limit: int) -> None:
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise _damaged(path, f"{shown(info.filename)} in it is compressed, which torch never does")
    if info.flag_bits & 1:
        raise _damaged(path, f"{shown(info.filename)} in it is encrypted")
    if info.file_size > limit:
        raise _damaged(path, f"{shown(info.filename)} in it has {info.file_size} bytes")


class _Members:
    """Where in the file the storages of an archive are."""

    def __init__(self, path: Path, members: dict[str, zipfile.ZipInfo], root: str) -> None:
        self._path, self._members, self._root = path, members, root
        self._begins: dict[str, int] = {}
        self._size = path.stat().st_size

    def place(self, storage: Storage, offset: int) -> int:
        if storage.key not in self._begins:
            self._begins[storage.key] = self._begin(storage.key)
        info = self._members[f"{self._root}data/{storage.key}"]
        item = ITEM_BYTES[storage.dtype]
        if storage.size * item > info.file_size:
            raise _damaged(
                self._path,
                f"storage {shown(storage.key, 20)} has {info.file_size} bytes for "
                f"{storage.size} numbers",
            )
        return self._begins[storage.key] + offset * item

    def _begin(self, key: str) -> int:
        info = self._members.get(f"{self._root}data/{key}")
        if info is None:
            raise _damaged(self._path, f"storage {key[:100]!r} is not in it")
        _check_member(self._path, info, self._size)
        with self._path.open("rb") as f:
            f.seek(info.header_offset)
            header = f.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(ZIP_MAGIC):
            raise _damaged(self._path, f"storage {key[:100]!r} is not where the archive says")
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        begin = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if begin + info.file_size > self._size:
            raise _damaged(self._path, f"it ends inside storage {key[:100]!r}: truncated")
        return begin


def _read_legacy(path: Path) -> tuple[Any, Place]:
    """Read magic number, protocol, system, value and the storages' keys, then where those are."""
    with path.open("rb") as f:
        stream = io.BytesIO(f.read(MAX_PICKLE_BYTES))
    if not stream.getvalue().startswith(LEGACY_START):
        raise FormatError(
            f"{path}: not a checkpoint of torch: it starts with {stream.getvalue()[:8]!r}",
            hint="is the download complete?",
        )
    plain = [Machine(path, {}).run(stream) for _ in range(3)]
    if plain[1] != LEGACY_PROTOCOL or type(plain[2]) is not dict:
        raise _damaged(path, "not a checkpoint of torch")
    if plain[2].get("little_endian") is not True:
        raise _damaged(path, "its numbers are big-endian, which is not supported")
    seen: dict[str, Storage] = {}
    value = Machine(path, NAMES, _storage_of(path, seen)).run(stream)
    keys = Machine(path, {}).run(stream)
    begins = _legacy_begins(path, keys, seen, stream.tell())
    return value, lambda storage, offset: begins[storage.key] + offset * ITEM_BYTES[storage.dtype]


def _legacy_begins(path: Path, keys: Any, seen: dict[str, Storage], at: int) -> dict[str, int]:
    """Return the byte where each storage begins: they follow each other, each after its length."""
    if type(keys) is not list or not all(type(k) is str for k in keys) or set(keys) != set(seen):
        raise _damaged(path, "its storages are not those its tensors are of")
    if len(set(keys)) != len(keys):
        raise _damaged(path, "a storage is there twice")
    begins, size = {}, path.stat().st_size
    with path.open("rb") as f:
        for key in keys:
            f.seek(at)
            count = int.from_bytes(f.read(8), "little")
            begins[key] = at + 8
            at += 8 + count * ITEM_BYTES[seen[key].dtype]
            if count != seen[key].size or at > size:
                raise _damaged(path, f"storage {key[:100]!r} is not whole: truncated")
    return begins


def _storage_of(path: Path, seen: dict[str, Storage] | None = None) -> Callable[[object], Storage]:
    def of(identity: object) -> Storage:
        try:
            found = storage(identity)
        except TypeError as e:
            raise _damaged(path, f"a persistent id in it is wrong: {e}") from e
        if seen is not None and seen.setdefault(found.key, found) != found:
            raise _damaged(path, f"storage {found.key[:100]!r} is of two kinds")
        return found

    return of


def _damaged(path: Path, message: str) -> FormatError:
    return FormatError(f"{path}: {message}", hint=_HINT)
