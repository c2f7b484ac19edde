"""U-Nets and ControlNets against diffusers, live: the same weights and inputs, in float32."""

import gc
import math

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.models.layout import to_mlx, to_torch
from macai.diffusion.models.transformer_2d import Transformer2DModel
from macai.models.arrays import named_arrays
from tests.diffusion.models.text_vae_cases import loaded, psnr, random_weights
from tests.diffusion.models.unet_cases import (
    CONTROLNET,
    FULL_SIZE,
    KINDS,
    PARAMETERS,
    REFINER,
    SD1,
    SD2,
    XL,
    inputs_of,
    model_of,
    outputs_of,
    torch_model,
    torch_outputs,
    uniform_weights,
)

pytestmark = [
    pytest.mark.oracle,
    # What torch and diffusers say about themselves is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]

LEAST = 100  # dB


@pytest.fixture(autouse=True)
def one_thread():
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(config, seed=5):
    """Return diffusers' model and macai's with the same weights, others than the golden's."""
    shapes = {n: tuple(t.shape) for n, t in torch_model(config).state_dict().items()}
    weights = random_weights(shapes, seed)
    return torch_model(config, weights), loaded(model_of(config), weights)


def worst(ours, theirs):
    return min(psnr(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_of_each_kind_answers_what_diffusers_does(kind, record_property):
    theirs, ours = pair(KINDS[kind])
    inputs = inputs_of(KINDS[kind], size=(8, 16), tokens=77)
    found = worst(outputs_of(ours, inputs), torch_outputs(theirs, inputs))
    record_property("dB", float(found))
    assert found > LEAST


@pytest.mark.parametrize("size", [(9, 8), (40, 24), (7, 5), (10, 13), (1, 3)])
def test_latents_of_any_size_come_back_in_that_size(size, record_property):
    theirs, ours = pair(KINDS["sd2"])
    inputs = inputs_of(KINDS["sd2"], size=size)
    found = worst(outputs_of(ours, inputs), torch_outputs(theirs, inputs))
    record_property("dB", float(found))
    assert found > LEAST


@pytest.mark.parametrize("size", [(8, 8), (9, 5)])
def test_a_unet_with_a_controlnet_answers_what_diffusers_does(size, record_property):
    unets = pair(KINDS["sd1"] | {"layers_per_block": 1})
    nets = pair(KINDS["controlnet"])
    inputs = inputs_of(KINDS["controlnet"], size=size)
    own = {k: v for k, v in inputs.items() if k != "controlnet_cond"}
    *down, middle = torch_outputs(nets[0], inputs, conditioning_scale=0.7)
    import torch

    as_torch = [torch.from_numpy(one).permute(0, 3, 1, 2) for one in (*down, middle)]
    wanted = torch_outputs(
        unets[0],
        own,
        down_block_additional_residuals=as_torch[:-1],
        mid_block_additional_residual=as_torch[-1],
    )
    residuals, at_middle = nets[1](
        **{k: mx.array(v) for k, v in inputs.items()}, conditioning_scale=0.7
    )
    got = outputs_of(
        unets[1],
        own,
        down_block_additional_residuals=residuals,
        mid_block_additional_residual=at_middle,
    )
    found = min(worst(got, wanted), worst([*residuals, at_middle], [*down, middle]))
    record_property("dB", float(found))
    assert found > LEAST


def test_the_transformers_norm_has_its_own_epsilon():
    import torch
    from diffusers.models.transformers.transformer_2d import Transformer2DModel as Theirs

    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 16,
        "num_layers": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 12,
    }
    ours, theirs = Transformer2DModel(**sizes), Theirs(**sizes).eval()
    weights = random_weights({n: tuple(t.shape) for n, t in theirs.state_dict().items()})
    theirs.load_state_dict({n: torch.from_numpy(a) for n, a in weights.items()})
    loaded(ours, weights)
    rng = np.random.default_rng(0)
    # So faint that epsilon is as large as the variance.
    faint = 1e-3 * rng.standard_normal((2, 4, 4, 16)).astype(np.float32)
    states = rng.standard_normal((2, 5, 12)).astype(np.float32)
    with torch.no_grad():
        x = torch.from_numpy(faint).permute(0, 3, 1, 2).contiguous()
        wanted = theirs(x, torch.from_numpy(states), return_dict=False)[0]
    got = ours(mx.array(faint), mx.array(states))
    assert psnr(got, wanted.permute(0, 2, 3, 1).numpy()) > LEAST


@pytest.mark.parametrize("name", FULL_SIZE)
def test_parameters_of_the_full_size_model_have_diffusers_names_and_shapes(name):
    theirs = {n: tuple(t.shape) for n, t in torch_model(FULL_SIZE[name]).state_dict().items()}
    ours = to_torch(named_arrays(model_of(FULL_SIZE[name]).parameters()))  # not evaluated
    assert {n: a.shape for n, a in ours.items()} == theirs
    total = sum(math.prod(shape) for shape in theirs.values())
    assert total == PARAMETERS.get(name, total)


def compare_in_turn(config, **sizes):
    """Return the dB of one forward; never holds both models' weights at once."""
    shapes = {n: tuple(t.shape) for n, t in torch_model(config).state_dict().items()}
    weights = uniform_weights(shapes)
    inputs = inputs_of(config, batch=1, tokens=77, **sizes)
    theirs = torch_model(config, weights)
    wanted = torch_outputs(theirs, inputs)
    del theirs
    gc.collect()
    ours = model_of(config)
    for name in list(weights):
        (converted,) = to_mlx({name: weights.pop(name)}).items()
        mx.eval(converted[1])
        ours.load_weights([converted], strict=False)
    assert all(0.05 < np.std(one) < 20 for one in wanted)  # or the weights hide what they do
    return worst(outputs_of(ours, inputs), wanted)


@pytest.mark.long
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(SD1, id="sd1"),
        pytest.param(SD2, id="sd2"),
        pytest.param(CONTROLNET, id="controlnet"),
        pytest.param(XL | {"transformer_layers_per_block": [1, 1, 2]}, id="xl-shallow"),
        pytest.param(
            REFINER | {"transformer_layers_per_block": 1, "layers_per_block": 1},
            id="refiner-shallow",
        ),
    ],
)
def test_a_model_of_full_width_answers_what_diffusers_does(config, record_property):
    found = compare_in_turn(config, size=(64, 64))
    record_property("dB", float(found))
    print(f"{found:.1f} dB")
    assert found > LEAST
