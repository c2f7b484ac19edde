"""Checkpoints of torch: what is in them, and that hostile ones run nothing.

Long because each hostile file is made by hand, from the same few pieces of pickle.
"""

import builtins
import io
import os
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macai.diffusion.loading import pickle_machine
from macai.diffusion.loading.pickle_machine import Machine
from macai.diffusion.loading.unpickle import read_torch
from macai.diffusion.loading.weights import open_weights
from macai.errors import FormatError, MacaiError, ModelError
from tests.diffusion.loading.cases import GOLDENS, torch_pickle, write_archive

FORMATS = ["zip", "legacy"]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS / "torch_files.npz"))


def message(path: Path, kind: type[MacaiError] = FormatError) -> str:
    with pytest.raises(kind) as caught:
        open_weights(path)
    text = caught.value.message
    assert str(path) in text
    assert text.isprintable()
    assert len(text) < 600 + len(str(path))
    return text


@pytest.mark.parametrize("kind", FORMATS)
def test_every_tensor_of_torch_is_read(
    golden: dict[str, np.ndarray], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(golden[kind].tobytes())
    read = open_weights(path)
    assert read.numbers == {"global_step": 875000, "epoch": 3}
    values = {k.removeprefix("value/"): v for k, v in golden.items() if k.startswith("value/")}
    assert read.tensors.keys() == values.keys()
    for name, value in values.items():
        tensor = read.tensors[name]
        bits = tensor.read()
        found = tensor.to_mlx(bits)
        assert tensor.is_finite(bits)
        assert tensor.shape == value.shape == found.shape
        np.testing.assert_array_equal(np.array(found.astype(mx.float32)), value, err_msg=name)
    assert read.tensors["bfloat16"].dtype == "BF16"
    # One storage, seen four ways.
    places = {read.tensors[n].begin for n in ("shared", "transposed", "stepped")}
    assert len(places) == 2


def test_opening_reads_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    pickled, members = torch_pickle({"a": np.zeros((1000, 4000), np.float32)})
    write_archive(path, pickled, members)
    tracemalloc.start()
    read_torch(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


# What each is called: by pickles for Python 3, and by those for Python 2.
HOSTILE = {
    "posix.system": "posix.system",
    "builtins.eval": "__builtin__.eval",
    "builtins.exec": "__builtin__.exec",
    "builtins.__import__": "__builtin__.__import__",
    "builtins.getattr": "__builtin__.getattr",
    "io.open": "io.open",
    "_pickle.loads": "pickle.loads",
}


def hostile(name: str, marker: Path) -> Calls:
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "posix.system": Calls(os.system, f"touch {marker}"),
        "builtins.eval": Calls(eval, code),
        "builtins.exec": Calls(exec, code),
        "builtins.__import__": Calls(builtins.__import__, "os"),
        "builtins.getattr": Calls(getattr, Calls(getattr, "x", "upper"), "__call__"),
        "io.open": Calls(open, str(marker), "w"),
        "_pickle.loads": Calls(pickle.loads, pickle.dumps(Calls(open, str(marker), "w"))),
    }[name]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", HOSTILE)
def test_no_function_is_run(tmp_path: Path, name: str, protocol: int) -> None:
    marker, path = tmp_path / "ran", tmp_path / "model.ckpt"
    pickled = pickle.dumps(OrderedDict(weight=hostile(name, marker)), protocol)
    write_archive(path, pickled)
    said = name if protocol >= 3 else HOSTILE[name]
    assert f"it wants to run {said}, which no weights need" in message(path, ModelError)
    assert not marker.exists()


def test_a_name_is_refused_before_anything_else_happens(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    write_archive(path, b"cos\nsystem\n(Vtouch x\ntR.")
    assert "it wants to run os.system" in message(path, ModelError)


def test_what_is_said_of_a_strange_name_can_be_printed(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    write_archive(path, pickle.dumps(None)[:-2] + b"\x8c\x05a\nb\x1bc\x8c\x02\r!\x93.")
    assert "it wants to run a?b?c.?!" in message(path, ModelError)


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"


def a_tensor(storage: bytes, offset: bytes, shape: bytes, strides: bytes) -> bytes:
    return b"\x80\x02}X\x01\0\0\0a" + TENSOR + b"(" + storage + offset + shape + strides + b"tRs."


TWO = b"K\x02\x85"
ONE = b"K\x01\x85"
HUGE = b"\x8a\x08" + (1 << 60).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (a_tensor(STORAGE, b"K\x03", TWO, ONE), "outside its storage"),
        (a_tensor(STORAGE, b"K\x00", TWO, b"K\x04\x85"), "outside its storage"),
        (a_tensor(STORAGE, b"K\x00", HUGE + b"\x85", b"K\x00\x85"), "a shape that cannot be"),
        (a_tensor(STORAGE, b"K\x00", b"K\x05\x85", b"K\x00\x85"), "outside its storage"),
        (a_tensor(STORAGE, b"J\xff\xff\xff\xff", TWO, ONE), "an offset"),
        (a_tensor(STORAGE, b"K\x00", b"J\xfe\xff\xff\xff\x85", ONE), "a shape"),
        (a_tensor(STORAGE, b"K\x00", TWO, b"J\xff\xff\xff\xff\x85"), "strides"),
        (a_tensor(STORAGE, b"K\x00", TWO, b")"), "strides"),
        (a_tensor(STORAGE, b"\x88", TWO, ONE), "an offset"),
        (a_tensor(STORAGE, b"K\x00", b"K\x02", ONE), "a shape"),
        (a_tensor(b"K\x07", b"K\x00", TWO, ONE), "a tensor of no storage"),
        (a_tensor(b"K\x07K\x07Q", b"K\x00", TWO, ONE), "persistent id"),
        (b"\x80\x02" + TENSOR + b"(tR.", "arguments that cannot be"),
        (b"\x80\x02ctorch\nFloatStorage\n(tR.", "calls a StorageType"),
        (b"\x80\x02K\x01(tR.", "calls a int"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01R.", "calls a Named"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "not of pairs"),
        (b"\x80\x02ctorch\nSize\n(X\x01\0\0\0atR.", "arguments that cannot be"),
        (b"\x80\x02}K\x01b.", "holds no|no tensors"),
        (b"\x80\x02K\x01K\x01b.", "gives attributes to a int"),
        (b"\x80\x02R.", "empty stack"),
        (b"\x80\x02(R.", "empty stack"),
        (b"\x80\x02u.", "did not begin"),
        (b"\x80\x02}(K\x01u.", "a key without a value"),
        (b"\x80\x02](K\x01K\x02u.", "fills a list as if it were a dict"),
        (b"\x80\x02}K\x01a.", "fills a dict as if it were a list"),
        (b"\x80\x02j\xff\xff\xff\xff.", "did not say before"),
        (b"\x80\x02}r\xff\xff\xff\xff.", "no tensors"),
        (b"\x80\x02", "exhausted|no end"),
        (b"\x80\x02}", "exhausted|no end"),
        (b"\x80\x02\xff.", "cannot be taken apart"),
        (b"\x80\x02X\xff\xff\xff\x7fa.", "cannot be taken apart"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa.", "cannot be taken apart"),
        (b"\x80\x02\x8b\xff\xff\xff\x7fa.", "cannot be taken apart"),
        (b"I" + b"9" * 10_000 + b"\n.", "cannot be taken apart"),
        (b"S'\\o'\n.", "holds a str"),
        (b"\x80\x02(ios\nsystem\n.", "opcode INST"),
        (b"\x80\x02(cos\nsystem\no.", "os.system"),
        (b"\x80\x02(ccollections\nOrderedDict\no.", "opcode OBJ"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
        (b"\x80\x02K\x01.", "holds a int, not tensors by name"),
        (b"\x80\x02}.", "no tensors in it"),
        (b"\x80\x04K\x01K\x02\x93.", "a name that is no text"),
        (b"0.", "empty stack"),
    ],
)
def test_a_pickle_that_cannot_be_is_refused(tmp_path: Path, pickled: bytes, said: str) -> None:
    path = write_archive(tmp_path / "m.ckpt", pickled, {"archive/data/0": b"\0" * 16})
    text = message(path, ModelError)
    assert any(part in text for part in said.split("|")), text


def test_a_dict_of_tuples_that_take_for_ever_to_hash_is_refused(tmp_path: Path) -> None:
    doubled = b"\x80\x02})q\x00" + b"h\x00\x86q\x00" * 60 + b"K\x01s."
    path = write_archive(tmp_path / "m.ckpt", doubled)
    assert "has a tuple as a key" in message(path)


def test_a_pickle_of_ever_deeper_lists_is_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b"."
    path = write_archive(tmp_path / "m.ckpt", deep)
    assert "holds a list" in message(path)
    monkeypatch.setattr(pickle_machine, "MAX_OPCODES", 100_000)
    assert "more than 100000 opcodes" in message(path)


def test_what_is_said_once_and_used_over_and_over_costs_nothing(tmp_path: Path) -> None:
    times = 1000
    pairs = b"".join(b"(X\x04\0\0\0%04dNt" % n for n in range(times))
    many = b"(" + pairs + b"l"
    built = b"ccollections\nOrderedDict\nq\x01"
    used = b"h\x01h\x00\x85R" * times  # all of them kept
    pickled = b"\x80\x02" + many + b"q\x00" + built + used + b"h\x01h\x00\x85R."
    path = write_archive(tmp_path / "m.ckpt", pickled)
    tracemalloc.start()
    assert "no tensors in it" in message(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    long = b"(" + b"K\x01" * times + b"tq\x00"
    for call, said in ((b"cnumpy\ndtype\n", "1000 arguments"), (b"ctorch\nSize\n", "1000")):
        path = write_archive(tmp_path / "m.ckpt", b"\x80\x02" + long + call + b"h\x00R.")
        assert said in message(path)
    path = write_archive(tmp_path / "m.ckpt", b"\x80\x02" + long + b"ctorch\nSize\nh\x00\x85R.")
    assert "not of lengths" in message(path)


def test_a_list_that_holds_itself_is_no_harm(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "m.ckpt", b"\x80\x02]q\x00h\x00a.")
    assert "holds a list" in message(path)


def test_a_storage_that_is_not_all_there_is_refused(tmp_path: Path) -> None:
    pickled = a_tensor(STORAGE, b"K\x00", TWO, ONE)
    path = tmp_path / "m.ckpt"
    write_archive(path, pickled, {"archive/data/0": b"\0" * 12})
    assert "12 bytes for 4 numbers" in message(path)
    write_archive(path, pickled)
    assert "'0' is not in it" in message(path)
    # Absurd sizes cost nothing.
    absurd = STORAGE.replace(b"K\x04tQ", b"\x8a\x06" + (1 << 45).to_bytes(6, "little") + b"tQ")
    shape = b"\x8a\x06" + (1 << 45).to_bytes(6, "little") + b"\x85"
    write_archive(path, a_tensor(absurd, b"K\x00", shape, ONE), {"archive/data/0": b"\0" * 16})
    assert "16 bytes for" in message(path)


def test_a_name_that_leads_out_of_the_archive_leads_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 16)
    key = f"../../../../../..{secret}".encode()
    away = STORAGE.replace(b"X\x01\0\0\x000", b"X" + struct.pack("<I", len(key)) + key)
    path = write_archive(tmp_path / "m.ckpt", a_tensor(away, b"K\x00", TWO, ONE))
    assert "is not in it" in message(path)
    # Even where there is such a member, it is one of the archive's.
    name = f"archive/data/{key.decode()}"
    write_archive(path, a_tensor(away, b"K\x00", TWO, ONE), {name: b"\x01\0\0\0" * 4})
    read = open_weights(path).tensors["a"].read()
    assert read.view(np.int32).tolist() == [1, 1]
    assert {p.name for p in tmp_path.iterdir()} == {"secret", "m.ckpt"}


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    pickled, members = torch_pickle({"a": np.zeros(100, np.float32)})
    path = tmp_path / "m.ckpt"
    for squeezed in ("archive/data.pkl", "archive/data/0"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in {"archive/data.pkl": pickled, **members}.items():
                kind = zipfile.ZIP_DEFLATED if name == squeezed else zipfile.ZIP_STORED
                archive.writestr(name, data, kind)
        assert f"{squeezed} in it is compressed" in message(path)


def test_a_bomb_is_refused_before_it_swells(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"]" * (50 << 20))
    tracemalloc.start()
    assert "compressed" in message(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_directory_of_absurd_length_is_not_read(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "m.ckpt", b"N.")
    data = bytearray(path.read_bytes())
    data = bytearray(b"PK\x03\x04") + b"\0" * (80 << 20) + data[-22:]
    data[-10:-6] = struct.pack("<I", 80 << 20)
    data[-6:-2] = struct.pack("<I", 4)
    path.write_bytes(data)
    tracemalloc.start()
    assert "a directory of" in message(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"archive/version": b"3"}, "no data.pkl in it"),
        ({"a/data.pkl": b"N.", "b/data.pkl": b"N."}, "no data.pkl in it"),
        ({"a/b/data.pkl": b"N."}, "no data.pkl in it"),
        ({"a/data.pkl": b"N.", "a/byteorder": b"big"}, "big-endian"),
        ({"a/data.pkl": b"N" * (17 << 20) + b"."}, "17825793 bytes"),
    ],
)
def test_another_kind_of_archive_is_named(
    tmp_path: Path, members: dict[str, bytes], said: str
) -> None:
    path = tmp_path / "m.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert said in message(path)


def test_a_name_that_is_twice_in_the_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data.pkl", b"N.")
    assert "twice" in message(path)


def test_a_pickle_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    path.write_bytes(pickle.dumps({"a": np.zeros(3)}))
    assert "not one that torch.save wrote" in message(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_checkpoint_is_named(
    golden: dict[str, np.ndarray], tmp_path: Path, kind: str
) -> None:
    path, data = tmp_path / "m.ckpt", golden[kind].tobytes()
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        message(path)


@pytest.mark.parametrize("count", [150, pytest.param(5_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FORMATS)
def test_only_our_errors_come_out_of_a_damaged_checkpoint(
    golden: dict[str, np.ndarray], tmp_path: Path, kind: str, count: int
) -> None:
    data, rng, refused = golden[kind].tobytes(), random.Random(1), 0
    path = tmp_path / "m.ckpt"
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed)
        refused += not harmless(path)
    assert refused > count * 0.25


def harmless(path: Path) -> bool:
    """Open a file and read it all; whether there was nothing to complain of."""
    try:
        for tensor in open_weights(path).tensors.values():
            assert tensor.read().nbytes <= path.stat().st_size
    except MacaiError:
        return False
    return True


CODES = [bytes([code]) for code in b"(.0129FGHIJKLMNPQRSTUVX]abcdeghijlopqrstu})\x80\x81\x82\x85"]
CODES += [bytes([code]) for code in b"\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94"]
PIECES = st.sampled_from(
    [*CODES, b"K\x01", b"K\x02", TENSOR, STORAGE, TWO, b"X\x01\0\0\0a", b"q\x00", b"h\x00",
     b"ccollections\nOrderedDict\n", b"ctorch\nHalfStorage\n", b"cnumpy\ndtype\n", b"\x8c\x01a"]
) | st.binary(max_size=6)  # fmt: skip


@settings(max_examples=80)
@given(pieces=st.lists(PIECES, max_size=30))
def test_only_our_errors_come_out_of_any_pickle(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "hypothesis.ckpt"
    write_archive(path, b"\x80\x02" + b"".join(pieces) + b".", {"archive/data/0": b"\0" * 16})
    harmless(path)


def test_a_pickle_is_left_where_it_ends(golden: dict[str, np.ndarray]) -> None:
    stream = io.BytesIO(pickle.dumps([1, "a", None], 2) + pickle.dumps({"b": (2.5, True)}, 4))
    assert Machine(Path("x"), {}).run(stream) == [1, "a", None]
    assert Machine(Path("x"), {}).run(stream) == {"b": (2.5, True)}
    assert stream.read() == b""


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_what_pickle_says(protocol: int) -> None:
    value = {
        "none": None, "yes": True, "no": False, "numbers": [0, 255, 256, -1, 70000, 2**70],
        "real": [0.5, -1e300], "text": ["", "é\n日本", "a" * 300], "nested": {"a": {"b": ((1,),)}},
        "tuples": [(1, 2), (1, 2, 3), (1, 2, 3, 4)], 3: {}, "same": (both := [1]), "again": both,
    }  # fmt: skip
    found = Machine(Path("x"), {}).run(io.BytesIO(pickle.dumps(value, protocol)))
    assert found == value
    assert found["same"] is found["again"]
