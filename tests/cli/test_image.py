import base64
import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from macai.cli import image_open
from macai.diffusion.images import read_mask, read_picture, read_settings, to_bytes
from macai.diffusion.loading import open_checkpoint, save_folder
from macai.diffusion.lora.layers import adapted, layers_of
from macai.diffusion.lora.names import target_paths
from macai.diffusion.lora.save import save_diffusers
from macai.diffusion.lora.training import add_lora, trained_lora
from macai.diffusion.models import from_config
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline, Request
from macai.models.arrays import load_arrays, save_arrays
from tests.diffusion.tiny import SIZE, UNET, tiny_models, tiny_pipeline_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_pipeline_dir(tmp_path_factory.mktemp("sd") / "tiny-sd")


@pytest.fixture
def make(macai, model, tmp_path):
    """Runs `macai image` with few steps and returns the result and the path of its picture."""

    def make(*options, name="x.png", prompt=("a red apple",), given=model, steps=3):
        out = tmp_path / name
        fixed = ["--model", given, "--out", out] + (["--steps", steps] if steps else [])
        return macai("image", *prompt, *fixed, *options), out

    return make


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def expected(model: Path, **options) -> np.ndarray:
    """What the library gives, the first picture's pixels."""
    pipeline = Pipeline(Parts(open_checkpoint(model)))
    options = {"prompt": "a red apple", "steps": 3} | options
    *_, last = pipeline.sample(Request(**options))
    return to_bytes(pipeline.decode(last.latents))[0]


