"""The profile for the Neural Engine, as the reference runtime runs it. No Neural Engine is here."""

import json
import sys

import coremltools as ct
import numpy as np
import pytest

from macai.bench.architectures import CONTEXT, ROWS, build, config_of, package_agreement
from macai.coreml.bundle import write_bundle
from macai.coreml.chain import Chain
from macai.coreml.chunks import export_chunks
from macai.coreml.description import Metadata
from macai.coreml.device import CoreMLRunner
from macai.coreml.export_llm import Export, export_llm
from macai.coreml.manifest import CHUNKED, FILE, read_manifest
from macai.coreml.package import package_hash
from macai.coreml.profiles import profile_called
from macai.coreml.profiles.ane import ANE
from macai.coreml.session import ReferenceRunner, Session, open_bundle
from macai.coreml.verify import verify_package
from macai.errors import ExportError, PackageError, UsageError
from macai.mil import open_package
from macai.mil.lint import lint
from macai.models.load import load_model
from tests.adapters import adapt, save
from tests.coreml.test_architectures import FAST, MORE, many
from tests.coreml.test_device import StandIn

IDS = [5, 80, 33, 7, 260, 9, 41, 17, 300, 77, 120, 8, 55, 401, 3]
OPTIONS = {"name": "Tiny", "source": {"model": "tiny"}, "context": 64, "prefill": [8]}
# What the Neural Engine does not run, or not well, and the profile is there to leave out.
UNWANTED = {"linear", "matmul", "scaled_dot_product_attention"}
ONES = ["llama, traditional", "qwen2", "qwen3", "gemma3_text", "phi3", "starcoder2"]


REFUSED = ["gemma4_text", "iquestloopcoder"]
WHOLE = ["gemma3n"]


def packages(model, folder, chunks=(range(1), range(1, 2)), precision="fp32"):
    functions = ANE.functions(model, chunks, context=CONTEXT, prefill=(ROWS,), precision=precision)
    paths = [folder / f"{n}.mlpackage" for n in range(len(chunks))]
    export_chunks(functions, paths, default="decode", metadata=Metadata())
    return [open_package(path) for path in paths]


def operations(package, function="decode"):
    return [o.type for o in package.functions[function].operations]


def assert_agrees(model, folder):
    opened = packages(model, folder)
    cosine, error = package_agreement(model, Chain(opened))
    assert cosine >= 0.99999
    assert error <= 1e-4
    return opened


@pytest.mark.parametrize("name", ONES)
def test_two_packages_for_the_neural_engine_say_what_mlx_says(name, tmp_path):
    for package in assert_agrees(build(config_of(*FAST[name])), tmp_path):
        assert not UNWANTED & set(operations(package))
        assert "conv" in operations(package)


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_do_not_keep_a_pair_a_layer_are_refused(name, tmp_path):
    model = build(config_of(*FAST.get(name, (name, MORE.get(name)))))
    with pytest.raises(ExportError, match="layers keep"):
        packages(model, tmp_path, [range(len(model.layers))])


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_whose_layers_hand_on_more_than_one_value_is_not_divided(name, tmp_path):
    with pytest.raises(ExportError, match="more than one value is handed on"):
        packages(build(config_of(name, MORE[name])), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", many(n for n in (*FAST, *MORE) if n not in {*ONES, *REFUSED, *WHOLE})
)
def test_more_packages_for_the_neural_engine_say_what_mlx_says(name, tmp_path):
    assert_agrees(build(config_of(*FAST.get(name, (name, MORE.get(name))))), tmp_path)


def test_every_product_with_a_weight_is_a_convolution(tmp_path):
    [package] = packages(build(config_of("llama", {})), tmp_path, [range(2)], "fp16")
    for function in ("prefill", "decode"):
        kinds = operations(package, function)
        assert kinds.count("conv") == 2 * 7 + 1
        assert kinds.count("einsum") == 2 * 2 * 4  # layers, products, heads
        assert not UNWANTED & set(kinds)
        types = [
            t
            for o in package.functions[function].operations
            for t in o.outputs.values()
            if hasattr(t, "dtype")
        ]
        assert "fp32" not in {t.dtype.name for t in types}
        assert max(len(t.shape) for t in types if t.shape is not None) == 4


