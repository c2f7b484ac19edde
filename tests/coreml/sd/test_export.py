import json
import math
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from macai.coreml.manifest import read_manifest
from macai.coreml.sd import export as export_module
from macai.coreml.sd.manifest import is_sd_bundle, read_sd_manifest
from macai.coreml.sd.proof import verify_sd
from macai.coreml.sd.samples import Samples
from macai.coreml.sd.verify import LEAST_PSNR, cosine, psnr
from macai.diffusion.loading import open_checkpoint
from macai.errors import ExportError, PackageError, UsageError
from macai.mil import open_package
from tests.coreml.sd.bundles import LAYER, export_tiny, lora_file, read, run, sources, xl_dir


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def unet_inputs(rows=2):
    return {
        "sample": numbers(0, rows, 4, 16, 16),
        "timestep": np.full(rows, 481.0, np.float32),
        "encoder_hidden_states": numbers(1, rows, 16, 1, 77),
    }


def test_a_bundle_has_packages_vocabulary_contract_and_comparison(bundle):
    files = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()}
    packages = {f.split("/")[1] for f in files if ".mlpackage/" in f}
    names = ("TextEncoder", "Unet", "VAEDecoder", "VAEEncoder")
    assert packages == {f"{name}.mlpackage" for name in names}
    assert {f for f in files if ".mlpackage/" not in f} == {
        "README.md", "Resources/merges.txt", "Resources/vocab.json", "macai.json", "verify.json",
        "golden.safetensors", "swift/GenerateView.swift", "swift/SelfTest.swift",
        *(f"metadata/{name}.json" for name in names),
    }  # fmt: skip


def test_the_manifest_says_what_an_app_has_to_know(bundle):
    manifest = json.loads((bundle / "macai.json").read_text())
    wanted = {
        "kind": "stable-diffusion",
        "width": 32,
        "height": 32,
        "batch": 2,
        "attention": "original",
        "compute_units": "cpuAndGPU",
        "scaling_factor": 0.18215,
        "shift_factor": 0.0,
        "prediction_type": "epsilon",
    }
    assert {key: manifest[key] for key in wanted} == wanted
    assert manifest["scheduler"]["_class_name"] == "DDIMScheduler"
    assert read_sd_manifest(bundle).to_json() == manifest


def test_every_package_is_close_to_its_module(bundle):
    report = json.loads((bundle / "verify.json").read_text())
    assert report["passed"]
    assert report["problems"] == []
    for package in report["packages"].values():
        assert package["overflows"] == 0
        for by_kind in package["outputs"].values():
            assert all(one["psnr"] >= 60 and one["cosine"] > 0.99999 for one in by_kind.values())


def test_the_time_goes_in_as_float16_and_its_angles_are_float32(bundle, model):
    module = open_checkpoint(model).load("unet")
    given = unet_inputs()
    given["timestep"] = np.array([999.0, 1.0], np.float32)
    embedded = module.time_proj(mx.array(given["timestep"]))
    assert np.abs(np.array(embedded)).max() <= 1
    states = mx.array(given["encoder_hidden_states"]).squeeze(2).swapaxes(1, 2)
    sample = mx.array(given["sample"]).transpose(0, 2, 3, 1)
    wanted = np.array(module(sample, mx.array(given["timestep"]), states)).transpose(0, 3, 1, 2)
    assert psnr(run(bundle, "Unet", "fp16", **given)["noise_pred"], wanted) > 60
    operations = open_package(bundle / "Resources/Unet.mlpackage").functions["main"].operations
    angles = [op for op in operations if op.type in ("sin", "cos")]
    assert len(angles) == 2
    assert {t.dtype.name for op in angles for t in op.outputs.values()} == {"fp32"}


