"""What draws pictures with a trained emoji-diffusion and makes of it what is shipped."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from macai.diffusion.loading import open_checkpoint
from macai.diffusion.lora.formats import read_lora
from macai.diffusion.lora.layers import layers_of
from macai.diffusion.lora.names import target_paths
from macai.diffusion.lora.save import save_diffusers
from macai.diffusion.lora.training import add_lora, trained_lora
from macai.models.arrays import load_arrays, named_arrays
from tests.diffusion.training.small import COLOURS, model_dir, models, picture_dir
from tests.recipes.test_emoji_data import RECIPES, load

drawing = load(RECIPES / "data" / "emoji" / "draw.py")
shipping = load(RECIPES / "emoji" / "ship.py")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_dir(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file: Path = tmp_path_factory.mktemp("lora") / "l.safetensors"
    components = {k: v for k, v in models().models.items() if k != "vae"}
    layers = layers_of(components)
    unet = components["unet"]
    unet.freeze()
    paths = target_paths(layers["unet"], "attention")
    add_lora(unet, paths, name="x", rank=2, alpha=2, start="gaussian", dropout=0, seed=0)
    unet.apply(lambda x: x + 0.5)  # its second factors begin with zeros
    save_diffusers(file, trained_lora(components, "x"), layers)
    return file


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = picture_dir(tmp_path_factory.mktemp("data") / "p", captions="jsonl")
    with (folder / "metadata.jsonl").open("a") as rows:
        rows.write('\n{"file_name": "red.png", "text": "another of red"}')
    return folder


def draw(model: Path, captions: Path, out: Path, *options: str | Path) -> dict[str, str]:
    """Draw in two steps; return the captions by file."""
    fixed = ["--model", model, "--captions", captions, "--out", out, "--steps", 2]
    drawing.main([str(option) for option in [*fixed, *options]])
    lines = (out / "metadata.jsonl").read_text().splitlines()
    return {row["file_name"]: row["text"] for row in map(json.loads, lines)}


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as opened:
        return np.asarray(opened.convert("RGB"))


def test_each_emoji_is_drawn_by_its_first_caption(
    model: Path, captions: Path, tmp_path: Path
) -> None:
    found = draw(model, captions, tmp_path / "drawn")
    assert found == {f"{name}.png": name for name in COLOURS}
    assert all(pixels(tmp_path / "drawn" / name).shape == (16, 16, 3) for name in found)


def test_a_few_are_chosen_and_always_the_same(captions: Path) -> None:
    chosen = drawing.wanted(captions, 2)
    assert len(chosen) == 2
    assert chosen == drawing.wanted(captions, 2)
    assert set(chosen) < set(drawing.wanted(captions, 0))


def test_a_sheet_has_real_ones_above_those_that_were_drawn(
    model: Path, captions: Path, tmp_path: Path
) -> None:
    draw(model, captions, tmp_path / "drawn", "--sheet", tmp_path / "sheet.png")
    page = pixels(tmp_path / "sheet.png")
    for column, name in enumerate(sorted(COLOURS)):
        above, below = np.split(page[:, 16 * column : 16 * column + 16], 2)
        assert np.array_equal(above, pixels(captions / f"{name}.png"))
        assert np.array_equal(below, pixels(tmp_path / "drawn" / f"{name}.png"))


def test_a_lora_changes_what_is_drawn(
    model: Path, lora: Path, captions: Path, tmp_path: Path
) -> None:
    draw(model, captions, tmp_path / "without")
    draw(model, captions, tmp_path / "with", "--lora", lora)
    without, styled = (pixels(tmp_path / n / "red.png") for n in ("without", "with"))
    assert not np.array_equal(without, styled)


def test_what_is_shipped_is_the_model_and_the_style_in_half_precision(
    model: Path, lora: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shipped"
    shipping.main(["--model", str(model), "--lora", str(lora), "--out", str(out)])
    whole, shipped = open_checkpoint(model), open_checkpoint(out)
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (out / part).glob("*.safetensors")
        assert {array.dtype for array in load_arrays(file)[0].values()} == {mx.float16}
        given = named_arrays(whole.load(part).parameters())
        for name, array in named_arrays(shipped.load(part).parameters()).items():
            assert mx.allclose(array, given[name], rtol=1e-3, atol=1e-4).item()
    arrays, _ = load_arrays(out / "fluent.safetensors")
    assert {array.dtype for array in arrays.values()} == {mx.float16}
    layers = layers_of({name: whole.load(name) for name in ("unet", "text_encoder")})
    before, after = read_lora(lora, layers), read_lora(out / "fluent.safetensors", layers)
    assert after.summary() == before.summary().replace("l.safetensors", "fluent.safetensors")


def test_a_weight_beyond_half_precision_is_not_shipped() -> None:
    with pytest.raises(ValueError, match="beyond float16"):
        shipping.half(mx.array([1.0, 7e4]))