@pytest.fixture(scope="module")
def bundles(tiny_dir, tmp_path_factory):
    """In one package and in two, weights in full."""
    made = {}
    for chunks in (1, 2):
        made[chunks] = tmp_path_factory.mktemp("ane") / "Tiny"
        made[chunks].mkdir()
        loaded = load_model(tiny_dir, as_stored=True)
        write_bundle(loaded, made[chunks], profile=ANE, chunks=chunks, **OPTIONS)
    return made


@pytest.fixture(params=[1, 2])
def bundle(bundles, request):
    return bundles[request.param]


def test_a_bundle_agrees_with_its_model(bundle, tiny):
    report = verify_package(tiny, *open_bundle(bundle), IDS, tokens=8)
    assert report["passed"], report["problems"]
    assert report["float16"]["overflows"] == 0


def test_a_bundle_does_not_agree_with_another_model(bundle, tiny, adapted):
    adapted()
    assert not verify_package(tiny, *open_bundle(bundle), IDS, tokens=4)["passed"]


def test_the_manifest_says_where_it_is_to_run_and_what_nobody_tried(bundle):
    manifest = read_manifest(bundle)
    assert (manifest.profile, manifest.compute_units) == ("ane", "cpuAndNeuralEngine")
    assert manifest.context == 64
    card = " ".join((bundle / "README.md").read_text().split())
    assert manifest.unverified
    assert all(what in card for what in manifest.unverified)


def test_keys_and_values_are_one_state(bundles):
    manifest, package = open_bundle(bundles[1])
    assert manifest.states == {"kvCache": {"dtype": "fp16", "shape": [4, 2, 64, 16]}}
    assert (manifest.chunks, manifest.contract) == ([], 1)
    assert list(package.functions["prefill"].states) == ["kvCache"]
    assert (bundles[1] / "Swift").is_dir()


def test_a_model_in_two_packages_names_them_in_order(bundles):
    manifest = read_manifest(bundles[2])
    first, second = manifest.chunks
    assert manifest.contract == CHUNKED
    assert manifest.packages == ["Tiny-1of2.mlpackage", "Tiny-2of2.mlpackage"]
    assert list(first.functions["prefill"].inputs) == ["inputIds", "position"]
    assert list(second.functions["prefill"].inputs) == ["hiddenIn", "position", "last"]
    hidden = {"dtype": "fp16", "shape": [1, 64, 1, 8]}
    assert first.functions["prefill"].outputs == {"hiddenOut": hidden}
    assert second.functions["prefill"].inputs["hiddenIn"] == hidden
    assert [list(c.states) for c in manifest.chunks] == [["kvCache_0"], ["kvCache_1"]]
    for chunk in manifest.chunks:
        assert chunk.sha256 == package_hash(bundles[2] / chunk.package)
    assert manifest.bytes == open_bundle(bundles[2])[1].size_bytes
    assert not (bundles[2] / "Swift").exists()  # its code runs one package


def test_one_package_and_two_say_the_same(bundles):
    said = []
    for bundle in bundles.values():
        manifest, package = open_bundle(bundle)
        session = Session(manifest, ReferenceRunner(package))
        said.append(session.feed(IDS))
        session.reset()
        np.testing.assert_array_equal(session.feed(IDS), said[-1])
    np.testing.assert_array_equal(*said)


def test_two_writes_are_byte_for_byte_equal(bundles, tiny_dir, tmp_path):
    write_bundle(load_model(tiny_dir, as_stored=True), tmp_path, profile=ANE, chunks=2, **OPTIONS)
    assert (tmp_path / FILE).read_bytes() == (bundles[2] / FILE).read_bytes()


def test_core_ml_is_given_each_package_what_it_takes(bundle, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ct.models, "MLModel", StandIn)
    manifest, package = open_bundle(bundle)
    runner = CoreMLRunner(bundle, manifest)
    units = {m.units for models in runner._models.values() for m in models}
    assert units == {ct.ComputeUnit.CPU_AND_NE}
    sessions = [Session(manifest, r) for r in (runner, ReferenceRunner(package))]
    for ids in (IDS[:9], IDS[9:12]):
        np.testing.assert_array_equal(*[session.feed(ids) for session in sessions])


