from types import SimpleNamespace

import numpy as np
import pytest
from coremltools.converters.mil.mil import types

from macai.coreml.weight_file import WeightFile
from macai.errors import OutputError


def constant(size: int, seed: int = 0) -> SimpleNamespace:
    values = np.random.default_rng(seed).standard_normal(size, np.float32)
    return SimpleNamespace(val=values, dtype=types.fp32, op=SimpleNamespace())


def write(path, *sizes):
    file = WeightFile(path, wide=True)
    for seed, size in enumerate(sizes):
        file.offset(constant(size, seed))
    file.close()


@pytest.mark.parametrize("sizes", [(50_000,), (1000, 50_000), (16_000, 400)])
def test_a_full_disk_is_an_output_error(tmp_path, small_disk, sizes):
    with pytest.raises(OutputError, match=r"weight\.bin: cannot be written") as caught:
        write(tmp_path / "weight.bin", *sizes)
    assert caught.value.hint == "is the disk full?"


def test_weights_that_fit_are_written_whole(tmp_path, small_disk):
    write(tmp_path / "weight.bin", 1000, 4000)
    assert (tmp_path / "weight.bin").stat().st_size >= 20_000


def test_a_file_without_weights_is_none(tmp_path):
    write(tmp_path / "weight.bin")
    assert not (tmp_path / "weight.bin").exists()
