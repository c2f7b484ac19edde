import numpy as np
import pytest

from macai.coreml.sd.form import Form
from macai.coreml.sd.manifest import read_sd_manifest
from macai.coreml.sd.picture import Wanted, make_picture
from macai.coreml.sd.proof import verify_sd
from macai.coreml.sd.variants import variants
from macai.coreml.sd.verify import psnr
from macai.errors import PackageError, UsageError
from macai.mil import open_package
from tests.coreml.sd.bundles import export_tiny, lora_file, read, run, sources
from tests.coreml.sd.test_export import unet_inputs


@pytest.fixture(scope="module")
def ink(model, tmp_path_factory):
    return read(model, lora_file(tmp_path_factory.mktemp("lora") / "ink.safetensors"), 0.8)


@pytest.fixture(scope="module")
def several(model, ink, tmp_path_factory):
    folder = tmp_path_factory.mktemp("several") / "tiny"
    made = export_tiny(model, folder, adapters={"ink": ink}, sizes=[(48, 32)], timesteps=1)
    return folder, made


def test_every_package_has_every_function_and_is_for_ios_18(several):
    folder, (manifest, _) = several
    for info in manifest.packages.values():
        package = open_package(folder / info.package)
        assert set(package.functions) == {"main", "w48h32", "ink"}
        assert package.default_function == "main"
    assert manifest.minimum_os == {"iOS": "18.0", "macOS": "15.0"}
    assert manifest.functions["w48h32"] == {"width": 48, "height": 32, "lora": None}
    assert read_sd_manifest(folder).functions == manifest.functions


def test_functions_that_compute_something_else_are_compared_with_the_model(several, model, ink):
    folder, (manifest, report) = several
    assert report["passed"]
    assert {name for name in report["packages"] if ":" in name} == {
        "Unet:ink", "Unet:w48h32", "VAEDecoder:w48h32", "VAEEncoder:w48h32",
    }  # fmt: skip
    with pytest.raises(UsageError, match="has functions of") as error:
        verify_sd(manifest, folder, sources(model))
    assert error.value.hint == "it was made with --function ink=ink.safetensors:0.8"


def test_functions_share_the_weights(several, bundle):
    folder, _ = several
    for name in ("TextEncoder", "Unet", "VAEDecoder"):
        one = open_package(bundle / f"Resources/{name}.mlpackage").weight_bytes
        all_three = open_package(folder / f"Resources/{name}.mlpackage").weight_bytes
        assert all_three - one < 3000  # the LoRA has 32 numbers


@pytest.mark.slow
def test_a_lora_as_a_function_is_the_lora_fused(several, model, ink, tmp_path):
    folder, _ = several
    export_tiny(model, tmp_path / "fused", loras=[ink], timesteps=0)
    fused = run(tmp_path / "fused", "Unet", **unet_inputs())["noise_pred"]
    beside = run(folder, "Unet", function="ink", **unet_inputs())["noise_pred"]
    plain = run(folder, "Unet", **unet_inputs())["noise_pred"]
    assert psnr(beside, fused) > 65
    assert psnr(beside, plain) < 50


def test_a_picture_is_made_with_the_function_that_is_asked_for(several):
    folder, (manifest, _) = several
    options = {"prompt": "an apple", "steps": 2, "guidance": 0.5, "precision": "fp32"}
    main, wide, ink = (
        make_picture(folder, manifest, Wanted(function=f, **options))
        for f in ("main", "w48h32", "ink")
    )
    assert (main.shape, wide.shape) == ((1, 32, 32, 3), (1, 32, 48, 3))
    assert not np.array_equal(main, ink)
    with pytest.raises(PackageError, match="no function pen in it") as error:
        make_picture(folder, manifest, Wanted(function="pen", **options))
    assert "main" in error.value.hint


def test_names_of_functions_are_words_and_differ(ink):
    with pytest.raises(UsageError, match="'my ink' is no name for a function"):
        variants(Form(), [], {"my ink": ink})
    with pytest.raises(UsageError, match="two functions called w64h64"):
        variants(Form(), [(64, 64), (64, 64)], {})
