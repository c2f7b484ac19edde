"""What `macai image` does not do, and what is left then."""

import os
import re
import signal
import subprocess
import sys

import mlx.core as mx
import pytest

from macai.diffusion.loading import save_folder
from tests.cli.image.pictures import pixels
from tests.diffusion.tiny import SIZE, tiny_models, tiny_pipeline_dir


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
