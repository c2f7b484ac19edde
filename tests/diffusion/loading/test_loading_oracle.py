"""Against diffusers, transformers and torch themselves: what they write and what they read."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.loading import Checkpoint, open_checkpoint, save_folder, single_file
from macai.diffusion.loading.coverage import torch_shapes
from macai.diffusion.loading.single_file import Wishes, read_single_file
from macai.diffusion.loading.weights import WeightsFile, open_weights
from macai.diffusion.models import from_config
from tests.diffusion.loading.cases import (
    PROJECTED,
    TEXT,
    TINY_UNETS,
    UNET,
    VAE,
    golden_file,
    random_model,
    torch_weights,
)

pytestmark = pytest.mark.oracle
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "variant": {"variant": "fp16"},
    "pickled": {"safe_serialization": False},
    "sharded": {"max_shard_size": "60KB"},
    "sharded variant": {"max_shard_size": "60KB", "variant": "fp16"},
    "sharded pickles": {"max_shard_size": "60KB", "safe_serialization": False},
}


def randomised(model: Any, seed: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def text_encoder(config: dict[str, Any], seed: int) -> Any:
    import transformers

    kept = {k: v for k, v in config.items() if k != "architectures"}
    model = getattr(transformers, config["architectures"][0])
    return randomised(model(transformers.CLIPTextConfig(**kept)), seed)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import CLIPTokenizer

    from macai.diffusion.loading.save import _write_tokenizer
    from macai.diffusion.tokenizer import ClipTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    _write_tokenizer(ClipTokenizer.shipped(padding="!"), folder)
    return CLIPTokenizer.from_pretrained(folder)


def plain(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != "_class_name"}


@pytest.fixture(scope="module")
def pipeline(tokenizer: Any) -> Any:
    import diffusers

    return diffusers.StableDiffusionPipeline(
        unet=randomised(diffusers.UNet2DConditionModel(**plain(UNET)), 1),
        vae=randomised(diffusers.AutoencoderKL(**plain(VAE)), 2),
        text_encoder=text_encoder(TEXT, 3),
        tokenizer=tokenizer,
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def xl_pipeline(tokenizer: Any) -> Any:
    import diffusers

    return diffusers.StableDiffusionXLPipeline(
        unet=randomised(diffusers.UNet2DConditionModel(**plain(TINY_UNETS["sdxl"])), 1),
        vae=randomised(diffusers.AutoencoderKL(**plain(VAE)), 2),
        text_encoder=text_encoder(TEXT, 3),
        text_encoder_2=text_encoder(PROJECTED, 4),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading"),
    )


def assert_equal(checkpoint: Checkpoint, pipeline: Any, kind: Any = None) -> None:
    """Compare every tensor, in the type that it was saved in."""
    assert set(checkpoint.components) == {
        name for name in pipeline.components if name in ("unet", "vae") or "encoder" in name
        if name != "image_encoder" and pipeline.components[name] is not None
    }  # fmt: skip
    for component in checkpoint.components:
        model = checkpoint.load(component)
        ours = torch_weights(model)
        theirs = {}
        for name, value in getattr(pipeline, component).state_dict().items():
            name = name if name in ours else f"text_model.{name}"
            theirs[name] = value if kind is None else value.to(kind)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value.float().numpy(), err_msg=name)


@pytest.mark.parametrize("way", WAYS)
def test_what_diffusers_saves_is_read(pipeline: Any, tmp_path: Path, way: str) -> None:
    import torch

    pipeline.save_pretrained(tmp_path / "model", **WAYS[way])
    checkpoint = open_checkpoint(tmp_path / "model")
    assert_equal(checkpoint, pipeline)
    assert_equal(open_checkpoint(tmp_path / "model", dtype="float16"), pipeline, torch.float16)
    assert_equal(open_checkpoint(tmp_path / "model", dtype="bfloat16"), pipeline, torch.bfloat16)
    if "variant" in way:
        assert_equal(open_checkpoint(tmp_path / "model", variant="fp16"), pipeline)
    tokens = checkpoint.tokenizer("text_encoder").ids(["a red, apple!"])[0].tolist()
    assert tokens == pipeline.tokenizer("a red, apple!", padding="max_length").input_ids


def test_half_precision_files_are_read(pipeline: Any, tmp_path: Path) -> None:
    import torch

    for kind in (torch.float16, torch.bfloat16):
        folder = tmp_path / str(kind)
        pipeline.save_pretrained(tmp_path / "model")
        loaded = type(pipeline).from_pretrained(tmp_path / "model", dtype=kind, safety_checker=None)
        loaded.save_pretrained(folder)
        assert_equal(open_checkpoint(folder), pipeline, kind)


def test_what_transformers_pickled_is_read(pipeline: Any, tmp_path: Path) -> None:
    import torch

    pipeline.save_pretrained(tmp_path / "model")
    part = tmp_path / "model" / "text_encoder"
    (part / "model.safetensors").unlink()
    # As transformers 4 wrote it.
    state = {f"text_model.{k}": v for k, v in pipeline.text_encoder.state_dict().items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77).expand(1, -1)
    for zipped in (True, False):
        torch.save(state, part / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        assert_equal(open_checkpoint(tmp_path / "model"), pipeline)


@pytest.mark.parametrize("which", ["pipeline", "xl_pipeline"])
def test_diffusers_reads_what_is_saved_here(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import torch

    pipeline = request.getfixturevalue(which)
    pipeline.save_pretrained(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    assert_equal(checkpoint, pipeline)
    save_folder(checkpoint, tmp_path / "ours")
    again = type(pipeline).from_pretrained(tmp_path / "ours")
    for component in checkpoint.components:
        expected = getattr(pipeline, component).state_dict()
        found = getattr(again, component).state_dict()
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
    ours, theirs = dict(again.scheduler.config), dict(pipeline.scheduler.config)
    theirs.pop("_use_default_values")  # which were not given, before there was a file
    ours.pop("_use_default_values", None)
    assert ours == theirs
    text = "a red, apple! é"
    assert again.tokenizer(text).input_ids == pipeline.tokenizer(text).input_ids


def test_diffusers_reads_an_index_made_anew(tmp_path: Path) -> None:
    import diffusers

    from macai.diffusion.loading import Models
    from tests.diffusion.loading.cases import random_models

    models = random_models()
    assert isinstance(models, Models)
    save_folder(models, tmp_path / "model")
    read = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model")
    assert type(read) is diffusers.StableDiffusionPipeline
    assert type(read.scheduler) is diffusers.PNDMScheduler
    theirs = read.tokenizer("a red apple", padding="max_length").input_ids
    assert theirs == models.tokenizer("text_encoder").ids(["a red apple"])[0].tolist()
    for name, value in torch_weights(models.load("unet")).items():
        np.testing.assert_array_equal(read.unet.state_dict()[name].numpy(), value)


def test_a_controlnet_of_diffusers_is_read(pipeline: Any, tmp_path: Path) -> None:
    import diffusers

    net = randomised(diffusers.ControlNetModel.from_unet(pipeline.unet), 5)
    net.save_pretrained(tmp_path / "net", safe_serialization=False)
    checkpoint = open_checkpoint(tmp_path / "net")
    assert checkpoint.components == ("controlnet",)
    ours, theirs = torch_weights(checkpoint.load("controlnet")), net.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value.numpy(), err_msg=name)


@pytest.mark.parametrize("zipped", [True, False])
def test_every_kind_of_tensor_that_torch_saves_is_read(tmp_path: Path, zipped: bool) -> None:
    import torch

    path = tmp_path / "m.ckpt"
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(24, 36, generator=generator)
    tensors = {"base": base, "half base": base.half(), "brain base": base.bfloat16()}
    for number, (rows, columns) in enumerate(
        (slice(a, None, b), slice(c, None, d)) for a in (0, 3) for b in (1, 2) for c in (0, 5)
        for d in (1, 4)
    ):  # fmt: skip
        for name in ("base", "half base", "brain base"):
            tensors[f"{name} {number}"] = tensors[name][rows, columns]
            tensors[f"{name} {number} turned"] = tensors[name][rows, columns].T
            tensors[f"{name} {number} deep"] = tensors[name].reshape(2, 12, 6, 6)[:, 1:, :, 2:]
    tensors["permuted"] = base.reshape(2, 12, 6, 6).permute(3, 1, 0, 2)
    torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=zipped)
    read = open_weights(path).tensors
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        found = read[name].to_mlx(read[name].read())
        np.testing.assert_array_equal(
            np.array(found.astype(mx.float32)), value.float().numpy(), err_msg=name
        )
    # Shared storages are stored once.
    assert path.stat().st_size < 2 * sum(base.nbytes // n for n in (1, 2, 2)) + 60_000


def test_what_torch_itself_refuses_is_refused(tmp_path: Path) -> None:
    import torch

    from macai.errors import ModelError

    torch.save({"a": torch.ones(3), "b": Path("x")}, tmp_path / "m.ckpt")
    with pytest.raises(Exception, match="PosixPath"):
        torch.load(tmp_path / "m.ckpt", weights_only=True)
    with pytest.raises(ModelError, match="PosixPath"):
        open_weights(tmp_path / "m.ckpt")


@pytest.mark.parametrize(
    "kind", ["sd1", "sd1-inpaint", "sd2", "sdxl", "sdxl-refiner", "controlnet"]
)
def test_numbers_go_where_diffusers_puts_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name of a full-size file, with a few numbers of its own in each tensor."""
    import torch

    from tests.oracles.make_ldm_names import converted, tiny

    golden = golden_file(kind)
    spelt = tiny(list(golden), {n: t.shape for n, t in golden.items()})
    monkeypatch.setattr(single_file, "open_weights", lambda path: WeightsFile(golden))
    contents = read_single_file(Path("m.safetensors"), Wishes())
    theirs = converted(kind, spelt)
    assert set(theirs) == set(contents.parts)
    for component, part in contents.parts.items():
        table = part.table(torch_shapes(from_config(part.config)))
        ours = {}
        for name, sources in table.items():
            source = next(s for s in sources if s.name in spelt)
            value = spelt[source.name]
            if source.third is not None:
                value = torch.chunk(value, 3)[source.third]
            ours[name] = value.T if source.transposed else value
        expected = {n: v for n, v in theirs[component].items() if not n.endswith("position_ids")}
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(ours[name].squeeze(), value.squeeze()), name


