"""The file of an adapter: what is written is read, by others too, and what is broken is refused."""

import contextlib
import json

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.coreml.adapter_file import AdapterFile, read_adapter_file, write_adapter_file
from macai.errors import AdapterError

BASE = {"weights": "ab", "tokenizer": "cd", "chat_template": "ef"}


def matrices(rank, *widths, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((rank, width)).astype(np.float16) for width in widths)


ADAPTER = AdapterFile(
    name="pirate ☠",
    base=BASE,
    layers={"model.layers.0.q_proj": matrices(3, 4, 6), "model.layers.0.o_proj": matrices(2, 6, 4)},
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.macaiadapter"
    write_adapter_file(path, ADAPTER)
    return path


def parts(file):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(file, header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return file


def test_what_is_written_is_read(file):
    adapter = read_adapter_file(file)
    assert (adapter.name, adapter.base, adapter.rank) == ("pirate ☠", BASE, 3)
    assert list(adapter.layers) == list(ADAPTER.layers)
    for path, pair in ADAPTER.layers.items():
        for own, wanted in zip(adapter.layers[path], pair, strict=True):
            np.testing.assert_array_equal(own, wanted)
    assert adapter.facts()["targets"] == ["o_proj", "q_proj"]


def test_it_is_a_safetensors_file_that_others_read(file):
    arrays, metadata = mx.load(str(file), format="safetensors", return_metadata=True)
    assert arrays["model.layers.0.q_proj.B"].shape == (3, 6)
    assert arrays["model.layers.0.q_proj.B"].dtype == mx.float16
    assert metadata["base.weights"] == "ab"
    assert metadata["rank"] == "3"


def test_it_is_hardly_larger_than_its_numbers(file):
    assert file.stat().st_size - 2 * (3 * 10 + 2 * 10) < 800
    assert (file.stat().st_size - len(parts(file)[1])) % 8 == 0


def test_a_second_writing_is_the_same_to_the_last_byte(file, tmp_path):
    write_adapter_file(tmp_path / "b", ADAPTER)
    assert (tmp_path / "b").read_bytes() == file.read_bytes()


def set_entry(key, value):
    return lambda h: h["model.layers.0.q_proj.A"].update({key: value})


def metadata(key, value):
    return lambda h: h["__metadata__"].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.pop("__metadata__"), "__metadata__"),
        (metadata("format", "pt"), "format 'pt', version '1'"),
        (metadata("version", "2"), "version '2'"),
        (metadata("name", 5), "sequence item"),
        (metadata("name", "\ud800"), "surrogates not allowed"),
        (lambda h: h["__metadata__"].pop("name"), "it has no 'name'"),
        (lambda h: h.pop("model.layers.0.q_proj.A"), "do not fill"),
        (set_entry("dtype", "F32"), r"q_proj.A' is F32 \[3, 4\]"),
        (set_entry("shape", [4, 3]), "two ranks"),
        (set_entry("shape", [3, 5]), "is not at 0 to 24"),
        (set_entry("shape", [1 << 70, 1 << 70]), "is not at 0 to 24"),
        (set_entry("shape", [-3, -4]), "is F16"),
        (set_entry("shape", [3.0, 4]), "is F16"),
        (set_entry("shape", [True, 12]), "is F16"),
        (set_entry("shape", [12]), "not enough values"),
        (set_entry("shape", None), "NoneType"),
        (set_entry("data_offsets", [0, 1 << 60]), "is not at 0 to"),
        (set_entry("data_offsets", [-24, 0]), "is F16"),
        (lambda h: h.update({"x": []}), "list indices"),
        (
            lambda h: h.update({"x": {"dtype": "F16", "shape": [0, 1], "data_offsets": [0, 0]}}),
            r"'x' \[0, 1\] is not at",
        ),
        (
            lambda h: h.update({"model.x.C": h.pop("model.layers.0.q_proj.A")}),
            "'model.layers.0.q_proj.A' is missing",
        ),
    ],
)
def test_a_wrong_header_is_one_clear_error(file, change, message):
    header, body = parts(file)
    change(header)
    with pytest.raises(AdapterError, match=message):
        read_adapter_file(rewrite(file, header, body))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"5", b"\xff\xfe{", b"[" * 100_000])
def test_a_header_that_is_no_object_is_one_clear_error(file, text):
    with pytest.raises(AdapterError, match="no adapter file"):
        read_adapter_file(rewrite(file, text, b""))


def test_a_header_beyond_the_file_or_all_sense_is_not_read(file):
    data = file.read_bytes()
    for length in (len(data), 1 << 40, (1 << 64) - 1):
        file.write_bytes(length.to_bytes(8, "little") + data[8:])
        with pytest.raises(AdapterError, match=f"a header of {length} bytes in {len(data)}"):
            read_adapter_file(file)


def test_a_file_cut_short_anywhere_is_refused(file):
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(AdapterError):
            read_adapter_file(file)
    file.write_bytes(data + b"\0\0")
    with pytest.raises(AdapterError, match="do not fill"):
        read_adapter_file(file)


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00, 0xFFFF])
def test_what_is_not_finite_is_refused(file, bits):
    header, body = parts(file)
    with pytest.raises(AdapterError, match=r"o_proj.B' is not finite"):
        read_adapter_file(rewrite(file, header, body[:-2] + bits.to_bytes(2, "little")))


@given(st.binary(max_size=64), st.integers(0, 400))
def test_noise_is_refused_or_read_and_never_a_crash(tmp_path_factory, noise, place):
    file = tmp_path_factory.mktemp("noise") / "a"
    write_adapter_file(file, ADAPTER)
    data = file.read_bytes()
    file.write_bytes(data[:place] + noise + data[place + len(noise) :])
    with contextlib.suppress(AdapterError):
        read_adapter_file(file)


def test_a_file_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(AdapterError, match="cannot be read: No such file"):
        read_adapter_file(tmp_path / "none")