def test_the_lint_finds_nothing_that_is_wrong(bundle):
    (bundle / "LICENSE").write_text("MIT\n")
    (bundle / "verify.json").write_text(json.dumps({"model": {"passed": True}}))
    report = lint(bundle)
    found = {a.rule.id: a.severity for a in report.applied}
    # The tiny model's heads are 16 wide.
    assert {r for r, severity in found.items() if severity != "note"} == {"state-width"}


def test_the_lint_says_which_of_two_packages_it_is(bundles, tmp_path):
    value = json.loads((bundles[2] / FILE).read_text())
    value["chunks"][1]["sha256"] = "0" * 64
    for path in bundles[2].iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).write_text(json.dumps(value))
    applied = {a.rule.id: a.findings for a in lint(tmp_path).applied}
    [finding] = applied["bundle-hash"]
    assert finding.function == "Tiny-2of2"
    assert {f.function.split()[0] for f in applied["state-width"]} == {"Tiny-1of2", "Tiny-2of2"}
    assert [f.function for f in applied["known-contract"]] == [""]  # of both, once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contract": 1}, "contract 1, this version reads 2"),
        ({"package": "../x"}, "not beside it"),
        ({"functions": {}}, "a chunk has other functions"),
    ],
)
def test_a_wrong_chunk_is_one_clear_error(bundles, tmp_path, change, message):
    value = json.loads((bundles[2] / FILE).read_text())
    (value if "contract" in change else value["chunks"][0]).update(change)
    (tmp_path / FILE).write_text(json.dumps(value))
    with pytest.raises(PackageError, match=message):
        read_manifest(tmp_path)


@pytest.mark.parametrize("chunks", [1, 2])
def test_palettes_agree_with_the_model_that_has_them(tiny_dir, tmp_path, chunks):
    export = Export(
        path=tiny_dir,
        profile=ANE,
        chunks=chunks,
        weights="palette4-16",
        positions=24,
        tokens=4,
        **OPTIONS,
    )
    manifest, reports = export_llm(export, tmp_path)
    assert reports["model"]["passed"]
    assert reports["model"]["exact"]  # with the same weights
    assert manifest.weights == "palette4-16"
    kinds = [k for name in manifest.packages for k in operations(open_package(tmp_path / name))]
    assert kinds.count("constexpr_lut_to_dense") == 2 * 7  # not the head: 476 is no multiple of 16


def test_adapters_are_functions_of_their_own_in_each_package(tiny_dir, tiny, tmp_path):
    folder = save(adapt(tiny), tmp_path / "mine")
    loaded = load_model(tiny_dir, as_stored=True)
    options = {"profile": ANE, "chunks": 2, "adapters": {"mine": folder}}
    manifest = write_bundle(loaded, tmp_path, **OPTIONS | options)
    assert list(manifest.chunks[1].functions) == list(manifest.functions)
    package = open_bundle(tmp_path)
    assert not verify_package(tiny, *package, IDS, tokens=4)["passed"]
    report = verify_package(tiny, *package, IDS, tokens=4, adapter="mine")
    assert report["passed"], report["problems"]


@pytest.mark.parametrize("weights", ["keep", "int8", "int4-32", "uint4-32"])
def test_whole_numbers_with_scales_are_refused(tiny_dir, tmp_path, weights):
    export = Export(path=tiny_dir, profile=ANE, weights=weights, **OPTIONS)
    with pytest.raises(UsageError, match=f"{weights} is not for the Neural Engine"):
        export_llm(export, tmp_path)


def test_a_mix_of_schemes_is_refused(tiny_dir, tmp_path):
    export = Export(path=tiny_dir, profile=ANE, bits_per_weight=4.5, **OPTIONS)
    with pytest.raises(UsageError, match="--bits-per-weight"):
        export_llm(export, tmp_path)


def test_the_default_profile_has_one_package(tiny_dir, tmp_path):
    export = Export(path=tiny_dir, chunks=2, **OPTIONS)
    with pytest.raises(UsageError, match="profile gpu has all layers in one package"):
        export_llm(export, tmp_path)


def test_an_unknown_profile_is_named():
    with pytest.raises(UsageError, match="unknown profile 'tpu'"):
        profile_called("tpu")