def save(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def photo(tmp_path) -> Path:
    y, x = np.mgrid[0:SIZE, 0:SIZE] * 255 // SIZE
    return save(tmp_path / "photo.png", np.stack([x, y, 255 - x], -1).astype(np.uint8))


@pytest.fixture
def mask(tmp_path) -> Path:
    values = np.zeros((SIZE, SIZE), np.uint8)
    values[SIZE // 2 :] = 255
    return save(tmp_path / "mask.png", values)


def test_a_picture_is_what_the_library_makes(make, model):
    result, out = make("--seed", 7, "--negative", "rain", "--guidance", 4)
    assert (result.code, result.out) == (0, f"{out}  seed 7\n")
    wanted = expected(model, seed=7, negative="rain", guidance=4.0)
    assert np.array_equal(pixels(out), wanted)


def test_json_says_what_was_made_and_what_it_cost(make):
    result, out = make("--seed", 7, "--json", "--scheduler", "heun")
    report = json.loads(result.out)
    assert report["images"] == [{"path": str(out), "seed": 7}]
    parts = [report["text_seconds"], *report["call_seconds"], report["decode_seconds"]]
    assert min(parts) > 0
    assert sum(parts) <= report["seconds"] * 1.001
    assert (report["steps"], len(report["call_seconds"])) == (
        3,
        5,
    )  # Heun calls twice but at the end
    assert (report["width"], report["height"]) == (SIZE, SIZE)
    assert report["seconds"] > 0
    assert report["peak_memory_bytes"] > 0


def test_a_drawn_seed_is_said_and_makes_the_picture_again(make, tmp_path):
    result, out = make()
    seed = result.out.split()[-1]
    _, second = make("--seed", seed, name="again.png")
    assert np.array_equal(pixels(out), pixels(second))


def test_several_pictures_have_numbers_and_their_own_seeds(make, tmp_path):
    result, _ = make("--seed", 3, "--count", 2)
    first, second = tmp_path / "x-1.png", tmp_path / "x-2.png"
    assert result.out.splitlines() == [f"{first}  seed 3", f"{second}  seed 4"]
    _, alone = make("--seed", 4, name="alone.png")
    assert np.abs(pixels(second).astype(int) - pixels(alone)).max() <= 1
    assert read_settings(second).seed == 4


def test_a_picture_is_made_again_from_its_own_settings(make, photo):
    options = ("--seed", 5, "--image", photo, "--strength", 0.7, "--scheduler", "euler-a")
    more = ("--guidance", 3, "--negative", "rain", "--rng", "numpy", "--clip-skip", 1)
    _, out = make(*options, *more)
    result, again = make("--from", out, "--image", photo, prompt=(), steps=None, name="again.png")
    assert result.code == 0
    assert np.array_equal(pixels(out), pixels(again))
    assert read_settings(out) == read_settings(again)


def test_what_is_said_goes_before_a_pictures_settings(make):
    _, out = make("--seed", 5, "--guidance", 3)
    make("--from", out, "--seed", 6, prompt=(), name="other.png", steps=None)
    settings = read_settings(out.with_name("other.png"))
    assert (settings.seed, settings.guidance, settings.prompt) == (6, 3, "a red apple")


def test_a_picture_of_another_size_than_its_start_is_made_again(make, photo):
    _, out = make("--image", photo, "--size", f"{2 * SIZE}x{SIZE}", "--seed", 1, "--tile")
    result, again = make("--from", out, "--image", photo, prompt=(), steps=None, name="again.png")
    assert (result.code, "warning" in result.err) == (0, False)
    assert np.array_equal(pixels(out), pixels(again))
    settings = read_settings(again)
    assert settings.others == {"dtype": "float32", "tile": True}


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


def test_words_that_are_not_read_are_said(make):
    result, _ = make("--negative", "rain", "--guidance", 1, "--plain-prompt", prompt=["a " * 99])
    assert "--negative is not read: guidance is off at 1" in result.err
    assert "too long, and not read: 'a a a" in result.err
    result, _ = make("--negative", "rain", prompt=["a " * 99], name="y.png")
    assert "warning" not in result.err


def test_files_a_picture_was_made_with_must_be_given_again(make, photo, mask):
    _, out = make("--image", photo, "--mask", mask)
    result, again = make("--from", out, prompt=(), name="again.png")
    assert result.code == 1
    assert "--image (photo.png), --mask (mask.png)" in result.err
    assert not again.exists()


def test_another_model_than_the_pictures_is_told(make, tmp_path):
    _, out = make("--seed", 5)
    other = tiny_pipeline_dir(tmp_path / "other", seed=1)
    result, _ = make("--from", out, given=other, prompt=(), name="again.png")
    assert result.code == 0
    assert "was made with another model, tiny-sd" in result.err


def test_a_mask_and_a_strength_reach_the_pipeline(make, model, photo, mask):
    _, out = make("--image", photo, "--mask", mask, "--seed", 1, "--strength", 0.5)
    options = {"picture": read_picture(photo), "mask": read_mask(mask), "strength": 0.5}
    assert np.array_equal(pixels(out), expected(model, seed=1, **options))


def test_a_second_pass_makes_it_larger(make):
    result, out = make("--enlarge", 2, "--json")
    assert pixels(out).shape == (2 * SIZE, 2 * SIZE, 3)
    assert len(json.loads(result.out)["call_seconds"]) == 3 + 1


def test_a_size_of_ones_own(make):
    _, out = make("--size", "48x24")
    assert pixels(out).shape == (24, 48, 3)


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


def test_a_preview_is_not_promised_to_a_terminal_that_shows_none(make):
    result, out = make("--preview")
    assert "no previews" in result.err
    assert out.exists()


def test_a_terminal_that_shows_pictures_gets_one_whole(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM_PROGRAM", "iTerm.app")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("TMUX", raising=False)
    command = [
        "image",
        "x",
        "--model",
        model,
        "--steps",
        2,
        "--preview",
        "--out",
        tmp_path / "x.png",
    ]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "macai", *map(str, command)], stderr=theirs, stdout=theirs
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # Linux's word for the end
        while piece := os.read(ours, 1 << 16):
            written += piece
    os.close(ours)
    assert process.wait() == 0
    escape = re.search(rb"\x1b\]1337;File=inline=1;height=12;size=(\d+):([^\a]*)\a", written)
    assert escape, written
    picture = base64.b64decode(escape[2])
    assert len(picture) == int(escape[1])
    assert Image.open(io.BytesIO(picture)).size == (SIZE // 2, SIZE // 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--size", "31x32"], "multiples of 2"),
        (["--size", "big"], "not WIDTHxHEIGHT"),
        (["--scheduler", "dmp"], "unknown scheduler 'dmp'"),
        (["--dtype", "int8"], "'int8' is no type of weights"),
        (["--quantize", "5"], "5 bits cannot be had"),
        (["--rng", "dice"], "unknown generator 'dice'"),
        (["--eta", "0.5", "--scheduler", "euler"], "euler has no eta"),
        (["--enlarge", "9"], "cannot enlarge 9"),
        (["--mask", "MASK"], "--mask without --image"),
        (["--image", "no.png"], r"no\.png"),
        (["--image", "PHOTO", "--strength", "1.5"], r"--strength cannot be 1\.5"),
        (["--controlnet", "a"], "1 of --controlnet and 0 of --control"),
        (["--lora", "no.safetensors"], r"no\.safetensors"),
        (["--from", "PHOTO"], "no settings of macai"),
        (["--out", "x.jpg"], "written as PNG"),
        (["--steps", "5000"], "takes 1 to 1000"),
        (["--strength", "0.5"], "--strength without --image"),
        (["--handover", "0.5"], "--handover without --refiner"),
        (["--enlarge-strength", "0.5"], "--enlarge-strength without --enlarge"),
        (["--taesd", "x"], "--taesd without --preview"),
        (["--enlarge", "2", "--enlarge-strength", "0.1"], "no step is left of 3"),
        (["--enlarge", "nan"], "cannot enlarge nan"),
        (["--guidance", "nan"], "--guidance cannot be nan"),
        (["--guidance", "1e6"], "--guidance cannot be 1000000"),
        (["--size", "999996x8"], "--size 999996x8: no side may be over 16384"),
        (["--clip-skip", "3"], "the text encoder has 2 layers"),
        (["--lora", "x.safetensors:nan"], "nan is no number to scale with"),
        (["--control", "PHOTO:1:0.5:0.5", "--controlnet", "x"], "not on from 0.5 to 0.5"),
    ],
)
def test_what_cannot_be_is_one_clear_error(make, photo, mask, options, says, tmp_path):
    named = {"MASK": mask, "PHOTO": photo}
    result, out = make(*[named.get(option, option) for option in options])
    assert result.code == 1
    assert result.err.startswith("error: ")  # nothing was computed before
    assert re.search(says, result.err), result.err
    assert not out.exists()


def test_no_prompt_and_no_model_are_told(macai, model, tmp_path, monkeypatch):
    result = macai("image", "--model", model)
    assert (result.code, "no prompt" in result.err) == (1, True)
    monkeypatch.setattr("macai.cli.image_open.pipeline_names", list)
    result = macai("image", "apple", "--out", tmp_path / "x.png")
    assert (result.code, "no model" in result.err) == (1, True)


def test_without_a_model_the_one_that_comes_with_macai_draws(macai, model, tmp_path, monkeypatch):
    out, named = tmp_path / "x.png", "emoji-diffusion"
    monkeypatch.setattr("macai.cli.image_open.pipeline_names", lambda: [named])
    monkeypatch.setattr(
        "macai.cli.image_open.locate_pipeline", lambda name, variant: {named: model}[name]
    )
    result = macai("image", "a red apple", "--steps", 3, "--seed", 0, "--out", out)
    assert (result.code, "no --model: emoji-diffusion draws it" in result.err) == (0, True)
    assert np.array_equal(pixels(out), expected(model))
    assert read_settings(out).model == named


def test_an_existing_picture_is_replaced_only_by_force(make):
    _, out = make("--seed", 1)
    before = out.read_bytes()
    result, _ = make("--seed", 2)
    assert (result.code, "exists already" in result.err) == (1, True)
    assert out.read_bytes() == before
    make("--seed", 2, "--force")
    assert out.read_bytes() != before


def test_an_inpainting_model_asks_for_picture_and_mask(make, photo, mask, tmp_path):
    nine = tiny_pipeline_dir(tmp_path / "nine", in_channels=9)
    result, out = make(given=nine)
    assert (result.code, "it needs a picture and a mask" in result.err) == (1, True)
    assert not out.exists()
    result, out = make("--image", photo, "--mask", mask, given=nine)
    assert result.code == 0


def test_an_inpainting_model_makes_it_larger_too(make, photo, mask, tmp_path):
    nine = tiny_pipeline_dir(tmp_path / "nine", in_channels=9)
    result, out = make("--image", photo, "--mask", mask, "--enlarge", 2, given=nine)
    assert result.code == 0, result.err
    assert pixels(out).shape == (2 * SIZE, 2 * SIZE, 3)


def test_what_cannot_be_written_in_the_end_is_told_at_the_start(make, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.png").mkdir()
    for name, says in (("file/x.png", "is a file, not a folder"), ("folder.png", "is a folder")):
        result, _ = make("--force", name=name)
        assert (result.code, says in result.err) == (1, True)
        assert "image: " not in result.err
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    result, _ = make(name="new/x.png")
    assert (result.code, "may not be written to" in result.err) == (1, True)


def test_damaged_weights_leave_no_black_picture(make, tmp_path):
    models = tiny_models()
    unet = models.models["unet"]
    unet.conv_out.bias = mx.full(unet.conv_out.bias.shape, float("nan"))
    save_folder(models, tmp_path / "broken")
    result, out = make(given=tmp_path / "broken")
    assert result.code == 1
    assert "conv_out.bias" in result.err
    assert not out.exists()


def test_numbers_that_overflow_on_the_way_leave_no_picture(make, tmp_path):
    models = tiny_models()
    unet = models.models["unet"]
    unet.conv_out.weight = unet.conv_out.weight * 1e37
    save_folder(models, tmp_path / "huge")
    result, out = make("--guidance", 20, given=tmp_path / "huge")
    assert result.code == 1
    assert "not finite" in result.err or "no numbers" in result.err
    assert not out.exists()


def test_ctrl_c_leaves_nothing_behind(model, tmp_path):
    command = ["image", "apple", "--model", model, "--steps", 900, "--out", tmp_path / "x.png"]
    process = subprocess.Popen(
        [sys.executable, "-m", "macai", *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while "image: 1 of 900" not in (line := process.stderr.readline()):
        assert line, "it ended before it began"
    process.send_signal(signal.SIGINT)
    assert process.stderr.read().endswith("interrupted\n")
    assert process.wait() == 130
    process.stderr.close()
    assert not list(tmp_path.iterdir())
