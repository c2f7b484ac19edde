import pytest

from macai.coreml.sd.blocks import departures, first_departure
from macai.coreml.sd.manifest import read_sd_manifest
from macai.coreml.sd.proof import verify_sd
from macai.coreml.sd.runner import Runner
from macai.coreml.sd.trial import Trial
from tests.coreml.sd.bundles import LAYER, export_tiny, lora_file, read, sources

IN_ORDER = [
    "time_embedding", "conv_in", "down_blocks.0.resnets.0", "down_blocks.0.attentions.0",
    "down_blocks.0.downsamplers.0", "down_blocks.1.resnets.0", "mid_block.resnets.0",
    "mid_block.attentions.0", "mid_block.resnets.1", "up_blocks.0.resnets.0",
    "up_blocks.0.resnets.1", "up_blocks.0.upsamplers.0", "up_blocks.1.resnets.0",
    "up_blocks.1.attentions.0", "up_blocks.1.resnets.1", "up_blocks.1.attentions.1", "conv_out",
]  # fmt: skip


def blocks(folder, model):
    """Of each component, the first sample's."""
    manifest, own = read_sd_manifest(folder), sources(model)
    trial = Trial(own, manifest.form(), (), 1)
    found = {}
    for made in trial.groups():
        module = own.load(made[0])
        trial.try_module(made, module)
        for component in made:
            runner = Runner([folder / part.package for part in manifest.parts(component.name)])
            (sample, *_) = trial.samples.of(component)
            found[component.name] = departures(runner, component, module, sample)
    return found


def test_the_blocks_of_each_package_are_those_of_its_module(bundle, model):
    found = blocks(bundle, model)
    assert [one["block"] for one in found["Unet"]] == IN_ORDER
    assert {one["block"] for one in found["TextEncoder"]} == {
        "text_model.encoder.layers.0", "text_model.encoder.layers.1",
    }  # fmt: skip
    assert "decoder.mid_block.attentions.0" in [one["block"] for one in found["VAEDecoder"]]
    for own in found.values():
        assert min(one["fp32"] for one in own) > 65
        assert min(one["fp16"] for one in own) > 60
        assert first_departure(own) is None


@pytest.mark.slow
def test_blocks_are_found_in_two_halves_and_with_rows_turned(model, tmp_path):
    export_tiny(model, tmp_path / "b", attention="split_einsum", most_bytes=1000, timesteps=0)
    assert [one["block"] for one in blocks(tmp_path / "b", model)["Unet"]] == IN_ORDER


@pytest.mark.slow
def test_a_package_that_does_not_agree_says_which_block_departs_first(model, tmp_path):
    lora = read(model, lora_file(tmp_path / "ink.safetensors"), 20.0)
    manifest, _ = export_tiny(model, tmp_path / "b", loras=[lora], timesteps=0)
    manifest.source["loras"] = []  # as if nothing had been fused
    report = verify_sd(manifest, tmp_path / "b", sources(model), timesteps=1)
    tuned = next(block for block in IN_ORDER if LAYER.startswith(block))
    unet = report["packages"]["Unet"]
    assert unet["departs"]["block"] == tuned
    assert unet["departs"] == unet["blocks"][IN_ORDER.index(tuned)]
    assert "blocks" not in report["packages"]["TextEncoder"]
    assert any(f"Unet: {tuned} is the first block to depart" in p for p in report["problems"])


@pytest.mark.slow
def test_functions_have_their_own_blocks(model, tmp_path):
    """With a LoRA in a function that is not the one it is compared with."""
    weak, strong = (read(model, lora_file(tmp_path / f"{s}.safetensors"), s) for s in (0.1, 20.0))
    manifest, _ = export_tiny(model, tmp_path / "b", adapters={"ink": strong}, timesteps=0)
    manifest.functions["ink"]["lora"] = weak.described()
    own = sources(model, adapters={"ink": weak})
    report = verify_sd(manifest, tmp_path / "b", own, timesteps=1)
    assert report["packages"]["Unet"]["problems"] == []
    departs = report["packages"]["Unet:ink"]["departs"]["block"]
    assert LAYER.startswith(departs)
