import dataclasses
import json
import shutil

import mlx.core as mx
import numpy as np
import pytest

from macai.coreml.sd.components import components
from macai.coreml.sd.doctor import APPLE, GUERNIKA, MOCHI, examine
from macai.coreml.sd.form import Form
from macai.coreml.sd.manifest import read_sd_manifest
from macai.coreml.sd.preflight import preflight
from macai.coreml.sd.verify import psnr
from macai.errors import UsageError
from tests.coreml.sd.bundles import export_tiny, run
from tests.coreml.sd.test_components import configs
from tests.diffusion.tiny import tiny_pipeline_dir


def found(folder, manifest=None):
    return examine(folder, manifest or read_sd_manifest(folder))


def test_a_bundle_that_was_exported_has_no_errors(bundle):
    findings = found(bundle)
    assert {one.level for one in findings} == {"note"}
    assert any("not compiled" in one.what for one in findings)


def test_a_changed_or_missing_package_is_an_error(bundle, tmp_path):
    folder = tmp_path / "b"
    shutil.copytree(bundle, folder)
    with (folder / "Resources/Unet.mlpackage/Data/com.apple.CoreML/weights/weight.bin").open(
        "r+b"
    ) as f:
        f.seek(200)
        f.write(b"\x01\x02")
    shutil.rmtree(folder / "Resources/VAEEncoder.mlpackage")
    (folder / "Resources/merges.txt").unlink()
    errors = [one.what for one in found(folder) if one.level == "error"]
    assert len(errors) == 3
    assert "Unet is not the package that macai.json is about" in errors
    assert "Resources/merges.txt is missing" in errors
    assert any(one.app == MOCHI and "no VAEEncoder" in one.what for one in found(folder))


@pytest.mark.parametrize(
    ("change", "level", "what"),
    [
        (
            {"prediction_type": "v_prediction"},
            "error",
            "its schedulers are for models that predict",
        ),
        ({"scaling_factor": 0.13025}, "note", "latents are scaled by 0.13025"),
        ({"guidance": 8.0}, "note", "the guidance, 8, is in the U-Net"),
    ],
)
def test_what_apples_package_does_not_know_is_told(bundle, change, level, what):
    manifest = dataclasses.replace(read_sd_manifest(bundle), **change)
    (one,) = [f for f in found(bundle, manifest) if what in f.what]
    assert (one.level, one.app) == (level, APPLE)


def test_inputs_that_swift_does_not_feed_are_errors(bundle):
    manifest = read_sd_manifest(bundle)
    for channels, n in ((4, 0), (9, 1)):
        manifest.packages["Unet"].inputs["sample"]["shape"][1] = channels
        assert sum("4 channels" in one.what for one in found(bundle, manifest)) == n
    manifest.packages["Unet"].inputs["time_ids"] = {"dtype": "fp16", "shape": [1, 6]}
    one_row = dataclasses.replace(manifest, batch=1)
    assert any("feeds a U-Net two rows" in one.what for one in found(bundle, one_row))


@pytest.mark.slow
def test_functions_hide_the_einsum_that_apps_look_for(model, tmp_path):
    export_tiny(model, tmp_path / "b", attention="split_einsum", sizes=[(48, 32)], timesteps=0)
    (one,) = [f for f in found(tmp_path / "b") if "no Ios16.einsum" in f.what]
    assert (one.level, one.app) == ("warning", f"{MOCHI}, {GUERNIKA}")


@pytest.mark.slow
def test_attention_in_float32_is_not_for_the_neural_engine(tmp_path):
    model = tiny_pipeline_dir(tmp_path / "m", upcast_attention=True)
    export_tiny(model, tmp_path / "b", attention="split_einsum", timesteps=0)
    assert any("attends in float32" in f.what for f in found(tmp_path / "b"))


def test_metadata_is_what_apps_tell_a_model_by(bundle):
    (unet,) = json.loads((bundle / "metadata/Unet.json").read_text())
    assert [one["name"] for one in unet["inputSchema"]] == [
        "sample", "timestep", "encoder_hidden_states",
    ]  # fmt: skip
    assert "Ios16.conv" in unet["mlProgramOperationTypeHistogram"]
    assert "Ios16.einsum" not in unet["mlProgramOperationTypeHistogram"]
    assert unet["userDefinedMetadata"]["identifier"] == "tiny"
    assert unet["availability"]["iOS"] == "16.0"
    # Mochi Diffusion reads the size of pictures here: four whole numbers.
    (encoder,) = json.loads((bundle / "metadata/VAEEncoder.json").read_text())
    assert encoder["inputSchema"][0]["shape"] == "[1, 3, 32, 32]"


def test_the_golden_samples_are_what_the_packages_make(bundle):
    arrays = {n: np.array(a) for n, a in mx.load(str(bundle / "golden.safetensors")).items()}
    for name, output in (("TextEncoder", "last_hidden_state"), ("Unet", "noise_pred")):
        prefix = f"{name}.inputs."
        given = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        made = run(bundle, name, "fp16", **given)[output]
        assert psnr(made, arrays[f"{name}.outputs.{output}"].astype(np.float32)) > 55


def test_swift_code_is_for_this_bundle(bundle):
    view = (bundle / "swift/GenerateView.swift").read_text()
    assert "computeUnits = .cpuAndGPU" in view
    assert "decoderScaleFactor = 0.18215" in view
    assert "@" not in view.replace("@State", "")


@pytest.mark.parametrize(
    ("kind", "form", "message"),
    [
        ("sdxl", {"attention": "split_einsum"}, "SDXL at 1024x1024 pixels"),
        ("sd1", {"attention": "split_einsum", "precision": "fp32"}, "has no float32"),
    ],
)
def test_what_is_known_to_fail_on_the_neural_engine_is_refused(kind, form, message):
    with pytest.raises(UsageError, match=message):
        preflight(configs(kind), Form(**form))
    preflight(configs(kind), Form(**(form | {"attention": "original"})))
    assert components(configs("sdxl"), Form(width=768, height=768))
    preflight(configs("sdxl"), Form(width=768, height=768, attention="split_einsum"))
