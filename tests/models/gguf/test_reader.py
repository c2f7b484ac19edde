import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from macai.errors import FormatError
from macai.models.gguf.reader import read_gguf

Tiny = Callable[..., Any]


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def a_file(
    tmp_path: Path,
    *,
    entries: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    magic: bytes = b"GGUF",
    version: int = 3,
    n_entries: int | None = None,
    n_tensors: int | None = None,
) -> Path:
    header = magic + struct.pack("<I", version)
    header += struct.pack("<Q", len(tensors) if n_tensors is None else n_tensors)
    header += struct.pack("<Q", len(entries) if n_entries is None else n_entries)
    header += b"".join(entries) + b"".join(tensors)
    path = tmp_path / "hand.gguf"
    path.write_bytes(header + b"\0" * (-len(header) % 32) + data)
    return path


def message(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        read_gguf(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


def test_what_the_gguf_package_writes_is_read(tiny_gguf: Tiny, tmp_path: Path) -> None:
    model = tiny_gguf()
    read = read_gguf(model.write(tmp_path / "model.gguf"))
    assert list(read.tensors) == list(model.tensors)
    for name, values in model.tensors.items():
        assert read.tensors[name].shape == values.shape
        np.testing.assert_array_equal(
            read.tensors[name].rows.view(np.float32).reshape(values.shape), values
        )
    for key, value in model.metadata.items():
        found = read.metadata[key]
        found = found.tolist() if isinstance(found, np.ndarray) else found
        assert found == (np.float32(value) if isinstance(value, float) else value), key


def test_every_kind_of_metadata_is_read(tmp_path: Path) -> None:
    values = {
        0: ("<B", 200), 1: ("<b", -100), 2: ("<H", 60000), 3: ("<h", -30000),
        4: ("<I", 4000000000), 5: ("<i", -2000000000), 6: ("<f", 0.5), 7: ("<?", True),
        10: ("<Q", 2**63), 11: ("<q", -(2**62)), 12: ("<d", 1e300),
    }  # fmt: skip
    entries = [entry(f"k{kind}", kind, struct.pack(*v)) for kind, v in values.items()]
    array = struct.pack("<IQ3h", 3, 3, -1, 0, 1)
    texts = struct.pack("<IQ", 8, 2) + text("é") + text("")
    entries += [entry("array", 9, array), entry("texts", 9, texts), entry("text", 8, text("日本"))]
    read = read_gguf(a_file(tmp_path, entries=tuple(entries)))
    for kind, (_, value) in values.items():
        assert read.metadata[f"k{kind}"] == value
    assert read.metadata["array"].tolist() == [-1, 0, 1]
    assert read.metadata["texts"] == ["é", ""]
    assert read.metadata["text"] == "日本"


def test_another_alignment_is_followed(tiny_gguf: Tiny, tmp_path: Path) -> None:
    model = tiny_gguf()
    model.metadata["general.alignment"] = 256
    read = read_gguf(model.write(tmp_path / "model.gguf"))
    name = "blk.1.ffn_down.weight"
    rows = read.tensors[name].rows.view(np.float32)
    np.testing.assert_array_equal(rows, model.tensors[name])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "cannot be opened" in message(tmp_path / "none.gguf")


@pytest.mark.parametrize("start", [b"", b"GG", b"<!DOCTYPE html>", b"PK\x03\x04"])
def test_another_kind_of_file_is_named(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(start)
    assert f"not a GGUF file: it starts with {start[:4]!r}" in message(path)


@pytest.mark.parametrize("version", [0, 1, 4, 2**31])
def test_an_unknown_version_is_named(tmp_path: Path, version: int) -> None:
    assert f"GGUF version {version} is not known" in message(a_file(tmp_path, version=version))


def test_a_big_endian_file_is_named(tmp_path: Path) -> None:
    assert "a big-endian GGUF file" in message(a_file(tmp_path, version=3 << 24))


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"n_tensors": 2**62}, f"{2**62} tensors, but only"),
        ({"n_entries": 2**62}, f"{2**62} metadata entries, but only"),
        ({"n_entries": 1}, "bytes are left: truncated"),
        ({"entries": (struct.pack("<Q", 2**63) + b"key",)}, "truncated"),
        ({"entries": (entry("k", 8, struct.pack("<Q", 2**40)),)}, "bytes of 'k', but only"),
        ({"entries": (entry("k", 9, struct.pack("<IQ", 4, 2**50)),)}, "values of 'k', but only"),
        ({"entries": (entry("k", 9, struct.pack("<IQ", 8, 2**50)),)}, "values of 'k', but only"),
        ({"entries": (entry("k", 9, struct.pack("<IQ", 9, 1)),)}, "an array of type 9"),
        ({"entries": (entry("k", 13, b"\0" * 8),)}, "'k' has type 13"),
        ({"entries": (entry("k", 0, b"\0"),) * 2}, "metadata key 'k' is there twice"),
        ({"entries": (entry("k", 8, struct.pack("<Q", 1) + b"\xff"),)}, "not UTF-8"),
        ({"tensors": (tensor("t", ()),)}, "'t' has 0 dimensions"),
        ({"tensors": (tensor("t", (1,) * 5),)}, "'t' has 5 dimensions"),
        ({"tensors": (tensor("t", (0, 4)),)}, "'t' of type F32 cannot have shape [4, 0]"),
        ({"tensors": (tensor("t", (2**63, 2**63)),)}, "the file at"),
        ({"tensors": (tensor("t", (33, 2), kind=2),)}, "type Q4_0 cannot have shape [2, 33]"),
        ({"tensors": (tensor("t", (8,)),) * 2, "data": b"\0" * 64}, "'t' is there twice"),
        ({"tensors": (tensor("t", (8,), offset=64),), "data": b"\0" * 64}, "truncated"),
        ({"tensors": (tensor("t", (8,), offset=2**63),)}, "truncated"),
        ({"tensors": (tensor("t", (4,), offset=4),), "data": b"\0" * 64}, "no multiple of 32"),
        (
            {"tensors": (tensor("t", (16,)), tensor("u", (8,), 0, 32)), "data": b"\0" * 64},
            "tensors 't' and 'u' overlap",
        ),
    ],
)
def test_a_damaged_header_is_one_clear_error(
    tmp_path: Path, parts: dict[str, Any], what: str
) -> None:
    assert what in message(a_file(tmp_path, **parts))


