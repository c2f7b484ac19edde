"""Folders of diffusers: which files are read, and what is said of those that are not there."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from macai.diffusion.loading import Models, open_checkpoint
from macai.errors import FormatError, ModelError, UsageError
from macai.models.arrays import load_arrays
from tests.diffusion.loading.cases import (
    CONFIGS,
    assert_same_weights,
    torch_pickle,
    torch_weights,
    write_archive,
    write_safetensors,
)

UNET = "diffusion_pytorch_model"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def assert_loads(path: Path, models: Models, **options: Any) -> None:
    checkpoint = open_checkpoint(path, **options)
    assert set(checkpoint.components) == {"unet", "vae", "text_encoder"}
    for component in checkpoint.components:
        assert_same_weights(checkpoint.load(component), models.load(component))


def in_shards(part: Path, stem: str, parts: int, *, index: str, shard: str) -> None:
    """Split a component's weights over several files, as diffusers names them."""
    arrays, _ = load_arrays(part / f"{stem}.safetensors")
    mx.eval(arrays)
    (part / f"{stem}.safetensors").unlink()
    places = {}
    for number in range(parts):
        name = shard.format(number=number + 1, parts=parts)
        chosen = dict(list(arrays.items())[number::parts])
        mx.save_safetensors(str(part / name), chosen)
        places |= dict.fromkeys(chosen, name)
    (part / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_a_plain_folder_is_read(folder: Path, models: Models) -> None:
    assert_loads(folder, models)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.kind == "custom"
    assert checkpoint.configs == {**CONFIGS, "pipeline": checkpoint.configs["pipeline"]}
    assert checkpoint.configs["pipeline"]["_class_name"] == "StableDiffusionPipeline"
    assert checkpoint.scheduler_config["_class_name"] == "PNDMScheduler"
    assert checkpoint.tokenizer_folders == {"tokenizer": folder / "tokenizer"}
    assert checkpoint.ignored == {}


def test_what_no_image_needs_may_be_missing_or_there(folder: Path, models: Models) -> None:
    edit(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
    )
    (folder / "safety_checker").mkdir()
    assert_loads(folder, models)
    assert open_checkpoint(folder).ignored == {"image_encoder": 1}


def test_a_variant_is_read_where_there_is_one(folder: Path, models: Models) -> None:
    file = folder / "unet" / f"{UNET}.safetensors"
    arrays, _ = load_arrays(file)
    doubled = {name: (value * 2).astype(mx.float16) for name, value in arrays.items()}
    mx.save_safetensors(str(file.with_name(f"{UNET}.fp16.safetensors")), doubled)
    assert_loads(folder, models)
    checkpoint = open_checkpoint(folder, variant="fp16")
    found = torch_weights(checkpoint.load("unet"))["conv_in.bias"]
    assert (found == torch_weights(models.load("unet"))["conv_in.bias"].astype("f2") * 2).all()
    assert_same_weights(checkpoint.load("vae"), models.load("vae"))


def test_the_only_variant_there_is_needs_no_wish(folder: Path, models: Models) -> None:
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".non_ema.safetensors"))
    assert_loads(folder, models)
    assert_loads(folder, models, variant="non_ema")


def test_a_variant_that_nothing_has_is_an_error(folder: Path, models: Models) -> None:
    with pytest.raises(ModelError, match="no file of the variant 'fp16'"):
        open_checkpoint(folder, variant="fp16")
    with pytest.raises(ModelError, match="no weights of the variant 'fp16'"):
        open_checkpoint(folder / "unet", variant="fp16")


@pytest.mark.parametrize(
    ("index", "shard", "variant"),
    [
        ("{stem}.safetensors.index.json", "{stem}-{n}.safetensors", None),
        ("{stem}.safetensors.index.fp16.json", "{stem}.fp16-{n}.safetensors", "fp16"),
        ("{stem}.safetensors.index.fp16.json", "{stem}.fp16-{n}.safetensors", None),
        ("{stem}.safetensors.fp16.index.json", "{stem}-{n}.fp16.safetensors", "fp16"),
    ],
)
def test_shards_are_read(
    folder: Path, models: Models, index: str, shard: str, variant: str | None
) -> None:
    for component, stem in (("unet", UNET), ("vae", UNET), ("text_encoder", "model")):
        in_shards(
            folder / component,
            stem,
            3,
            index=index.format(stem=stem),
            shard=shard.format(stem=stem, n="{number:05}-of-{parts:05}"),
        )
    assert_loads(folder, models, variant=variant)


def test_a_shard_that_is_missing_is_named(folder: Path, models: Models) -> None:
    part = folder / "unet"
    in_shards(part, UNET, 2, index=f"{UNET}.safetensors.index.json", shard="a{number}.safetensors")
    (part / "a2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"a2\.safetensors is missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../vae/w.safetensors", "/etc/passwd", "..", "a/b", "a\0b", ""])
def test_an_index_cannot_name_a_file_elsewhere(folder: Path, models: Models, name: str) -> None:
    part = folder / "unet"
    (part / f"{UNET}.safetensors").unlink()
    index = part / f"{UNET}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.bias": name}}))
    with pytest.raises(FormatError, match="is no name of a file beside it"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (None, "no weight_map"),
        ({"a": 3}, "no weight_map"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
        ({"conv_in.bias": "x.safetensors", "more": "x.safetensors"}, "not said to be"),
    ],
)
def test_an_index_that_is_not_of_its_files_is_refused(
    folder: Path, models: Models, places: Any, said: str
) -> None:
    part = folder / "unet"
    (part / f"{UNET}.safetensors").rename(part / "x.safetensors")
    index = part / f"{UNET}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(FormatError, match=said):
        open_checkpoint(folder)


