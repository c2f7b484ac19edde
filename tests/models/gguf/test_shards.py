import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from macai.models.gguf.shards import Output, write_shards


def outputs() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"a.weight": (3, 5), "b.weight": (40, 8), "c.weight": (7,), "d.weight": (16, 16)}
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def as_outputs(arrays: dict[str, np.ndarray]) -> list[Output]:
    def pieces(array: np.ndarray):
        return lambda: (row.tobytes() for row in array)

    return [Output(name, "F32", a.shape, pieces(a)) for name, a in arrays.items()]


def test_one_file_reads_back(tmp_path: Path) -> None:
    arrays = outputs()
    names: list[str] = []
    write_shards(tmp_path, as_outputs(arrays), lambda output: names.append(output.name))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert names == list(arrays)
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


def test_shards_hold_everything_once_and_the_index_finds_it(tmp_path: Path) -> None:
    arrays = outputs()
    write_shards(tmp_path, as_outputs(arrays), lambda _: None, max_shard_bytes=1300)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ]
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays.values())
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    for name, array in arrays.items():
        np.testing.assert_array_equal(load_file(tmp_path / index["weight_map"][name])[name], array)


def test_a_tensor_larger_than_a_shard_gets_its_own(tmp_path: Path) -> None:
    arrays = outputs()
    write_shards(tmp_path, as_outputs(arrays), lambda _: None, max_shard_bytes=100)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(arrays)
