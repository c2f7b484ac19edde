"""`macai image`, as a user meets it."""

import base64
import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys

import numpy as np
from PIL import Image

from macai.diffusion.images import read_mask, read_picture, read_settings
from tests.cli.image.pictures import expected, pixels
from tests.diffusion.tiny import SIZE, tiny_pipeline_dir


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
