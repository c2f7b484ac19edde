import pytest

from macai.coreml.sd.manifest import read_sd_manifest
from macai.coreml.sd.picture import Wanted, make_picture
from macai.coreml.sd.proof import verify_sd
from macai.coreml.sd.runner import Runner
from macai.coreml.sd.verify import psnr
from tests.coreml.sd.bundles import export_tiny, run, sources
from tests.coreml.sd.test_components import FULL, HALF, features, spec_of
from tests.coreml.sd.test_export import unet_inputs


@pytest.fixture(scope="module")
def halved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("halved") / "tiny"
    return folder, export_tiny(model, folder, most_bytes=20_000, timesteps=1)


def test_a_unet_beyond_the_budget_is_cut_in_two_and_nothing_else(halved, bundle):
    _, (manifest, _) = halved
    assert list(manifest.packages) == [
        "TextEncoder", "UnetChunk1", "UnetChunk2", "VAEDecoder", "VAEEncoder",
    ]  # fmt: skip
    sizes = [manifest.packages[f"UnetChunk{n}"].bytes for n in (1, 2)]
    whole = read_sd_manifest(bundle).packages["Unet"].bytes
    assert max(sizes) < 0.7 * whole
    assert sum(sizes) < 1.15 * whole


def test_the_second_half_takes_what_swift_merges(halved):
    folder, _ = halved
    first, second = (spec_of(folder, f"UnetChunk{n}").description for n in (1, 2))
    handed = features(first.output)
    assert {kind for kind, _ in handed.values()} == {FULL}
    assert list(handed) == [f"hidden_{n}" for n in range(len(handed))]
    given = features(first.input)
    assert given["sample"] == (HALF, [2, 4, 16, 16])
    taken = features(second.input)
    assert {n: f for n, f in taken.items() if n in handed} == handed
    assert taken.keys() <= handed.keys() | given.keys()
    assert features(second.output) == {"noise_pred": (FULL, [2, 4, 16, 16])}


def test_both_halves_give_what_the_whole_gives(halved, bundle, model):
    folder, (manifest, report) = halved
    assert report["passed"]
    runner = Runner([folder / part.package for part in manifest.parts("Unet")])
    whole = run(bundle, "Unet", **unet_inputs())["noise_pred"]
    assert psnr(runner.run(unet_inputs()).outputs["noise_pred"], whole) > 120
    assert verify_sd(manifest, folder, sources(model), timesteps=1)["passed"]
    picture = make_picture(folder, manifest, Wanted(prompt="an apple", steps=2))
    assert picture.shape == (1, 32, 32, 3)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["original", "split_einsum_v2"])
def test_functions_are_cut_as_well(model, tmp_path, attention):
    manifest, report = export_tiny(
        model, tmp_path / "b", most_bytes=1, sizes=[(48, 32)], attention=attention, timesteps=1
    )
    assert report["passed"]
    assert "Unet:w48h32" in report["packages"]
    assert "Unet" not in manifest.packages
