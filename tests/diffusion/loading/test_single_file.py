"""Single files of each version, small: what is found in them is what was put in."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.diffusion.loading import known_configs, open_checkpoint, save_folder
from macai.diffusion.loading.sources import (
    clip_table,
    ldm_denoiser_table,
    ldm_vae_table,
    open_clip_table,
)
from macai.errors import ModelError, UsageError
from tests.diffusion.loading.cases import (
    TINY_TEXTS,
    TINY_UNETS,
    UNET,
    VAE,
    assert_same_weights,
    make_versions_tiny,
    random_model,
    renamed,
    torch_pickle,
    torch_weights,
    write_archive,
    write_safetensors,
)

TEXT_PREFIXES = {
    "sd1": {"text_encoder": clip_table("cond_stage_model.transformer.")},
    "sd2": {"text_encoder": open_clip_table("cond_stage_model.model.")},
    "sdxl": {
        "text_encoder": clip_table("conditioner.embedders.0.transformer."),
        "text_encoder_2": open_clip_table("conditioner.embedders.1.model."),
    },
    "sdxl-refiner": {"text_encoder_2": open_clip_table("conditioner.embedders.0.model.")},
}
KINDS = list(TINY_UNETS)


@pytest.fixture(autouse=True)
def tiny_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    make_versions_tiny(monkeypatch)


def whole(kind: str, **changes: Any) -> tuple[dict[str, nn.Module], dict[str, np.ndarray]]:
    """Return models of a version, and the arrays of a single file of them."""
    models = {"unet": random_model(TINY_UNETS[kind] | changes, 1), "vae": random_model(VAE, 2)}
    arrays = renamed(models["unet"], ldm_denoiser_table("model.diffusion_model."))
    arrays |= renamed(models["vae"], ldm_vae_table("first_stage_model."), squeezed=True)
    for seed, (component, config) in enumerate(TINY_TEXTS[kind].items(), 3):
        models[component] = random_model(config, seed)
        arrays |= renamed(models[component], TEXT_PREFIXES[kind][component])
    return models, arrays


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model_is_found_in_one_file(tmp_path: Path, kind: str) -> None:
    models, arrays = whole(kind)
    arrays |= {"alphas_cumprod": np.ones(10), "betas": np.ones(10), "other.thing": np.ones(2)}
    checkpoint = open_checkpoint(write_safetensors(tmp_path / "m.safetensors", arrays))
    assert checkpoint.kind == kind
    assert set(checkpoint.components) == set(models)
    assert checkpoint.ignored == {"schedule": 2, "other.*": 1}
    for component, model in models.items():
        assert_same_weights(checkpoint.load(component), model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_file_is_the_same(tmp_path: Path, kind: str) -> None:
    models, arrays = whole(kind)
    pickled, members = torch_pickle(arrays)
    checkpoint = open_checkpoint(write_archive(tmp_path / "m.ckpt", pickled, members))
    assert checkpoint.kind == kind
    for component, model in models.items():
        assert_same_weights(checkpoint.load(component), model)


def test_a_file_becomes_a_folder_that_is_the_same_model(tmp_path: Path) -> None:
    models, arrays = whole("sdxl")
    checkpoint = open_checkpoint(write_safetensors(tmp_path / "m.safetensors", arrays))
    save_folder(checkpoint, tmp_path / "folder")
    again = open_checkpoint(tmp_path / "folder")
    assert set(again.components) == set(models)
    for component, model in models.items():
        assert_same_weights(again.load(component), model)
    assert again.kind == "sdxl"
    assert again.configs == checkpoint.configs
    assert again.scheduler_config == checkpoint.scheduler_config
    for component in ("text_encoder", "text_encoder_2"):
        ours, theirs = again.tokenizer(component), checkpoint.tokenizer(component)
        assert ours.ids(["a red apple!"]).tolist() == theirs.ids(["a red apple!"]).tolist()


def test_padding_is_that_of_the_version(tmp_path: Path) -> None:
    for kind in KINDS:
        file = write_safetensors(tmp_path / f"{kind}.safetensors", whole(kind)[1])
        checkpoint = open_checkpoint(file)
        pads = {name: checkpoint.tokenizer(name).pad_id for name in TINY_TEXTS[kind]}
        end = 49407
        assert (
            pads
            == {
                "sd1": {"text_encoder": end},
                "sd2": {"text_encoder": 0},
                "sdxl": {"text_encoder": end, "text_encoder_2": 0},
                "sdxl-refiner": {"text_encoder_2": 0},
            }[kind]
        )


@pytest.mark.parametrize("channels", [8, 9])
def test_models_that_take_more_channels_are_known(tmp_path: Path, channels: int) -> None:
    models, arrays = whole("sd1", in_channels=channels)
    checkpoint = open_checkpoint(write_safetensors(tmp_path / "m.safetensors", arrays))
    assert checkpoint.configs["unet"]["in_channels"] == channels
    assert_same_weights(checkpoint.load("unet"), models["unet"])


def test_averaged_weights_are_taken_when_asked_for(tmp_path: Path) -> None:
    _, arrays = whole("sd1")
    averaged = random_model(TINY_UNETS["sd1"], 9)
    arrays |= renamed(averaged, ldm_denoiser_table("model.diffusion_model.", ema=True))
    arrays |= {"model_ema.decay": np.ones(1), "model_ema.num_updates": np.ones(1)}
    file = write_safetensors(tmp_path / "m.safetensors", arrays)
    assert_same_weights(open_checkpoint(file, ema=True).load("unet"), averaged)
    plain = open_checkpoint(file)
    assert plain.ignored["averaged weights"] == len(torch_weights(averaged)) + 2
    assert not np.array_equal(
        torch_weights(plain.load("unet"))["conv_in.bias"], torch_weights(averaged)["conv_in.bias"]
    )


def marked(arrays: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return arrays | {name: np.zeros(0) for name in names}


@pytest.mark.parametrize(
    ("kind", "marks", "metadata", "wish", "predicted"),
    [
        ("sd1", [], {}, None, "epsilon"),
        ("sd1", [], {}, "v_prediction", "v_prediction"),
        ("sd2", [], {}, None, "v_prediction"),
        ("sd2", [], {}, "epsilon", "epsilon"),
        ("sd2", [], {"modelspec.prediction_type": "epsilon"}, None, "epsilon"),
        ("sd2", [], {"modelspec.prediction_type": "v"}, None, "v_prediction"),
        ("sd2", [], {"modelspec.prediction_type": "x"}, None, "v_prediction"),
        ("sd2", [], {"modelspec.architecture": "stable-diffusion-v2-512"}, None, "epsilon"),
        ("sd2", [], {"modelspec.architecture": "stable-diffusion-v2-768-v"}, None, "v_prediction"),
        ("sdxl", [], {}, None, "epsilon"),
        ("sdxl", ["v_pred"], {}, None, "v_prediction"),
        ("sdxl", ["v_pred"], {}, "epsilon", "epsilon"),
    ],
)
def test_what_is_predicted_is_wished_or_said_or_usual(
    tmp_path: Path,
    kind: str,
    marks: list[str],
    metadata: dict[str, str],
    wish: str | None,
    predicted: str,
) -> None:
    file = tmp_path / "m.safetensors"
    write_safetensors(file, marked(whole(kind)[1], *marks), metadata)
    checkpoint = open_checkpoint(file, prediction_type=wish)
    assert checkpoint.scheduler_config["prediction_type"] == predicted
    if kind == "sd2":
        size = 64 if predicted == "epsilon" else TINY_UNETS["sd2"]["sample_size"]
        assert checkpoint.configs["unet"]["sample_size"] == size


def test_the_steps_of_the_sd2_base_say_what_it_predicts(tmp_path: Path) -> None:
    pickled, members = torch_pickle(whole("sd2")[1])
    state = b"\x80\x02}(X\x0b\0\0\0global_stepJ" + (875000).to_bytes(4, "little")
    state += b"X\x0a\0\0\0state_dict" + pickled[2:-1] + b"u."
    file = write_archive(tmp_path / "m.ckpt", state, members)
    assert open_checkpoint(file).scheduler_config["prediction_type"] == "epsilon"


def test_noise_without_signal_is_marked(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    write_safetensors(file, marked(whole("sdxl")[1], "v_pred", "ztsnr"))
    config = open_checkpoint(file).scheduler_config
    assert config["rescale_betas_zero_snr"] is True
    assert config["timestep_spacing"] == "trailing"
    assert open_checkpoint(file).ignored == {"marks": 2}


def test_a_text_encoder_with_the_oldest_names_is_read(tmp_path: Path) -> None:
    models, arrays = whole("sd1")
    old = {n.replace("transformer.text_model.", "transformer."): v for n, v in arrays.items()}
    assert old.keys() - arrays.keys()
    checkpoint = open_checkpoint(write_safetensors(tmp_path / "m.safetensors", old))
    assert_same_weights(checkpoint.load("text_encoder"), models["text_encoder"])


def test_a_file_without_some_components_is_read(tmp_path: Path) -> None:
    _, arrays = whole("sd1")
    unet = {n: v for n, v in arrays.items() if n.startswith("model.")}
    checkpoint = open_checkpoint(write_safetensors(tmp_path / "m.safetensors", unet))
    assert checkpoint.components == ("unet",)
    with pytest.raises(ModelError, match="no vae in it"):
        checkpoint.load("vae")


def test_a_tensor_of_no_layer_is_an_error(tmp_path: Path) -> None:
    _, arrays = whole("sd1")
    arrays["model.diffusion_model.input_blocks.1.1.ip_adapter.weight"] = np.ones(3)
    checkpoint = open_checkpoint(write_safetensors(tmp_path / "m.safetensors", arrays))
    with pytest.raises(ModelError, match=r"1 are not the model's \(model.*ip_adapter\.weight\)"):
        checkpoint.load("unet")
    checkpoint.load("vae")


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae.", ""])
def test_an_autoencoder_alone_is_read(tmp_path: Path, prefix: str) -> None:
    vae = random_model(VAE)
    file = tmp_path / "vae.safetensors"
    write_safetensors(file, renamed(vae, ldm_vae_table(prefix), squeezed=True))
    checkpoint = open_checkpoint(file)
    assert checkpoint.components == ("vae",)
    assert_same_weights(checkpoint.load("vae"), vae)
    assert checkpoint.configs["vae"]["scaling_factor"] == 0.18215
    assert open_checkpoint(file, kind="sdxl").configs["vae"]["scaling_factor"] == 0.13025


def test_an_autoencoder_with_diffusers_names_is_read(tmp_path: Path) -> None:
    vae = random_model(VAE)
    file = write_safetensors(tmp_path / "vae.safetensors", torch_weights(vae))
    assert_same_weights(open_checkpoint(file).load("vae"), vae)


def test_a_small_autoencoder_is_read(tmp_path: Path) -> None:
    taesd = random_model({"_class_name": "AutoencoderTiny"})
    file = write_safetensors(tmp_path / "taesd.safetensors", torch_weights(taesd))
    checkpoint = open_checkpoint(file)
    assert checkpoint.components == ("vae",)
    assert_same_weights(checkpoint.load("vae"), taesd)


@pytest.mark.parametrize("prefix", ["control_model.", ""])
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_controlnet_alone_is_read(tmp_path: Path, kind: str, prefix: str) -> None:
    net = random_model(known_configs.controlnet(kind))
    file = tmp_path / "control.safetensors"
    write_safetensors(file, renamed(net, ldm_denoiser_table(prefix)))
    checkpoint = open_checkpoint(file)
    assert (checkpoint.kind, checkpoint.components) == (kind, ("controlnet",))
    assert_same_weights(checkpoint.load("controlnet"), net)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_controlnet_with_diffusers_names_is_read(tmp_path: Path, kind: str) -> None:
    net = random_model(known_configs.controlnet(kind))
    file = write_safetensors(tmp_path / "control.safetensors", torch_weights(net))
    checkpoint = open_checkpoint(file)
    assert checkpoint.kind == kind
    assert_same_weights(checkpoint.load("controlnet"), net)


def test_a_unet_alone_is_read(tmp_path: Path) -> None:
    unet = random_model(TINY_UNETS["sd2"] | {"time_cond_proj_dim": 6, "in_channels": 9})
    file = write_safetensors(tmp_path / "unet.safetensors", torch_weights(unet))
    checkpoint = open_checkpoint(file)
    assert (checkpoint.kind, checkpoint.components) == ("sd2", ("unet",))
    assert_same_weights(checkpoint.load("unet"), unet)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA"),
        ("unet.down_blocks.0.attn1.to_q.lora_A.weight", "a LoRA"),
        ("model.diffusion_model.joint_blocks.0.x", "does not attend to a text"),
        ("joint_blocks.0.context_block.x", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.x", "Flux"),
        ("down_blocks.0.motion_modules.0.x", "a motion module"),
        ("emb_params", "a textual inversion"),
        ("whatever.weight", "its first tensor is called whatever.weight"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, name: str, said: str) -> None:
    file = write_safetensors(tmp_path / "m.safetensors", {name: np.ones((2, 2))})
    with pytest.raises(ModelError, match=said):
        open_checkpoint(file)


def test_an_empty_file_of_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a model that is known"):
        open_checkpoint(write_safetensors(tmp_path / "m.safetensors", {}))


@pytest.mark.parametrize("changes", [{"cross_attention_dim": 640}, {"in_channels": 7}])
def test_another_unet_is_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    _, arrays = whole("sd1", **changes)
    with pytest.raises(ModelError, match=f"its U-Net .* {next(iter(changes.values()))}"):
        open_checkpoint(write_safetensors(tmp_path / "m.safetensors", arrays))


@pytest.mark.parametrize("name", ["edm_mean", "edm_vpred.sigma_max"])
def test_a_schedule_of_its_own_is_refused(tmp_path: Path, name: str) -> None:
    arrays = whole("sdxl")[1] | {name: np.ones(4)}
    with pytest.raises(ModelError, match="it needs a schedule of its own"):
        open_checkpoint(write_safetensors(tmp_path / "m.safetensors", arrays))


def test_averaged_weights_are_of_a_whole_model(tmp_path: Path) -> None:
    file = write_safetensors(tmp_path / "vae.safetensors", torch_weights(random_model(VAE)))
    with pytest.raises(UsageError, match="without averaged weights"):
        open_checkpoint(file, ema=True)


def test_numbers_of_eight_bits_are_read(tmp_path: Path) -> None:
    models, arrays = whole("sd1")
    rounded = {
        name: mx.to_fp8(mx.array(np.ascontiguousarray(value, np.float32)))
        for name, value in arrays.items()
    }
    file = tmp_path / "m.safetensors"
    mx.save_safetensors(str(file), rounded)
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"U8"', b'"F8_E4M3"')
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    found = torch_weights(open_checkpoint(file).load("unet"))
    for name, value in torch_weights(models["unet"]).items():
        np.testing.assert_allclose(found[name], value, rtol=0.07, atol=2e-3, err_msg=name)
    assert UNET["norm_num_groups"] == 8
