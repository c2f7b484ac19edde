"""How logits of a package and of MLX are compared."""

import numpy as np

from macai.bench.architectures import LISTED, build, compared, config_of

ONES = np.ones(4, np.float32)


def test_the_worst_position_counts():
    found = compared([ONES, ONES], [ONES, ONES * [1, 1, 1, 2]])
    assert 0.9 < found.cosine < 0.95
    assert found.error == 0.5


def test_what_is_no_number_is_no_agreement():
    assert not compared([ONES, ONES * np.nan], [ONES, ONES]).cosine >= 0.9
    assert not compared([ONES, ONES * np.nan], [ONES, ONES]).error <= 1


def test_a_model_is_built_as_mlx_lm_builds_it():
    model = build(config_of("mistral", LISTED["mistral"]))
    assert type(model).__module__ == "mlx_lm.models.llama"
    assert model.layers[0].self_attn.q_proj.weight.shape == (4 * 24, 64)