def test_the_classes_of_diffusers_have_the_shapes_of_the_known_configs() -> None:
    import diffusers
    import torch

    from macai.diffusion.loading import known_configs

    for kind, config in known_configs.UNETS.items():
        with torch.device("meta"):
            theirs = diffusers.UNet2DConditionModel(**plain(config)).state_dict()
            vae = diffusers.AutoencoderKL(**plain(known_configs.vae(kind))).state_dict()
            net = diffusers.ControlNetModel(**plain(known_configs.controlnet(kind))).state_dict()
        for state, ours in (
            (theirs, config),
            (vae, known_configs.vae(kind)),
            (net, known_configs.controlnet(kind)),
        ):
            shapes = torch_shapes(from_config(ours))
            assert shapes == {name: tuple(value.shape) for name, value in state.items()}
        for name, text in known_configs.TEXT_ENCODERS[kind].items():
            import transformers

            with torch.device("meta"):
                kept = {k: v for k, v in text.items() if k not in ("architectures", "model_type")}
                model = getattr(transformers, text["architectures"][0])(
                    transformers.CLIPTextConfig(**kept)
                )
            found = torch_shapes(from_config(text))
            expected = {
                n if n in found else f"text_model.{n}": tuple(v.shape)
                for n, v in model.state_dict().items()
            }
            assert found == expected, name


