"""LoRAs, control nets, another autoencoder, a refiner."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macai.cli import image_open
from macai.diffusion.images import read_settings, to_bytes
from macai.diffusion.loading import open_checkpoint, save_folder
from macai.diffusion.lora.layers import adapted, layers_of
from macai.diffusion.lora.names import target_paths
from macai.diffusion.lora.save import save_diffusers
from macai.diffusion.lora.training import add_lora, trained_lora
from macai.diffusion.models import from_config
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline, Request
from macai.models.arrays import load_arrays, save_arrays
from tests.cli.image.pictures import pixels
from tests.diffusion.tiny import UNET, tiny_models, tiny_pipeline_dir


def test_a_lora_is_found_in_its_folder_and_made_again_with_its_scale(make, lora):
    _, plain = make("--seed", 1, name="plain.png")
    _, out = make("--seed", 1, "--lora", f"{lora.parent}:0.5")
    result, again = make("--from", out, "--lora", lora, prompt=(), steps=None, name="again.png")
    assert (result.code, "warning" in result.err) == (0, False)
    assert np.array_equal(pixels(out), pixels(again))
    assert not np.array_equal(pixels(out), pixels(plain))
    assert read_settings(again).loras[0].scale == 0.5
    other = lora.with_name("other.safetensors")
    arrays, metadata = load_arrays(lora)
    save_arrays(other, {n: 2 * a for n, a in arrays.items()}, metadata)
    options = ("--from", out, "--lora", other)
    result, changed = make(*options, prompt=(), steps=None, name="changed.png")
    assert f"warning: {out} was made with another --lora" in result.err
    assert not np.array_equal(pixels(out), pixels(changed))


@pytest.fixture
def lora(model, tmp_path) -> Path:
    base = open_checkpoint(model)
    components = {name: base.load(name) for name in ("unet", "text_encoder")}
    layers = layers_of(components)
    paths = target_paths(layers["unet"], "attention")
    add_lora(components["unet"], paths, name="x", rank=2, alpha=2)
    for layer in adapted(components["unet"]).values():
        (branch,) = layer.branches
        branch.lora_B = mx.random.normal(branch.lora_B.shape, key=mx.random.key(1))
    folder = tmp_path / "lora"
    folder.mkdir()
    file = folder / "pytorch_lora_weights.safetensors"
    save_diffusers(file, trained_lora(components, "x"), layers)
    return file


def test_another_autoencoder_decodes_and_is_remembered(make, model, tmp_path):
    other = tiny_pipeline_dir(tmp_path / "other", seed=1)
    _, plain = make("--seed", 1, name="plain.png")
    _, out = make("--seed", 1, "--vae", other)
    pipeline = Pipeline(Parts(open_checkpoint(model), vae=open_checkpoint(other)))
    *_, last = pipeline.sample(Request(prompt="a red apple", steps=3, seed=1))
    assert np.array_equal(pixels(out), to_bytes(pipeline.decode(last.latents))[0])
    again = ("--from", out, "--vae")
    result, _ = make(*again, model, prompt=(), steps=None, name="again.png")
    assert f"warning: {out} was made with another --vae" in result.err
    assert np.array_equal(pixels(plain), pixels(out.with_name("again.png")))
    result, _ = make("--vae", model / "unet", name="none.png")
    assert (result.code, "no autoencoder in it" in result.err) == (1, True)


def test_a_refiner_is_let_go_tiled_and_decoded_as_the_model_is(make, model, tmp_path, monkeypatch):
    other = tiny_pipeline_dir(tmp_path / "other", seed=1)
    seen = []

    class Watched(Parts):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            seen.append((self, options))

    monkeypatch.setattr(image_open, "Parts", Watched)
    result, out = make("--refiner", other, "--vae", other, "--low-memory", "--tile", "--seed", 1)
    assert result.code == 0, result.err
    ((refiner, theirs), (base, ours)) = seen
    assert theirs == {key: ours[key] for key in ("vae", "short_memory", "tile")}
    assert (theirs["short_memory"], theirs["tile"]) == (True, True)
    assert set(refiner._loaded) == {"vae"}
    assert not base._loaded
    assert [file.name for file in (read_settings(out).vae, read_settings(out).refiner)] == [
        "other",
        "other",
    ]


def test_parts_that_are_let_go_change_nothing(make):
    _, out = make("--seed", 2, "--keep-loaded")
    _, short = make("--seed", 2, "--low-memory", "--serial", "--tile", name="short.png")
    assert np.abs(pixels(out).astype(int) - pixels(short)).max() <= 1


@pytest.fixture
def controlnet(tmp_path) -> Path:
    keys = ("sample_size", "out_channels", "up_block_types", "_class_name")
    config = {k: v for k, v in UNET.items() if k not in keys} | {
        "_class_name": "ControlNetModel",
        "conditioning_embedding_out_channels": [8, 16],
    }
    mx.random.seed(4)
    net = from_config(config)
    models = tiny_models()
    save_folder(
        type(models)(
            models={"controlnet": net}, configs={"controlnet": config}, scheduler_config={}
        ),
        tmp_path / "control",
    )
    return tmp_path / "control"


def test_a_control_steers_and_off_is_off(make, controlnet, photo):
    both = ("--controlnet", controlnet, "--seed", 1, "--control")
    _, plain = make("--seed", 1)
    _, steered = make(*both, photo, name="steered.png")
    _, off = make(*both, f"{photo}:0", name="off.png")
    assert not np.array_equal(pixels(plain), pixels(steered))
    assert np.abs(pixels(plain).astype(int) - pixels(off)).max() <= 1


def test_a_control_is_made_again_with_its_numbers(make, controlnet, photo):
    net = ("--controlnet", controlnet, "--control")
    _, out = make(*net, f"{photo}:0.7:0:0.5", "--seed", 1)
    _, always = make(*net, f"{photo}:0.7", "--seed", 1, name="always.png")
    result, again = make("--from", out, *net, photo, prompt=(), steps=None, name="again.png")
    assert (result.code, "warning" in result.err) == (0, False)
    assert np.array_equal(pixels(out), pixels(again))
    assert read_settings(out) == read_settings(again)
    assert not np.array_equal(pixels(out), pixels(always))


def test_a_second_pass_is_steered_as_the_first(make, controlnet, photo):
    net = ("--controlnet", controlnet, "--control")
    options = ("--image", photo, "--enlarge", 2, "--seed", 1)
    _, steered = make(*options, *net, photo)
    _, free = make(*options, *net, f"{photo}:0", name="free.png")
    assert not np.array_equal(pixels(steered), pixels(free))
