"""Models whose values are beyond float16: found on text, and kept in float32."""

import mlx.core as mx
import pytest

from macai.coreml.bundle import write_bundle
from macai.coreml.compress import Compression, Scheme
from macai.coreml.export_llm import Export, export_llm
from macai.coreml.islands import LARGEST
from macai.coreml.package import package_hash
from macai.coreml.peaks import LIMIT, measure_peaks
from macai.coreml.profiles.ane import ANE
from macai.coreml.profiles.swift_transformers import SWIFT_TRANSFORMERS
from macai.coreml.session import open_bundle
from macai.coreml.verify import sample_text, verify_package
from macai.errors import ExportError
from macai.models.load import load_model
from tests.coreml.loud import louder

OPTIONS = {"name": "Loud", "source": {"model": "loud"}, "context": 64}
IDS = [5, 80, 33, 7, 260, 9, 41, 17, 300, 77, 120, 8, 55, 401, 3]


def write(model, folder, **options):
    folder.mkdir(parents=True)
    write_bundle(load_model(model, as_stored=True), folder, **(OPTIONS | options))
    return folder


@pytest.fixture(scope="module")
def loud_dir(tiny_dir, tmp_path_factory):
    return louder(tiny_dir, tmp_path_factory.mktemp("loud") / "m", 57344.0)


@pytest.fixture(scope="module")
def loud(loud_dir):
    return load_model(loud_dir)


@pytest.fixture(scope="module")
def fitted(loud_dir, tmp_path_factory):
    return write(loud_dir, tmp_path_factory.mktemp("fitted") / "b", prefill=[8], text=IDS)


def test_a_louder_model_says_the_same(loud, tiny):
    text = mx.array(IDS)[None]
    assert mx.allclose(loud.model(text), tiny.model(text), atol=1e-5)


def test_exported_as_it_is_it_overflows_and_does_not_pass(loud_dir, loud, tmp_path):
    report = verify_package(loud, *open_bundle(write(loud_dir, tmp_path / "b")), IDS, tokens=4)
    assert not report["passed"]
    assert "overflow float16" in " ".join(report["problems"])


def test_with_its_large_values_in_float32_it_agrees(fitted, loud):
    manifest, package = open_bundle(fitted)
    report = verify_package(loud, manifest, package, IDS, tokens=4)
    assert report["passed"], report["problems"]
    assert report["float16"]["overflows"] == 0
    assert report["float16"]["cosine"] > 0.9999
    assert 0 < manifest.float16["float32_values"]["decode"] < 20
    assert manifest.sha256 == package_hash(fitted / manifest.package)


def test_the_manifest_and_the_card_tell_where_values_are_largest(fitted):
    manifest, _ = open_bundle(fitted)
    assert manifest.float16["largest"] > LARGEST
    assert manifest.float16["after"] == "model_layers_1_mlp_down_proj_weight"
    assert list(manifest.float16["layers"]) == ["model_layers_0", "model_layers_1"]
    assert manifest.float16["tokens"] == len(IDS)
    card = " ".join((fitted / "README.md").read_text().split())
    assert f"Values reach {manifest.float16['largest']:,.0f}" in card
    assert "of decode" in card


def test_nothing_large_is_left_to_float16(fitted):
    manifest, package = open_bundle(fitted)
    found = measure_peaks(manifest, package, IDS)
    assert max(max(peaks.values()) for peaks in found.values.values()) <= LIMIT
    assert not any(found.wide.values())


def test_a_model_within_float16_is_left_alone(tiny_dir, tmp_path):
    plain, looked_at = write(tiny_dir, tmp_path / "a"), write(tiny_dir, tmp_path / "b", text=IDS)
    manifest, _ = open_bundle(looked_at)
    assert manifest.float16["float32_values"] == {}
    assert 0 < manifest.float16["largest"] < 100  # not what a mask is made of
    assert package_hash(plain / "Loud.mlpackage") == package_hash(looked_at / "Loud.mlpackage")


def test_functions_of_any_size_are_fitted_too(loud_dir, loud, tmp_path):
    folder = write(loud_dir, tmp_path / "b", profile=SWIFT_TRANSFORMERS, text=IDS)
    report = verify_package(loud, *open_bundle(folder), IDS, tokens=4)
    assert report["passed"], report["problems"]


def test_compressed_weights_stay_compressed(loud_dir, tmp_path):
    def write_int8(name, text):
        compression = Compression(default=Scheme.parse("int8"))
        return write(loud_dir, tmp_path / name, compression=compression, weights="int8", text=text)

    plain, found = (open_bundle(write_int8(n, t)) for n, t in (("a", ()), ("b", IDS)))
    assert found[0].float16["float32_values"]
    assert found[1].size_bytes < 1.2 * plain[1].size_bytes


def test_for_the_neural_engine_such_a_model_is_refused(loud_dir, tmp_path):
    """There is no float32 there; norms of such values are right, and sums of them overflow."""
    export = Export(path=loud_dir, profile=ANE, weights="full", positions=24, tokens=2, **OPTIONS)
    with pytest.raises(ExportError, match="overflow float16") as caught:
        export_llm(export, tmp_path)
    assert caught.value.hint.startswith("--profile gpu")
    manifest, _ = open_bundle(tmp_path)
    assert manifest.float16["largest"] > LARGEST
    assert manifest.float16["float32_values"] == {}


@pytest.mark.slow
@pytest.mark.long
def test_a_louder_smollm2_fails_as_it_is_and_agrees_with_float32(smollm2_dir, tmp_path):
    """Its residual stream reaches 25,000, here four times as much."""
    folder = louder(smollm2_dir, tmp_path / "m", 4.0)
    loud = load_model(folder)
    ids = loud.tokenizer.encode(sample_text())[:24]
    text = loud.tokenizer.encode("Once upon a time there was a king who had three daughters.")
    for name, measured in (("plain", ()), ("fitted", text)):
        bundle = write(folder, tmp_path / name, prefill=[64], text=measured)
        manifest, package = open_bundle(bundle)
        report = verify_package(loud, manifest, package, ids, tokens=4)
        if measured:
            assert report["passed"], report["problems"]
            assert report["functions"]["decode"]["kl"] < 1e-4
            assert report["float16"]["cosine"] > 0.9999
            assert manifest.float16["largest"] > LARGEST
        else:
            assert "overflow float16" in " ".join(report["problems"])
