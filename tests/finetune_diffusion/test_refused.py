"""What stops a run on pictures, most often before it begins."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from macai.errors import DataError, ModelError, OutputError, TrainingError, UsageError
from macai.recipe.diffusion import (
    Data,
    Diffusion,
    Sample,
    Train,
)
from tests.diffusion.training.small import config_dir, model_dir, picture, picture_dir
from tests.finetune_diffusion.runs import LORA, UNET, after, run


def test_a_run_with_other_pictures_or_another_recipe_is_not_resumed(model, data, tmp_path):
    out = tmp_path / "out"
    run(LORA, model, data, out, until=after(2))
    with pytest.raises(TrainingError, match=r"(?s)another recipe.*lora.rank = 2 there, 3 here"):
        run(replace(LORA, lora=replace(LORA.lora, rank=3)), model, data, out, resume=True)
    other = picture_dir(tmp_path / "other")
    picture((1, 1, 1)).save(other / "red.png")
    with pytest.raises(TrainingError, match="another data set"):
        run(LORA, model, other, out, resume=True)
    changed = model_dir(tmp_path / "changed", seed=5)
    with pytest.raises(TrainingError, match="another base model"):
        run(LORA, changed, data, out, resume=True)
    seen = replace(LORA, sample=Sample(every=2, steps=1), train=Train(steps=4, save_every=1))
    assert run(seen, model, data, out, resume=True)[-1].steps == 4


def test_an_earlier_run_is_replaced_only_by_force(model, data, tmp_path):
    run(LORA, model, data, tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        run(LORA, model, data, tmp_path / "out")
    run(replace(UNET, train=Train(steps=1)), model, data, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "model").is_dir()


@pytest.mark.parametrize(
    ("options", "components", "error", "says"),
    [
        ({"train": "unet"}, (), ModelError, "no weights in it"),
        ({"train": "unet", "init": "random"}, (), ModelError, "vae has no weights"),
        ({"train": "vae"}, ("vae",), ModelError, "no weights in it"),
        ({"train": "vae", "init": "random"}, ("unet",), ModelError, "no vae in it"),
        ({"train": "unet", "init": "random"}, ("vae", "unet"), ModelError, "no text encoder"),
        ({"train": "lora", "init": "random"}, (), UsageError, "learns nothing"),
    ],
)
def test_weights_that_are_missing_are_named(options, components, error, says, data, tmp_path):
    configs = config_dir(tmp_path / "configs", *components)
    index = {name: ["diffusers", "X"] for name in components or ("unet", "vae", "text_encoder")}
    (configs / "model_index.json").write_text(json.dumps(index))
    recipe = replace(LORA, diffusion=Diffusion(**options))
    with pytest.raises(error, match=says) as caught:
        run(recipe, configs, data, tmp_path / "out")
    assert "init" in options or 'diffusion.init = "random"' in str(caught.value.hint)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": Data(class_path=Path("x"))}, "go together"),
        ({"data": Data(background="wight")}, "is no colour"),
        ({"data": Data(bucket_step=9)}, "is no multiple of 2"),
        ({"diffusion": Diffusion(train="unet", quantize=8)}, "beside a LoRA"),
        ({"diffusion": Diffusion(train="vae", vae=Path("x"))}, "a U-Net is trained for"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(changes, says, model, data, tmp_path):
    changes = {
        name: replace(value, vae=model) if getattr(value, "vae", None) else value
        for name, value in changes.items()
    }
    with pytest.raises(UsageError, match=says):
        run(replace(LORA, **changes), model, data, tmp_path / "out")


def test_models_that_training_is_not_for_are_refused(data, tmp_path):
    nine = model_dir(tmp_path / "nine", in_channels=9)
    with pytest.raises(ModelError, match="9 channels"):
        run(LORA, nine, data, tmp_path / "out")
    lcm = model_dir(tmp_path / "lcm", time_cond_proj_dim=8)
    with pytest.raises(ModelError, match="LCM"):
        run(LORA, lcm, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_samples_that_cannot_be_stop_a_run_before_it_begins(model, data, tmp_path):
    recipe = replace(LORA, sample=Sample(every=1, steps=2000))
    with pytest.raises(UsageError, match="2000 steps"):
        run(recipe, model, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_kind_is_not_resumed(model, data, tmp_path):
    run(replace(LORA, train=Train(steps=1)), model, data, tmp_path / "out")
    written = (tmp_path / "out" / "recipe.toml").read_text()
    (tmp_path / "out" / "recipe.toml").write_text('model = "m"\n')
    with pytest.raises(TrainingError, match="kind = language there, diffusion here"):
        run(LORA, model, data, tmp_path / "out", resume=True)
    (tmp_path / "out" / "recipe.toml").write_text(written)
    with pytest.raises(TrainingError, match=r"train.steps = 1 there, 4 here"):
        run(LORA, model, data, tmp_path / "out", resume=True)


def test_bad_pictures_stop_a_run_before_it_begins(model, tmp_path):
    data = picture_dir(tmp_path / "p", captions="none")
    with pytest.raises(DataError, match="4 problems"):
        run(LORA, model, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