def test_known_schedulers_have_only_options_of_their_classes() -> None:
    import inspect

    import diffusers

    from macai.diffusion.loading import known_configs

    others = {"skip_prk_steps", "clip_sample", "set_alpha_to_one", "sample_max_value"}
    for config in (*known_configs.SCHEDULERS.values(), known_configs.LCM):
        scheduler = getattr(diffusers, config["_class_name"])
        known = set(inspect.signature(scheduler.__init__).parameters)
        # The published files carry options of one another's classes.
        assert set(config) - known - {"_class_name"} <= others
        scheduler.from_config(config)


def test_a_taesd_of_diffusers_is_read(tmp_path: Path) -> None:
    import diffusers

    model = randomised(diffusers.AutoencoderTiny(), 3)
    model.save_pretrained(tmp_path / "taesd")
    config = json.loads((tmp_path / "taesd" / "config.json").read_text())
    shutil.copy(
        tmp_path / "taesd" / "diffusion_pytorch_model.safetensors", tmp_path / "alone.safetensors"
    )
    for path in (tmp_path / "taesd", tmp_path / "alone.safetensors"):
        checkpoint = open_checkpoint(path)
        ours, theirs = torch_weights(checkpoint.load("vae")), model.state_dict()
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value.numpy(), err_msg=name)
    assert open_checkpoint(tmp_path / "taesd").configs["vae"] == config


def test_random_models_have_no_two_numbers_alike() -> None:
    values = np.concatenate([v.reshape(-1) for v in torch_weights(random_model(UNET)).values()])
    assert len(np.unique(values)) > 0.95 * len(values)
