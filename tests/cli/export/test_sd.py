import json

import numpy as np
import pytest
from PIL import Image

from tests.coreml.sd.bundles import export_tiny, lora_file
from tests.diffusion.tiny import tiny_pipeline_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_pipeline_dir(tmp_path_factory.mktemp("sd") / "tiny-sd")


def test_a_model_becomes_a_bundle_that_macai_verify_knows(macai, model, tmp_path):
    out, lora = tmp_path / "bundle", lora_file(tmp_path / "ink.safetensors")
    options = ["--model", model, "--out", out, "--lora", f"{lora}:0.5", "--timesteps", 1]
    result = macai("export", "sd", *options)
    assert result.code == 0, result.err
    assert result.out.startswith(f"bundle: {out}\nTextEncoder")
    assert result.out.endswith("float16 0 overflows\nverified\n")
    assert "ink.safetensors: diffusers, 1 of unet matched" in result.err
    assert "comparing Unet: 2 of 2" in result.err
    verified = macai("verify", out, "--against", model, "--lora", f"{lora}:0.5", "--json")
    assert verified.code == 0, verified.err
    assert json.loads(verified.out)["passed"]
    assert macai("verify", out, "--against", model).code == 1


def test_json_is_the_manifest_and_an_empty_comparison_if_none_was_wanted(macai, model, tmp_path):
    out = tmp_path / "bundle"
    result = macai("export", "sd", "--model", model, "--out", out, "--no-verify", "--json")
    printed = json.loads(result.out)
    assert printed.pop("verify") == {}
    assert printed.pop("out") == str(out)
    assert printed == json.loads((out / "macai.json").read_text())
    assert not (out / "verify.json").exists()


def test_what_is_there_is_replaced_only_when_asked(macai, model, tmp_path):
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    (out / "macai.json").write_text("{}")
    options = ["export", "sd", "--model", model, "--out", out, "--no-verify"]
    refused = macai(*options)
    assert (refused.code, "exists already" in refused.err) == (1, True)
    assert (out / "mine.txt").read_text() == "mine"
    assert macai(*options, "--force").code == 0
    assert not (out / "mine.txt").exists()
    assert (out / "macai.json").read_text() != "{}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "33x32"], "33x32 pixels: sides must be multiples of 4"),
        (["--size", "large"], "--size 'large' is not WIDTHxHEIGHT"),
        (["--batch", "4"], "a U-Net of 4 rows"),
        (["--precision", "int8"], "unknown precision 'int8'"),
        (["--lora", "no.safetensors"], "no.safetensors"),
        (["--size", "0x64"], "no side may be 0"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    macai, model, tmp_path, options, message
):
    out = tmp_path / "bundle"
    result = macai("export", "sd", "--model", model, "--out", out, *options)
    assert result.code == 1
    assert message in result.err
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_picture_and_replaces_none(macai, model, tmp_path):
    bundle = tmp_path / "bundle"
    export_tiny(model, bundle, timesteps=0)
    out = tmp_path / "apples.png"
    options = ["run", bundle, "--prompt", "two red apples", "--steps", 2, "--out", out]
    result = macai(*options, "--seed", 3)
    assert (result.code, result.out) == (0, f"{out}  seed 3\n"), result.err
    assert "taking noise out: 3 of 3" in result.err
    with Image.open(out) as picture:
        assert picture.size == (32, 32)
    again = macai(*options, "--json")
    assert (again.code, "exists already" in again.err) == (1, True)
    out.unlink()
    assert json.loads(macai(*options, "--json").out)["steps"] == 2


@pytest.mark.slow
def test_a_picture_starts_from_one_of_any_size_and_its_mask(macai, tmp_path):
    model, bundle = tiny_pipeline_dir(tmp_path / "m", in_channels=9), tmp_path / "bundle"
    export_tiny(model, bundle, timesteps=0)
    grey = np.full((50, 40, 3), 90, np.uint8)
    Image.fromarray(grey).save(tmp_path / "photo.png")
    Image.fromarray(grey[..., 0] * 2).save(tmp_path / "mask.png")
    options = ["run", bundle, "--prompt", "an apple", "--steps", 2, "--out", tmp_path / "a.png"]
    photo = ["--image", tmp_path / "photo.png", "--strength", 1]
    result = macai(*options, *photo, "--mask", tmp_path / "mask.png", "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert (told["strength"], told["mask"]) == (1.0, str(tmp_path / "mask.png"))
    (tmp_path / "a.png").unlink()
    refused = macai(*options, "--control", tmp_path / "photo.png")
    assert (refused.code, "which ControlNet?" in refused.err) == (1, True)


@pytest.mark.slow
def test_the_way_from_noise_is_compared_and_shown_when_asked(macai, model, tmp_path):
    out = tmp_path / "bundle"
    way = ["--trajectory", 4, "--trajectory-guidance", 3, "--trajectory-prompt", "an apple"]
    options = ["--model", model, "--out", out, "--timesteps", 1]
    result = macai("export", "sd", *options, *way)
    assert result.code == 0, result.err
    assert "trajectory   fp16  least cosine 0.99" in result.out
    course = json.loads((out / "verify.json").read_text())["trajectory"]
    assert (course["steps"], course["guidance"]) == (4, 3.0)
    with Image.open(out / "strip.png") as strip:
        assert strip.size == (4 * 32, 32)
    again = macai("verify", out, "--against", model, *way, "--json")
    assert json.loads(again.out)["trajectory"] == course


def test_what_is_for_language_models_alone_is_refused(macai, model, tmp_path):
    bundle = tmp_path / "bundle"
    export_tiny(model, bundle, timesteps=0)
    asked = macai("run", bundle, "--prompt", "an apple", "--max-tokens", 5)
    assert asked.code == 1
    assert "error: --max-tokens is not for a bundle of Stable Diffusion\n" in asked.err
    asked = macai("verify", bundle, "--against", model, "--positions", 16)
    assert (asked.code, "--positions is not for" in asked.err) == (1, True)


def test_a_strip_replaces_no_picture_and_wants_a_trajectory(macai, model, tmp_path):
    bundle, strip = tmp_path / "bundle", tmp_path / "mine.png"
    export_tiny(model, bundle, timesteps=0)
    options = ["verify", bundle, "--against", model, "--strip", strip]
    alone = macai(*options)
    assert (alone.code, "add --trajectory" in alone.err) == (1, True)
    strip.write_bytes(b"mine")
    replacing = macai(*options, "--trajectory", 2)
    assert (replacing.code, "exists already" in replacing.err) == (1, True)
    assert strip.read_bytes() == b"mine"


def test_the_card_says_when_apples_package_cannot_feed_the_u_net(model, tmp_path):
    wide = tiny_pipeline_dir(tmp_path / "m", in_channels=9)
    for source, is_said in ((model, False), (wide, True)):
        bundle = tmp_path / str(is_said)
        export_tiny(source, bundle, timesteps=0)
        card = (bundle / "README.md").read_text(encoding="utf-8")
        assert ("takes 9 channels, and Apple's package feeds 4" in card) == is_said
