"""ControlNets, U-Nets that heed them, for inpainting, and of LCMs: the contract, and the proof."""

import numpy as np
import pytest

from macai.coreml.sd.components import components
from macai.coreml.sd.form import Form
from macai.coreml.sd.manifest import read_sd_manifest
from macai.coreml.sd.picture import Wanted, make_picture
from macai.coreml.sd.proof import verify_sd
from macai.coreml.sd.sources import swift_name
from macai.coreml.sd.verify import psnr
from macai.diffusion.loading.known_configs import controlnet as config_of
from macai.errors import ExportError, UsageError
from tests.coreml.sd.bundles import controlnet, export_tiny, run, sources
from tests.coreml.sd.test_components import FULL, HALF, configs, features, spec_of
from tests.coreml.sd.test_export import unet_inputs
from tests.diffusion.tiny import tiny_pipeline_dir

# ControlNet.swift and Unet.swift name them so; the shapes are those of 512 x 512 pixels.
RESIDUALS = [
    *[(2, 320, 64, 64)] * 3, (2, 320, 32, 32),
    *[(2, 640, 32, 32)] * 2, (2, 640, 16, 16),
    *[(2, 1280, 16, 16)] * 2, *[(2, 1280, 8, 8)] * 4,
]  # fmt: skip


def named(kind, **form):
    made = components(configs(kind), Form(**form), {"Edges": config_of(kind)})
    return {component.name: component for component in made}


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return controlnet(tmp_path_factory.mktemp("net") / "edges")


@pytest.fixture(scope="module")
def controlled(model, net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("controlled") / "tiny"
    return folder, export_tiny(model, folder, controlnets=[net], timesteps=1)


def test_a_controlnet_and_its_unet_have_the_inputs_and_outputs_that_swift_knows():
    made = named("sd1")
    names = [f"additional_residual_{n}" for n in range(13)]
    net = made["controlnet/Edges"]
    assert {n: f.shape for n, f in net.inputs.items()} == {
        "sample": (2, 4, 64, 64),
        "timestep": (2,),
        "encoder_hidden_states": (2, 768, 1, 77),
        "controlnet_cond": (2, 3, 512, 512),
    }
    assert list(net.outputs) == names
    unet = made["ControlledUnet"]
    plain = [name for name in net.inputs if name != "controlnet_cond"]
    assert list(unet.inputs) == plain + names
    assert [unet.inputs[name].shape for name in names] == RESIDUALS
    assert list(unet.outputs) == ["noise_pred"]
    assert list(made) == [
        "TextEncoder", "controlnet/Edges", "Unet", "ControlledUnet", "VAEDecoder", "VAEEncoder",
    ]  # fmt: skip


def test_saved_residuals_are_float32_of_a_controlnet_and_float16_into_the_unet(controlled):
    folder, _ = controlled
    net = spec_of(folder, "controlnet/Edges").description
    found = features(net.output)
    assert len(found) == 5
    assert {kind for kind, _ in found.values()} == {FULL}  # ControlNet.swift binds floats
    assert features(net.input)["controlnet_cond"] == (HALF, [2, 3, 32, 32])
    taken = features(spec_of(folder, "ControlledUnet").description.input)
    assert {name: shape for name, (_, shape) in taken.items() if name in found} == {
        name: shape for name, (_, shape) in found.items()
    }
    assert {taken[name][0] for name in found} == {HALF}


def test_a_controlnet_and_its_unet_agree_with_their_modules(controlled, model, net):
    folder, (manifest, report) = controlled
    assert report["passed"]
    assert {"Unet", "ControlledUnet", "controlnet/Edges"} < set(report["packages"])
    (described,) = manifest.source["controlnets"]
    assert described["name"] == "Edges"
    with pytest.raises(UsageError, match="not the ControlNets") as error:
        verify_sd(manifest, folder, sources(model))
    assert error.value.hint == "it was made with --controlnet Edges=PATH"


def test_residuals_of_zero_change_nothing_and_others_do(controlled):
    folder, (manifest, _) = controlled
    specs = manifest.packages["ControlledUnet"].inputs
    residuals = {n: s["shape"] for n, s in specs.items() if n.startswith("additional")}
    none = {name: np.zeros(shape, np.float32) for name, shape in residuals.items()}
    given = unet_inputs()
    plain = run(folder, "Unet", **given)["noise_pred"]
    assert psnr(run(folder, "ControlledUnet", **given, **none)["noise_pred"], plain) > 120
    for name, zeros in none.items():
        some = none | {name: zeros + 1}
        assert psnr(run(folder, "ControlledUnet", **given, **some)["noise_pred"], plain) < 60


@pytest.mark.parametrize("attention", ["split_einsum", "split_einsum_v2"])
@pytest.mark.slow
def test_a_controlnet_can_be_for_the_neural_engine(model, net, tmp_path, attention):
    _, report = export_tiny(
        model, tmp_path / "b", controlnets=[net], timesteps=1, attention=attention
    )
    assert report["passed"]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("sdxl", {}, "has none for SDXL"),
        ("sd1", {"cross_attention_dim": 1024}, "for a U-Net of another size"),
        ("sd1", {"layers_per_block": 1}, "for a U-Net of another size"),
        ("sd1", {"num_class_embeds": 4}, "takes classes"),
        ("sd1", {"global_pool_conditions": True}, "pools what it finds"),
    ],
)
def test_a_controlnet_that_swift_cannot_use_is_refused(kind, change, message):
    own = configs(kind)
    with pytest.raises(ExportError, match=message):
        components(own, Form(), {"Edges": config_of("sd1") | change})


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("lllyasviel/sd-controlnet-mlsd", "LllyasvielSdControlnetMlsd"),
        ("control_v11p_sd15_canny", "ControlV11PSd15Canny"),
    ],
)
def test_controlnets_are_called_as_apples_exporter_calls_them(given, name):
    assert swift_name(given) == name


def test_a_unet_for_inpainting_sees_a_mask_and_what_it_leaves(tmp_path):
    model = tiny_pipeline_dir(tmp_path / "m", in_channels=9)
    manifest, report = export_tiny(model, tmp_path / "b", timesteps=1)
    assert report["passed"]
    assert manifest.packages["Unet"].inputs["sample"]["shape"] == [2, 9, 16, 16]
    picture = make_picture(tmp_path / "b", manifest, Wanted(prompt="an apple", steps=2))
    assert picture.shape == (1, 32, 32, 3)
    assert np.isfinite(picture).all()


@pytest.mark.slow
def test_the_guidance_of_an_lcm_is_in_its_package(tmp_path):
    model = tiny_pipeline_dir(tmp_path / "m", time_cond_proj_dim=16)
    with pytest.raises(ExportError, match="takes the guidance") as error:
        export_tiny(model, tmp_path / "none")
    assert "--guidance 8 --batch 1" in error.value.hint
    found = []
    for guidance in (1.0, 8.0):
        folder = tmp_path / str(guidance)
        manifest, report = export_tiny(model, folder, guidance=guidance, batch=1, timesteps=1)
        assert report["passed"]
        assert read_sd_manifest(folder).guidance == guidance
        found.append(run(folder, "Unet", **unet_inputs(1))["noise_pred"])
    assert list(manifest.packages["Unet"].inputs) == [
        "sample", "timestep", "encoder_hidden_states",
    ]  # fmt: skip
    assert psnr(*found) < 70


def test_a_guidance_is_for_models_that_take_one():
    with pytest.raises(UsageError, match="for LCMs"):
        components(configs("sd1"), Form(guidance=8.0))