def test_tensors_that_an_index_promises_must_be_there(folder: Path, models: Models) -> None:
    part = folder / "unet"
    in_shards(part, UNET, 1, index=f"{UNET}.safetensors.index.json", shard="a.safetensors")
    index = part / f"{UNET}.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": places | {"more": "a.safetensors"}}))
    with pytest.raises(FormatError, match="1 tensors are in no file, the first more"):
        open_checkpoint(folder)


def test_pickles_are_read_where_there_is_nothing_else(folder: Path, models: Models) -> None:
    names = {"unet": UNET, "vae": UNET, "text_encoder": "pytorch_model"}
    for component, stem in names.items():
        for file in (folder / component).glob("*.safetensors"):
            file.unlink()
        pickled, members = torch_pickle(torch_weights(models.load(component)))
        write_archive(folder / component / f"{stem}.bin", pickled, members)
    assert_loads(folder, models)
    # A file that cannot hold code is preferred, whatever the other holds.
    for component, stem in names.items():
        write_archive(folder / component / f"{stem}.bin", b"cos\nsystem\n.")
        stem = "model" if component == "text_encoder" else UNET
        arrays = torch_weights(models.load(component))
        write_safetensors(folder / component / f"{stem}.safetensors", arrays)
    assert_loads(folder, models)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_component_alone_is_read(folder: Path, models: Models, component: str) -> None:
    stem = "model" if component == "text_encoder" else UNET
    for path in (folder / component, folder / component / f"{stem}.safetensors"):
        checkpoint = open_checkpoint(path)
        assert checkpoint.components == (component,)
        assert checkpoint.scheduler_config == {}
        assert_same_weights(checkpoint.load(component), models.load(component))


def test_old_names_are_read(folder: Path, models: Models) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    file = folder / "vae" / f"{UNET}.safetensors"
    arrays, _ = load_arrays(file)
    mx.eval(arrays)
    renamed = {}
    for name, value in arrays.items():
        for new, was in old.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{was}.")
        renamed[name] = value
    assert renamed.keys() - arrays.keys()
    mx.save_safetensors(str(file), renamed)
    file = folder / "text_encoder" / "model.safetensors"
    arrays, _ = load_arrays(file)
    mx.eval(arrays)
    renamed = {name.removeprefix("text_model."): value for name, value in arrays.items()}
    renamed["embeddings.position_ids"] = mx.arange(77)[None]
    mx.save_safetensors(str(file), renamed)
    assert_loads(folder, models)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 200_000, "\xff", '{"a": 1' + "0" * 5000 + "}"]
)
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
def test_a_config_that_is_none_is_named(
    folder: Path, models: Models, name: str, content: str
) -> None:
    (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(FormatError, match=name):
        open_checkpoint(folder)


def test_what_is_missing_is_named(folder: Path, models: Models, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        open_checkpoint(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"neither model_index\.json nor config\.json"):
        open_checkpoint(tmp_path / "empty")
    with pytest.raises(UsageError, match="only folders have variants"):
        open_checkpoint(folder / "unet" / f"{UNET}.safetensors", variant="fp16")
    with pytest.raises(UsageError, match="averaged weights"):
        open_checkpoint(folder, ema=True)
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"unet/config\.json is missing"):
        open_checkpoint(folder)


def test_weights_that_are_missing_are_named(folder: Path, models: Models) -> None:
    (folder / "vae" / f"{UNET}.safetensors").unlink()
    with pytest.raises(ModelError, match="vae: no weights in it"):
        open_checkpoint(folder)


def test_a_pipeline_of_another_kind_is_refused(folder: Path, models: Models) -> None:
    (folder / "model_index.json").write_text('{"transformer": ["diffusers", "X"]}')
    with pytest.raises(ModelError, match="names no component of Stable Diffusion"):
        open_checkpoint(folder)
    edit(folder / "unet" / "config.json", _class_name={"a": 1})
    with pytest.raises(ModelError, match="a model of class"):
        open_checkpoint(folder / "unet")
    edit(folder / "unet" / "config.json", _class_name="FluxTransformer2DModel")
    with pytest.raises(ModelError, match="FluxTransformer2DModel, which is none"):
        open_checkpoint(folder / "unet")


def test_a_wish_for_what_is_predicted_wins(folder: Path, models: Models) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    wished = open_checkpoint(folder, prediction_type="v_prediction")
    assert wished.scheduler_config["prediction_type"] == "v_prediction"
    assert open_checkpoint(folder).scheduler_config["prediction_type"] == "epsilon"
    with pytest.raises(UsageError, match="is nothing a model predicts"):
        open_checkpoint(folder, prediction_type="velocity")
