"""The rules against those of torch and transformers, step by step."""

import mlx.core as mx
import numpy as np
import pytest

from macai.models.arrays import named_arrays
from macai.train.optimizer import joined, make_optimizer, update
from tests.train.test_rules import OPTIONS, gradients

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]


def theirs(name, arrays, steps):
    """The arrays after the steps, by the other's optimiser."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tensors = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in arrays.items()}
    rate, betas = OPTIONS["learning_rate"], (OPTIONS["beta1"], OPTIONS["beta2"])
    make = {
        "adamw": lambda p: torch.optim.AdamW(p, rate, betas=betas, weight_decay=0.1),
        "adafactor": lambda p: transformers.Adafactor(
            p, rate, weight_decay=0.1, scale_parameter=False, relative_step=False
        ),
        "muon": lambda p: torch.optim.Muon(
            p, rate, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
        ),
    }
    optimizer = make[name](list(tensors.values()))
    for grads in steps:
        for key, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[key])
        optimizer.step()
    return {k: v.detach().numpy() for k, v in tensors.items()}


# torch's Muon computes its products in bfloat16.
@pytest.mark.parametrize(
    ("name", "tolerance"), [("adamw", 1e-6), ("adafactor", 1e-5), ("muon", 3e-2)]
)
def test_a_rule_takes_the_steps_of_torch(adapted, name, tolerance):
    model = adapted()
    steps = gradients(model)
    before = {k: np.array(v) for k, v in named_arrays(model.trainable_parameters()).items()}
    optimizer = make_optimizer(name, model, **OPTIONS)
    for grads in steps:
        update(optimizer, model, joined({k: mx.array(v) for k, v in grads.items()}))
    expected = theirs(name, before, steps)
    for key, array in named_arrays(model.trainable_parameters()).items():
        moved = expected[key] - before[key]
        error = np.linalg.norm(np.array(array) - expected[key]) / np.linalg.norm(moved)
        assert error < tolerance, key
