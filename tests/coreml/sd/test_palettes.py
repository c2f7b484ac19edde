from pathlib import Path

import numpy as np
import pytest

from macai.coreml.sd.form import Form
from macai.coreml.sd.manifest import read_sd_manifest
from macai.coreml.sd.palettes import apply_palettes, choose, layers
from macai.coreml.sd.preflight import preflight
from macai.coreml.sd.proof import verify_sd, with_palettes
from macai.coreml.sd.trial import Trial
from macai.coreml.sd.verify import psnr, reference
from macai.errors import UsageError
from macai.mil import open_package
from tests.coreml.sd.bundles import controlnet, export_tiny, sources
from tests.coreml.sd.test_components import configs
from tests.diffusion.tiny import tiny_pipeline_dir

EMOJI = Path(__file__).parents[3] / "recipes/emoji-diffusion"


@pytest.fixture(scope="module")
def wider(tmp_path_factory):
    """A model whose matrices are large enough to have palettes."""
    folder = tmp_path_factory.mktemp("wider") / "m"
    return tiny_pipeline_dir(folder, block_out_channels=[32, 48])


@pytest.fixture(scope="module")
def tried(wider):
    """The U-Net, what runs it, and samples."""
    own = sources(wider)
    trial = Trial(own, Form(), (), 2)
    for made in trial.groups():
        module = own.load(made[0])
        if made[0].name == "Unet":
            return module, made[0], trial.samples.of(made[0])
        trial.try_module(made, module)
    raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["original", "split_einsum"])
def test_a_package_has_the_palettes_and_is_what_the_rounded_model_is(wider, tmp_path, attention):
    manifest, report = export_tiny(wider, tmp_path / "b", bits=4, attention=attention, timesteps=1)
    assert report["passed"]
    assert set(manifest.palettes["unet"].values()) == {4}
    package = open_package(tmp_path / "b/Resources/Unet.mlpackage")
    kinds = [op.type for op in package.functions["main"].operations]
    assert kinds.count("constexpr_lut_to_dense") == len(manifest.palettes["unet"])
    assert package.specification_version == 7
    assert read_sd_manifest(tmp_path / "b").palettes == manifest.palettes
    assert verify_sd(manifest, tmp_path / "b", sources(wider), timesteps=1)["passed"]


@pytest.mark.slow
def test_functions_share_palettes_of_the_newer_form(wider, tmp_path):
    manifest, report = export_tiny(wider, tmp_path / "b", bits=6, sizes=[(48, 32)], timesteps=1)
    assert report["passed"]
    package = open_package(tmp_path / "b/Resources/Unet.mlpackage")
    assert package.specification_version == 9
    one = sum(op.type.startswith("constexpr") for op in package.functions["main"].operations)
    assert one == len(manifest.palettes["unet"])


@pytest.mark.slow
def test_more_bits_are_closer_and_smaller_weights_are_left_alone(wider, tried):
    _, component, samples = tried
    plain, found = sources(wider).load(component), []
    wanted = reference(component, plain, samples[:1])[0]["noise_pred"]
    for bits in (2, 4, 6, 8):
        module = sources(wider).load(component)
        apply_palettes(module, choose(module, component, samples, bits))
        found.append(psnr(reference(component, module, samples[:1])[0]["noise_pred"], wanted))
        assert np.array_equal(module.conv_in.weight, plain.conv_in.weight)
    assert found == sorted(found)
    assert found[-1] - found[0] > 25


@pytest.mark.slow
def test_a_mean_number_of_bits_is_kept_and_measuring_changes_nothing(tried):
    module, component, samples = tried
    before = reference(component, module, samples[:1])[0]["noise_pred"]
    bits = choose(module, component, samples, 4.5)
    after = reference(component, module, samples[:1])[0]["noise_pred"]
    assert np.array_equal(before, after)
    sizes = {path: layer.weight.size for path, layer in layers(module).items()}
    assert bits.keys() == sizes.keys()
    mean = sum(sizes[path] * count for path, count in bits.items()) / sum(sizes.values())
    assert 4.2 < mean <= 4.5
    assert len(set(bits.values())) > 1


def test_bits_and_paths_that_there_are_not_are_refused(wider, tried):
    module, component, samples = tried
    with pytest.raises(UsageError, match="9 bits per weight"):
        choose(module, component, samples, 9)
    with pytest.raises(UsageError, match="no weight is at conv_in"):
        apply_palettes(module, {"conv_in": 4})
    own = with_palettes(sources(wider), Form(), bits=2)
    assert set(own.palettes["unet"].values()) == {2}


def palettes_in(bundle, name):
    package = open_package(bundle / f"Resources/{name}.mlpackage")
    kinds = [op.type for op in package.functions["main"].operations]
    return kinds.count("constexpr_lut_to_dense")


@pytest.mark.slow
def test_controlnets_have_the_unets_bits(wider, tmp_path):
    net = controlnet(tmp_path / "net", block_out_channels=[32, 48])
    manifest, report = export_tiny(wider, tmp_path / "b", controlnets=[net], bits=6, timesteps=1)
    assert report["passed"]
    assert manifest.palettes.keys() == {"unet", "controlnet/Edges"}
    bits = manifest.palettes["controlnet/Edges"]
    assert set(bits.values()) == {6}
    assert not any(path.startswith("controlnet_cond_embedding") for path in bits)
    assert palettes_in(tmp_path / "b", "controlnet/Edges") == len(bits)


@pytest.mark.slow
def test_text_encoders_have_bits_of_their_own(tmp_path):
    manifest, report = export_tiny(EMOJI, tmp_path / "b", text_bits=5, timesteps=1)
    assert report["passed"]
    assert manifest.palettes.keys() == {"text_encoder"}
    bits = manifest.palettes["text_encoder"]
    assert len(set(bits.values())) > 1
    assert palettes_in(tmp_path / "b", "TextEncoder") == len(bits)
    assert palettes_in(tmp_path / "b", "Unet") == 0
    assert verify_sd(manifest, tmp_path / "b", sources(EMOJI), timesteps=1)["passed"]


def test_what_crashes_on_the_neural_engine_has_no_palettes():
    with pytest.raises(UsageError, match="palettes in its text encoders"):
        preflight(
            configs("sdxl"), Form(attention="split_einsum", width=768, height=768), text_bits=8
        )
    preflight(configs("sdxl"), Form(), text_bits=8)
    preflight(configs("sd1"), Form(attention="split_einsum"), text_bits=8)
