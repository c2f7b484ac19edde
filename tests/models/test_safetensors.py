"""Headers of safetensors files: what is refused, and that nothing but our errors comes out."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macai.diffusion.loading.weights import open_weights
from macai.errors import FormatError, MacaiError
from macai.models.safetensors import read_safetensors


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def a_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def message(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        open_weights(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500 + len(str(path))
    return caught.value.message


def test_what_mlx_writes_is_read(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    arrays = {
        "half": mx.random.normal((3, 5)).astype(mx.float16),
        "brain": mx.random.normal((2, 3, 4)).astype(mx.bfloat16),
        "single": mx.random.normal((7,)),
        "whole": mx.arange(4),
        "one": mx.array(2.5),
        "none": mx.zeros((0, 3)),
    }
    mx.save_safetensors(str(file), arrays, metadata={"a": "b"})
    read = read_safetensors(file)
    assert read.metadata["a"] == "b"
    assert read.tensors.keys() == arrays.keys()
    for name, value in arrays.items():
        tensor = read.tensors[name]
        found = tensor.to_mlx(tensor.read())
        assert found.dtype == value.dtype
        assert found.shape == value.shape == tensor.shape
        assert mx.array_equal(found, value)


@pytest.mark.parametrize(
    ("dtype", "byte", "number"),
    [
        ("F8_E4M3", 0x38, 1.0),
        ("F8_E4M3", 0x7E, 448.0),
        ("F8_E4M3", 0x81, -(2.0**-9)),
        ("F8_E5M2", 0x3C, 1.0),
        ("F8_E5M2", 0x7B, 57344.0),
        ("F8_E5M2", 0x81, -(2.0**-16)),
    ],
)
def test_numbers_of_eight_bits_are_what_ocp_says(
    tmp_path: Path, dtype: str, byte: int, number: float
) -> None:
    file = a_file(tmp_path / "w.safetensors", {"a": entry([1], 0, 1, dtype)}, bytes([byte]))
    tensor = read_safetensors(file).tensors["a"]
    assert tensor.to_mlx(tensor.read()).item() == number


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("sign", [0, 1])
def test_one_number_that_is_not_finite_is_seen(tmp_path: Path, dtype: str, sign: int) -> None:
    nan = {
        "F8_E4M3": 0x7F, "F8_E5M2": 0x7D, "F16": 0x7E01, "BF16": 0x7FC0,
        "F32": 0x7FC00000, "F64": 0x7FF8 << 48,
    }[dtype]  # fmt: skip
    infinity = nan & ~{"F8_E5M2": 1, "F16": 0x3FF, "BF16": 0x7F}.get(dtype, 0)
    infinity = {"F32": 0x7F800000, "F64": 0x7FF0 << 48}.get(dtype, infinity)
    size = {"F8": 1, "F1": 2, "BF": 2, "F3": 4, "F6": 8}[dtype[:2]]
    sign_bit = sign << (8 * size - 1)
    rng = np.random.default_rng(0)
    for bad, finite in [(0, True), (nan, False), (infinity, False), (infinity - 1, True)]:
        words = [int(w) for w in rng.integers(0, nan & ~(nan >> 3), 50)]
        words = [w | int(rng.integers(2)) << (8 * size - 1) for w in words]
        words[17] = bad | sign_bit
        data = b"".join(w.to_bytes(size, "little") for w in words)
        file = tmp_path / "w.safetensors"
        a_file(file, {"a": entry([50], 0, len(data), dtype)}, data)
        tensor = read_safetensors(file).tensors["a"]
        numbers = np.array(tensor.to_mlx(tensor.read()).astype(mx.float32))
        if dtype != "F64":  # of which float32 has not all
            assert np.isfinite(numbers).all() == finite
        assert tensor.is_finite(tensor.read()) is finite


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": entry([2], 0, 8)}, b"\0" * 7, "ends at byte"),
        ({"a": entry([2], 0, 4)}, b"\0" * 4, "is 4 bytes long"),
        ({"a": entry([2**62, 2**62], 0, 4)}, b"\0" * 4, "is 4 bytes long"),
        ({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, b"\0" * 6, "overlap"),
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"\0" * 4, "overlap"),
        ({"a": entry([1], 0, 4), "b": entry([1], 6, 10)}, b"\0" * 10, "belong to none"),
        ({"a": entry([1], 2, 6)}, b"\0" * 6, "belong to none"),
        ({"a": entry([1], 0, 4)}, b"\0" * 9, "5 bytes after a belong to none"),
        ({"a": entry([1], 4, 0)}, b"\0" * 4, "no place"),
        ({"a": entry([1], -4, 0)}, b"\0" * 4, "no place"),
        ({"a": entry([1], 0, 10**30)}, b"\0" * 4, "no place"),
        ({"a": entry([-1], 0, 4)}, b"\0" * 4, "no shape"),
        ({"a": entry([True], 0, 4)}, b"\0" * 4, "no shape"),
        ({"a": entry([1.0], 0, 4)}, b"\0" * 4, "no shape"),  # type: ignore[list-item]
        ({"a": entry([1] * 40, 0, 4)}, b"\0" * 4, "no shape"),
        ({"a": entry([1], 0, 4, "F4")}, b"\0" * 4, "of type 'F4'"),
        ({"a": entry([1], 0, 4, ["F32"])}, b"\0" * 4, "of type"),  # type: ignore[arg-type]
        ({"a": {"dtype": "F32"}}, b"", "no shape"),
        ({"a": 3}, b"", "not described"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        ({"__metadata__": [1]}, b"", "__metadata__"),
        (b'{"a": ', b"", "not JSON"),
        (b"{\xff}", b"", "not JSON"),
        (b'{"a":1,"a":2}', b"", "twice"),
        (b"{" + b'"a":[' * 100_000, b"", "not JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", b"", "not JSON"),
        (b"[1, 2, 3]", b"", "not a safetensors file"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, header: Any, data: bytes, said: str) -> None:
    assert said in message(a_file(tmp_path / "w.safetensors", header, data))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a safetensors file"),
        (b"12345678", "not a safetensors file"),
        (b"<!DOCTYPE html><html>", "starts with b'<!DOCTYP'"),
        (b"\xff" * 64, "not a safetensors file"),
        (struct.pack("<Q", 1000) + b'{"a": 1', "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git-lfs"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    assert said in message(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "cannot be opened" in message(tmp_path / "none.safetensors")
    assert "cannot be opened" in message(tmp_path)


def test_a_file_that_shrinks_before_it_is_read_is_named(tmp_path: Path) -> None:
    file = a_file(tmp_path / "w.safetensors", {"a": entry([4], 0, 16)}, b"\0" * 16)
    tensor = read_safetensors(file).tensors["a"]
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(FormatError, match="ends inside a"):
        tensor.read()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "X"]) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 70), min_size=2, max_size=2) | JSON,
    }
)


@settings(max_examples=80)
@given(header=st.dictionaries(st.text(max_size=6), ENTRY | JSON, max_size=4) | JSON)
def test_only_our_errors_come_out_of_any_header(
    tmp_path_factory: pytest.TempPathFactory, header: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "hypothesis.safetensors"
    a_file(path, header, bytes(range(64)))
    try:
        read = read_safetensors(path)
    except MacaiError:
        return
    for tensor in read.tensors.values():
        assert tensor.read().nbytes <= 64


@pytest.mark.parametrize("count", [150, pytest.param(5_000, marks=pytest.mark.slow)])
def test_only_our_errors_come_out_of_a_damaged_file(tmp_path: Path, count: int) -> None:
    whole = tmp_path / "w.safetensors"
    arrays = {"a": mx.arange(6.0), "b": mx.ones((2, 3)).astype(mx.float16)}
    mx.save_safetensors(str(whole), arrays, metadata={"format": "pt"})
    data, rng, refused = whole.read_bytes(), random.Random(0), 0
    path = tmp_path / "damaged.safetensors"
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 5])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            for tensor in open_weights(path).tensors.values():
                tensor.read()
        except MacaiError:
            refused += 1
    assert refused > count * 0.6
