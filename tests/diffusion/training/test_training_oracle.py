"""A step's loss and gradient, and what a run leaves, against diffusers, transformers and PEFT."""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.diffusion.loading import open_checkpoint
from macai.diffusion.lora.apply import attach
from macai.diffusion.lora.formats import read_lora
from macai.diffusion.lora.layers import adapted, layers_of
from macai.diffusion.lora.names import target_paths
from macai.diffusion.lora.training import add_lora
from macai.diffusion.models.layout import to_torch
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline, Request
from macai.diffusion.training.losses import (
    Denoising,
    DenoisingBatch,
    PixelBatch,
    autoencoder_loss,
    denoising_loss,
)
from macai.diffusion.training.noising import Noising
from macai.finetune_diffusion import finetune_diffusion
from macai.finetune_diffusion.result import DIFFUSERS
from macai.models.arrays import named_arrays
from macai.recipe.diffusion import (
    Batch,
    Diffusion,
    DiffusionRecipe,
    Lora,
    Optimizer,
    Train,
)
from tests.diffusion import tiny
from tests.diffusion.lora.lora_oracle import without_version_check
from tests.diffusion.training.small import SIZE, VAE, model_dir, models, picture_dir
from tests.diffusion.training.training_oracle import (
    BATCH,
    TIMES,
    golden,
    numbers,
    read_golden,
    step,
)