@pytest.mark.slow
def test_one_row_gives_what_two_rows_give(bundle, model, tmp_path):
    export_tiny(model, tmp_path / "one", batch=1, timesteps=1)
    given = unet_inputs()
    both = run(bundle, "Unet", **given)["noise_pred"]
    first = run(tmp_path / "one", "Unet", **{k: v[:1] for k, v in given.items()})["noise_pred"]
    assert psnr(first, both[:1]) > 110


@pytest.mark.slow
def test_an_fp32_export_is_exact_to_float32(model, tmp_path):
    _, report = export_tiny(model, tmp_path / "b", precision="fp32", timesteps=1)
    found = [o for p in report["packages"].values() for o in p["outputs"].values()]
    assert min(one["fp32"]["psnr"] for one in found) > 105


def test_a_lora_is_in_the_packages_and_they_are_proven_with_it(bundle, model, tmp_path):
    lora = read(model, lora_file(tmp_path / "ink.safetensors"), 0.8)
    manifest, report = export_tiny(model, tmp_path / "b", loras=[lora], timesteps=1)
    assert report["passed"]
    (described,) = manifest.source["loras"]
    assert (described["name"], described["scale"]) == ("ink.safetensors", 0.8)
    plain = run(bundle, "Unet", **unet_inputs())["noise_pred"]
    tuned = run(tmp_path / "b", "Unet", **unet_inputs())["noise_pred"]
    assert psnr(tuned, plain) < 50
    same = sources(model, loras=[lora])
    assert verify_sd(manifest, tmp_path / "b", same, timesteps=1)["passed"]
    with pytest.raises(UsageError, match="not the LoRAs") as error:
        verify_sd(manifest, tmp_path / "b", sources(model))
    assert error.value.hint == "it was made with --lora ink.safetensors:0.8"


@pytest.mark.slow
@pytest.mark.parametrize("ids", [6, 5])
def test_sdxl_and_its_refiner_agree_with_their_modules(tmp_path, ids):
    model = xl_dir(tmp_path / "xl", ids=ids, force_upcast=False)
    manifest, report = export_tiny(model, tmp_path / "b", timesteps=1)
    assert report["passed"]
    found = {n: p["outputs"] for n, p in report["packages"].items()}
    assert set(found) == {"TextEncoder", "TextEncoder2", "Unet", "VAEDecoder", "VAEEncoder"} - (
        {"TextEncoder"} if ids == 5 else set()
    )
    assert (
        found["VAEEncoder"]["latent"]["fp16"]["psnr"]
        > 105
        > found["VAEDecoder"]["image"]["fp32"]["psnr"]
    )
    assert manifest.packages["TextEncoder2"].outputs["pooled_outputs"]["shape"] == [1, 20]
    assert manifest.minimum_os == {"iOS": "17.0", "macOS": "14.0"}


@pytest.mark.parametrize(
    ("attention", "units"),
    [("split_einsum", "cpuAndNeuralEngine"), ("split_einsum_v2", "cpuAndNeuralEngine")],
)
def test_split_attention_is_made_of_einsums_that_apps_look_for(
    bundle, model, tmp_path, attention, units
):
    manifest, report = export_tiny(model, tmp_path / "b", attention=attention, timesteps=1)
    assert report["passed"]
    assert (manifest.attention, manifest.compute_units) == (attention, units)
    package = open_package(tmp_path / "b/Resources/Unet.mlpackage")
    kinds = Counter(op.type for op in package.functions["main"].operations)
    assert kinds["einsum"] == kinds["softmax"] * 2
    assert (kinds["matmul"], package.specification_version) == (0, 7)
    plain = run(bundle, "Unet", **unet_inputs())["noise_pred"]
    assert psnr(run(tmp_path / "b", "Unet", **unet_inputs())["noise_pred"], plain) > 100


def test_only_keys_are_turned_inside_a_split_unet(model, tmp_path):
    export_tiny(model, tmp_path / "b", attention="split_einsum", timesteps=0)
    package = open_package(tmp_path / "b/Resources/Unet.mlpackage")
    kinds = Counter(op.type for op in package.functions["main"].operations)
    assert kinds["transpose"] == 8  # one for each attention
    assert kinds["cast"] == 3  # of the time, its embedding, and the result: all else is float16