@pytest.mark.parametrize("value", [0, 3, 24, 2**31 + 1])
def test_an_alignment_that_is_no_power_of_2_is_named(tmp_path: Path, value: int) -> None:
    path = a_file(tmp_path, entries=(entry("general.alignment", 4, struct.pack("<I", value)),))
    assert f"general.alignment is {value}" in message(path)


def test_tensor_types_that_cannot_be_read_are_all_listed(tmp_path: Path) -> None:
    tensors = tensor("a", (256,), 16), tensor("b", (256,), 16), tensor("c", (32,), 39)
    said = message(a_file(tmp_path, tensors=(*tensors, tensor("d", (1,), 99)), data=b"\0" * 999))
    assert "IQ2_XXS (2 tensors, first 'a')" in said
    assert "MXFP4 (1 tensors, first 'c')" in said
    assert "number 99 (1 tensors, first 'd')" in said


def test_a_part_of_a_split_model_is_named(tmp_path: Path) -> None:
    path = a_file(tmp_path, entries=(entry("split.count", 2, struct.pack("<H", 3)),))
    assert "one part of a model split over 3 files" in message(path)


def test_every_truncation_is_an_error(tiny_gguf: Tiny, tmp_path: Path) -> None:
    whole = tiny_gguf(letters=list("ab"), layers=1).write(tmp_path / "model.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    # The last tensor is padded to the alignment: cut into the numbers, not the padding.
    for length in [*range(0, 3000, 7), *range(3000, len(whole) - 32, 1501), len(whole) - 40]:
        cut.write_bytes(whole[:length])
        message(cut)


def test_absurd_counts_allocate_nothing(tmp_path: Path) -> None:
    paths = [{"n_tensors": 2**32}, {"n_entries": 2**40}]
    paths += [{"entries": (entry("k", 9, struct.pack("<IQ", kind, 2**30)),)} for kind in (0, 8)]
    tracemalloc.start()
    for parts in paths:
        message(a_file(tmp_path, **parts))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