pytestmark = [
    pytest.mark.oracle,
    # What torch, diffusers and PEFT say about themselves is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]

CASES = {
    "epsilon": ("epsilon", {}),
    "velocity": ("v_prediction", {}),
    "min-SNR": ("epsilon", {"gamma": 5.0}),
    "min-SNR of velocity": ("v_prediction", {"gamma": 5.0}),
    "prior preservation": ("epsilon", {"prior": 0.3}),
}
LEAST = 80  # dB


@pytest.fixture(autouse=True)
def one_thread():
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    torch.set_num_threads(1)
    without_version_check()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_dir(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return picture_dir(tmp_path_factory.mktemp("pictures") / "p")


def torch_unet(folder):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(folder / "unet")


def batch(prediction, gamma=0.0, prior=None):
    """The batch of `training_oracle.step`, made here."""
    noising = Noising(tiny.SCHEDULER | {"prediction_type": prediction})
    given = {name: mx.array(array) for name, array in numbers().items()}
    weights = noising.weights(TIMES, gamma)
    if prior is not None:
        weights[BATCH // 2 :] *= prior
    return DenoisingBatch(
        noisy=noising.noisy(given["latents"], given["noise"], TIMES),
        target=noising.target(given["latents"], given["noise"], TIMES),
        timesteps=mx.array(TIMES.astype(np.float32)),
        weights=mx.array(weights),
        hidden=given["hidden"],
        pooled=None,
        ids=(),
        time_ids=None,
        images=BATCH if prior is None else BATCH // 2,
    )


def far(ours, theirs):
    """The largest difference, relative to the largest number."""
    assert ours.keys() == theirs.keys()
    most = max(np.abs(a).max() for a in theirs.values())
    return max(np.abs(ours[name] - a).max() for name, a in theirs.items()) / most


def decibels(ours, theirs):
    error = np.mean((ours.astype(np.float64) - theirs) ** 2)
    return 10 * np.log10(np.ptp(theirs) ** 2 / error)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_of_a_unet_are_those_of_diffusers(case, folder, record_property):
    prediction, options = CASES[case]
    theirs = torch_unet(folder)
    wanted = step(theirs, prediction, **options)
    wanted.backward()
    model = Denoising(models().models["unet"], [])
    own = batch(prediction, **options)
    loss, grads = nn.value_and_grad(model, denoising_loss)(model, own)
    ours = to_torch(named_arrays(grads["unet"]))
    found = far(
        {name: np.array(array) / own.images for name, array in ours.items()},
        {name: p.grad.numpy() for name, p in theirs.named_parameters()},
    )
    record_property("gradient", float(found))
    assert abs(loss.item() / own.images / wanted.item() - 1) < 1e-5
    assert found < 1e-5


def test_the_gradient_of_a_text_encoder_is_that_of_transformers(folder):
    import torch
    from transformers import CLIPTextModel

    unet, text = torch_unet(folder), CLIPTextModel.from_pretrained(folder / "text_encoder")
    ids = np.array([[512, 5, 6, 513] + [513] * 8] * BATCH, np.int32)
    hidden = text(torch.from_numpy(ids).long()).last_hidden_state
    before = numbers()["hidden"].copy()
    own = batch("epsilon")
    noisy = torch.from_numpy(np.array(own.noisy)).permute(0, 3, 1, 2)
    target = torch.from_numpy(np.array(own.target)).permute(0, 3, 1, 2)
    predicted = unet(noisy, torch.from_numpy(TIMES).long(), hidden).sample
    torch.nn.functional.mse_loss(predicted, target).backward()
    made = models().models
    model = Denoising(made["unet"], [made["text_encoder"]])
    own = replace(own, hidden=None, ids=[mx.array(ids)])
    _, grads = nn.value_and_grad(model, denoising_loss)(model, own)
    ours = {
        n.removeprefix("text_model."): a for n, a in named_arrays(grads["text_encoders"][0]).items()
    }
    found = far(
        {name: np.array(array) / BATCH for name, array in ours.items()},
        {n.removeprefix("text_model."): p.grad.numpy() for n, p in text.named_parameters()},
    )
    assert found < 1e-5
    assert np.array_equal(before, numbers()["hidden"])


def test_the_gradient_of_a_lora_is_that_of_peft(folder, record_property):
    import torch
    from peft import LoraConfig

    unet = models().models["unet"]
    paths = target_paths(layers_of({"unet": unet})["unet"], "linear")
    add_lora(unet, paths, name="x", rank=3, alpha=6)
    rng = np.random.default_rng(1)
    for layer in adapted(unet).values():
        (branch,) = layer.branches
        branch.lora_B = mx.array(rng.standard_normal(branch.lora_B.shape).astype(np.float32)) * 0.1
    theirs = torch_unet(folder)
    theirs.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=paths), adapter_name="x")
    factors = dict(theirs.named_parameters())
    wanted, ours = {}, {}
    for path, layer in adapted(unet).items():
        (branch,) = layer.branches
        for name in ("lora_A", "lora_B"):
            parameter = factors[f"{path}.{name}.x.weight"]
            value = np.array(getattr(branch, name))
            parameter.data = torch.from_numpy(
                value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
            ).reshape(parameter.shape)
    step(theirs, "epsilon", gamma=5.0).backward()
    model = Denoising(unet, [])
    _, grads = nn.value_and_grad(model, denoising_loss)(model, batch("epsilon", gamma=5.0))
    arrays = named_arrays(grads["unet"])
    for path in adapted(unet):
        for name in ("lora_A", "lora_B"):
            key = f"{path}.{name}"
            wanted[key] = factors[f"{key}.x.weight"].grad.numpy().reshape(-1)
            ours[key] = np.array(arrays[f"{path}.branches.0.{name}"]).reshape(-1) / BATCH
    assert len(arrays) == len(wanted) == 96
    found = far(ours, wanted)
    record_property("gradient", float(found))
    assert found < 1e-5


def test_loss_and_gradient_of_an_autoencoder_are_torch_s(folder):
    import torch
    import torch.nn.functional as F
    from diffusers import AutoencoderKL

    rng = np.random.default_rng(2)
    pixels = rng.uniform(-1, 1, (2, SIZE, SIZE, 3)).astype(np.float32)
    noise = rng.standard_normal((2, SIZE // 2, SIZE // 2, 4)).astype(np.float32)
    theirs = AutoencoderKL.from_pretrained(folder / "vae")
    x, eps = (torch.from_numpy(a).permute(0, 3, 1, 2) for a in (pixels, noise))
    posterior = theirs.encode(x).latent_dist
    made = theirs.decode(posterior.mean + posterior.std * eps).sample
    wanted = F.l1_loss(made, x) + 0.01 * posterior.kl().mean() / x[0].numel()
    terms = []
    for scale in (1, 2, 4):
        small = F.avg_pool2d(made - x, scale)
        terms += [small.diff(dim=2).abs().mean(), small.diff(dim=3).abs().mean()]
    wanted = wanted + 2.0 * torch.stack(terms).mean()
    wanted.backward()
    vae = models().models["vae"]
    given = PixelBatch(pixels=mx.array(pixels), noise=mx.array(noise))

    def loss(model, batch):
        return autoencoder_loss(model, batch, kl_weight=0.01, gradient_weight=2.0)

    value, grads = nn.value_and_grad(vae, loss)(vae, given)
    found = far(
        {name: np.array(array) / 2 for name, array in to_torch(named_arrays(grads)).items()},
        {name: p.grad.numpy() for name, p in theirs.named_parameters()},
    )
    assert abs(value.item() / 2 / wanted.item() - 1) < 1e-5
    assert found < 2e-5
    assert VAE["latent_channels"] == 4


def test_the_golden_is_what_diffusers_says():
    now, kept = golden(), read_golden()
    assert now["min_snr"].keys() == kept["min_snr"].keys()
    for name in ("min_snr", "averages"):
        for key, values in now[name].items():
            assert np.allclose(values, kept[name][key], rtol=1e-6)


RECIPE = DiffusionRecipe(
    model="m",
    diffusion=Diffusion(text_encoder=True),
    lora=Lora(rank=2, alpha=3, targets="linear"),
    optimizer=Optimizer(learning_rate=3e-2),
    batch=Batch(images=4),
    train=Train(steps=6),
)


def their_picture(pipe):
    import torch

    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        "red",
        height=SIZE,
        width=SIZE,
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    )
    return made.images[0] * 2 - 1


def our_picture(pipeline):
    request = Request(
        prompt="red", width=SIZE, height=SIZE, steps=4, guidance=3.0, seed=7, weighted=False
    )
    *_, last = pipeline.sample(request)
    return np.clip(pipeline.decode(last.latents)[0], -1, 1)


def test_a_trained_lora_makes_the_same_picture_in_diffusers(
    folder, data, tmp_path, record_property
):
    from diffusers import StableDiffusionPipeline

    list(finetune_diffusion(RECIPE, folder, data=data, out=tmp_path / "lora"))
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    base = their_picture(pipe)
    pipe.load_lora_weights(tmp_path / "lora")
    theirs = their_picture(pipe)
    pipeline = Pipeline(Parts(open_checkpoint(folder)))
    components = {"unet": pipeline.parts.unet, "text_encoder": pipeline.parts.text_encoders[0]}
    attach(components, read_lora(tmp_path / "lora" / DIFFUSERS, layers_of(components)), name="x")
    found = decibels(our_picture(pipeline), theirs)
    record_property("dB", float(found))
    assert found > LEAST
    assert decibels(base, theirs) < 40
    assert any("text_encoder" in name for name in pipe.get_list_adapters())
    again = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    again.load_lora_weights(tmp_path / "lora", weight_name="lora.kohya.safetensors")
    assert decibels(their_picture(again), theirs) > LEAST


def test_a_trained_model_makes_the_same_picture_in_diffusers(
    folder, data, tmp_path, record_property
):
    from diffusers import StableDiffusionPipeline

    recipe = replace(RECIPE, diffusion=Diffusion(train="unet", text_encoder=True, ema_decay=0.5))
    list(finetune_diffusion(recipe, folder, data=data, out=tmp_path / "out"))
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out" / "model", safety_checker=None)
    found = decibels(
        our_picture(Pipeline(Parts(open_checkpoint(tmp_path / "out" / "model")))),
        theirs := their_picture(pipe),
    )
    record_property("dB", float(found))
    assert found > LEAST
    before = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert decibels(their_picture(before), theirs) < 40
