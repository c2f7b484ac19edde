import mlx.core as mx
import mlx.nn as nn
import pytest

from macai.errors import TrainingError
from macai.finetune_diffusion.result import BEST, load_best, save_best


def test_the_best_weights_come_back_and_damaged_ones_do_not(tmp_path):
    model, other = nn.Linear(8, 8), nn.Linear(8, 8)
    save_best(tmp_path, model)
    load_best(tmp_path, other)
    assert mx.array_equal(other.weight, model.weight)
    file = tmp_path / BEST
    whole = bytearray(file.read_bytes())
    whole[-5] ^= 1
    for content, said in ((whole, "damaged"), (whole[:-9], "cannot be read")):
        file.write_bytes(content)
        with pytest.raises(TrainingError, match=said) as caught:
            load_best(tmp_path, other)
        assert caught.value.hint