@pytest.mark.slow
def test_a_package_of_other_weights_is_found_out(model, tmp_path):
    lora = read(model, lora_file(tmp_path / "ink.safetensors"), 0.8)
    manifest, _ = export_tiny(model, tmp_path / "b", loras=[lora], timesteps=0)
    manifest.source["loras"] = []  # as if nothing had been fused
    report = verify_sd(manifest, tmp_path / "b", sources(model), timesteps=1)
    assert not report["passed"]
    found = {problem.split(" is ")[0] for problem in report["problems"]}
    assert {"Unet: noise_pred"} < found
    (first,) = found - {"Unet: noise_pred"}
    assert first.startswith("Unet: down_blocks.0.attentions.0")  # where the LoRA begins


def test_a_bundle_whose_packages_do_not_agree_is_refused(model, tmp_path, monkeypatch):
    cast = export_module.cast_weights

    def damaged(module, dtype):
        cast(module, dtype)
        if "conv_in" in module:
            module.conv_in.bias = module.conv_in.bias + mx.array(0.1, dtype)

    monkeypatch.setattr(export_module, "cast_weights", damaged)
    with pytest.raises(ExportError, match=r"do not agree with the model: Unet: noise_pred is"):
        export_tiny(model, tmp_path / "b")


def test_another_model_is_no_proof(bundle, tmp_path):
    from tests.diffusion.tiny import tiny_pipeline_dir

    other = sources(tiny_pipeline_dir(tmp_path / "other", seed=1))
    with pytest.raises(UsageError, match="other weights than the model"):
        verify_sd(read_sd_manifest(bundle), bundle, other)


def test_commands_for_language_models_say_what_the_bundle_is(bundle):
    assert is_sd_bundle(bundle)
    with pytest.raises(PackageError, match="is a bundle of stable-diffusion"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contract": 2}, "this version reads 1"),
        ({"colour": "blue"}, "unexpected keyword argument 'colour'"),
        ({"packages": {}, "kind": "llm"}, "llm"),
    ],
)
def test_a_manifest_of_another_version_is_refused(bundle, tmp_path, change, message):
    manifest = json.loads((bundle / "macai.json").read_text()) | change
    (tmp_path / "macai.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match=message):
        read_sd_manifest(tmp_path)


def test_a_manifest_cannot_name_a_package_elsewhere(bundle, tmp_path):
    manifest = json.loads((bundle / "macai.json").read_text())
    manifest["packages"]["Unet"]["package"] = "../../elsewhere.mlpackage"
    (tmp_path / "macai.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match="a package that is not in it"):
        read_sd_manifest(tmp_path)


def test_times_are_spread_over_the_trajectory():
    def times(count):
        return Samples({}, factor=8, scaling_factor=1, timesteps=count).timesteps

    assert times(5) == [951, 701, 501, 251, 1]
    assert times(20) == list(range(951, 0, -50))


def test_a_tenth_of_an_error_is_20_db_more():
    wanted = numbers(3, 1000)
    noise = numbers(4, 1000)
    near, far = psnr(wanted + 0.001 * noise, wanted), psnr(wanted + 0.01 * noise, wanted)
    assert math.isclose(near - far, 20, abs_tol=1e-3)
    assert (psnr(wanted, wanted), psnr(wanted * np.nan, wanted)) == (200, -200)
    assert math.isclose(cosine(2 * wanted, wanted), 1)
    assert LEAST_PSNR["fp32"] >= LEAST_PSNR["fp16"] > 35  # Apple's own exporter takes 35


def test_the_layer_of_the_lora_is_in_the_model(model):
    paths = dict(open_checkpoint(model).load("unet").named_modules())
    assert LAYER in paths
