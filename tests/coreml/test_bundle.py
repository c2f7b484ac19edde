"""Bundles of a tiny model: what is in them, and that they compute what the model does."""

import json
import shutil
import stat

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import mamba
from mlx_lm.models.cache import KVCache

from macai.bench.architectures import build, config_of
from macai.coreml.bundle import bundle_name, settle_weights, write_bundle
from macai.coreml.llm import CacheShape, cache_shape, llm_functions
from macai.coreml.manifest import CONTRACT, FILE, read_manifest
from macai.coreml.package import package_hash
from macai.coreml.session import ReferenceRunner, Session, open_bundle
from macai.coreml.verify import Agreement, verify_package
from macai.errors import ExportError, PackageError, UsageError
from macai.models.load import load_model
from tests.adapters import adapt

OPTIONS = {"name": "Tiny", "source": {"model": "tiny"}, "context": 64, "prefill": [8]}
IDS = [5, 80, 33, 7, 260, 9, 41, 17, 300, 77, 120, 8, 55, 401, 3]


def write(tiny_dir, folder, **options):
    folder.mkdir(parents=True)
    loaded = load_model(tiny_dir, as_stored=True)
    return write_bundle(loaded, folder, **(OPTIONS | options))


@pytest.fixture(scope="module")
def bundle(tiny_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "Tiny"
    write(tiny_dir, folder)
    return folder


def test_a_bundle_has_all_an_app_needs(bundle):
    assert sorted(p.name for p in bundle.iterdir()) == [
        "README.md",
        "Swift",
        "Tiny.mlpackage",
        "config.json",
        "generation_config.json",
        "macai.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    model = bundle / "Tiny.mlpackage/Data/com.apple.CoreML/model.mlmodel"
    assert stat.S_IMODE(model.stat().st_mode) & 0o044


def test_the_manifest_says_what_the_package_is(bundle):
    manifest, package = open_bundle(bundle)
    assert manifest.sha256 == package_hash(bundle / "Tiny.mlpackage")
    assert manifest.bytes == package.size_bytes
    assert manifest.contract == CONTRACT
    assert manifest.prefills == ["prefill"]
    assert {n: f.tokens for n, f in manifest.functions.items()} == {"prefill": 8, "decode": 1}
    for name, info in manifest.functions.items():
        function = package.functions[name]
        assert {k: list(v.shape) for k, v in function.inputs.items()} == {
            k: v["shape"] for k, v in info.inputs.items()
        }
        assert {k: list(v.shape) for k, v in function.outputs.items()} == {
            k: v["shape"] for k, v in info.outputs.items()
        }
    assert manifest.states["keyCache"] == {"dtype": "fp16", "shape": [2, 1, 2, 64, 16]}
    assert package.default_function == "decode"


def test_the_card_tells_the_source_and_what_was_not_verified(bundle):
    card = (bundle / "README.md").read_text()
    assert card.startswith("# Tiny\n")
    assert "`tiny`" in card
    assert "not run by Core ML" in " ".join(card.split())


def test_prefill_and_decode_compute_what_the_model_does(bundle, tiny):
    manifest, package = open_bundle(bundle)
    session = Session(manifest, ReferenceRunner(package))
    expected = np.array(tiny.model(mx.array(IDS)[None])[0])
    first = session.feed(IDS[:11])  # a full chunk, and three one by one
    np.testing.assert_allclose(first, expected[10], atol=0.02 * np.abs(expected).max())
    for place in range(11, len(IDS)):
        own = session.feed(IDS[place : place + 1])
        np.testing.assert_allclose(own, expected[place], atol=0.02 * np.abs(expected).max())


def test_a_float32_bundle_is_nearer_to_the_model(tiny_dir, tiny, tmp_path):
    write(tiny_dir, tmp_path / "b", precision="fp32")
    report = verify_package(tiny, *open_bundle(tmp_path / "b"), IDS, tokens=4)
    assert report["passed"], report["problems"]
    assert report["functions"]["prefill"]["max_relative_error"] < 1e-3  # states are float16
    assert report["functions"]["decode"]["kl"] < 1e-6


def test_verification_passes_for_the_model_and_fails_for_another(bundle, tiny, adapted):
    report = verify_package(tiny, *open_bundle(bundle), IDS, tokens=8)
    assert report["passed"], report["problems"]
    assert report["functions"]["decode"]["positions"] == len(IDS) - 3
    assert report["functions"]["prefill"]["positions"] == 4
    assert report["float16"]["overflows"] == 0
    adapted()
    report = verify_package(tiny, *open_bundle(bundle), IDS, tokens=8)
    assert not report["passed"]
    assert any("cosine" in p for p in report["problems"])


def test_verification_notices_one_wrong_weight_block(bundle, tiny, tmp_path):
    shutil.copytree(bundle, tmp_path / "broken")
    weights = tmp_path / "broken/Tiny.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(weights.read_bytes())
    weight = np.array(tiny.model.layers[0].mlp.up_proj.weight.astype(mx.float16)).tobytes()
    place = data.index(weight)
    data[place : place + 4096] = np.full(2048, 1, np.float16).tobytes()
    weights.write_bytes(data)
    report = verify_package(tiny, *open_bundle(tmp_path / "broken"), IDS, tokens=8)
    assert not report["passed"]


def test_an_adapter_is_fused(tiny_dir, tiny, adapted, tmp_path):
    adapted()
    expected = np.array(tiny.model(mx.array(IDS)[None])[0, -1])
    folder = tmp_path / "b"
    folder.mkdir()
    write_bundle(tiny, folder, **OPTIONS)
    manifest, package = open_bundle(folder)
    session = Session(manifest, ReferenceRunner(package))
    np.testing.assert_allclose(session.feed(IDS), expected, atol=0.02 * np.abs(expected).max())


def test_two_writes_are_byte_for_byte_equal(bundle, tiny_dir, tmp_path):
    write(tiny_dir, tmp_path / "again")
    assert package_hash(tmp_path / "again/Tiny.mlpackage") == package_hash(
        bundle / "Tiny.mlpackage"
    )
    assert (tmp_path / "again" / FILE).read_bytes() == (bundle / FILE).read_bytes()


@pytest.mark.parametrize("context", [0, 48, 33, -32])
def test_a_context_that_is_no_multiple_of_32_is_refused(tiny, context):
    with pytest.raises(UsageError, match="context"):
        llm_functions(tiny.model, context=context)


@pytest.mark.parametrize("length", [0, 1, 65])
def test_a_prefill_that_does_not_fit_is_refused(tiny, length):
    with pytest.raises(UsageError, match="prefill"):
        llm_functions(tiny.model, context=64, prefill=[length])


def test_the_cache_has_the_shape_the_layers_ask_for(tiny):
    shape = cache_shape(tiny.model)
    assert shape == CacheShape(layers=2, kv_heads=2, head_dim=16, value_dim=16)


def test_the_cache_is_as_large_as_the_largest_layer_needs():
    sizes = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4}
    sizes |= {"num_kv_shared_layers": 2, "global_head_dim": 32, "hidden_size_per_layer_input": 8}
    model = build(config_of("gemma4_text", sizes | {"vocab_size_per_layer_input": 80}))
    assert cache_shape(model) == CacheShape(layers=2, kv_heads=2, head_dim=32, value_dim=32)


def test_a_cache_that_nothing_is_written_to_is_refused(tiny):
    tiny.model.make_cache = lambda: [KVCache() for _ in range(3)]
    with pytest.raises(ExportError, match="of 3 caches this model writes 2"):
        cache_shape(tiny.model)


def test_a_model_that_remembers_something_else_is_refused():
    args = mamba.ModelArgs(
        model_type="mamba",
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        state_size=4,
        num_hidden_layers=1,
        conv_kernel=4,
        use_bias=False,
        use_conv_bias=True,
        time_step_rank=2,
    )
    with pytest.raises(ExportError, match="ArraysCache"):
        cache_shape(mamba.Model(args))


def test_weights_beyond_float16_are_named(tiny):
    weight = tiny.model.layers[1].mlp.up_proj.weight
    tiny.model.layers[1].mlp.up_proj.weight = weight.at[0, 0].add(1e6)
    with pytest.raises(ExportError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        settle_weights(tiny, mx.float16)


def test_adapted_layers_are_gone_after_settling(tiny):
    adapt(tiny)
    settle_weights(tiny, mx.float16)
    assert {v.dtype for _, v in tree_flatten(tiny.model.parameters())} == {mx.float16}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("Qwen/Qwen3 0.6B", "Qwen-Qwen3-0-6B"),
        ("1abc", "Model-1abc"),
        ("🐋", "Model"),
        ("../../x", "x"),
    ],
)
def test_names_are_safe_for_files(text, name):
    assert bundle_name(text) == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contract": 99}, "contract 99"),
        ({"package": "../x.mlpackage"}, "not beside it"),
        ({"context": -1}, "must be positive"),
        ({"surprise": 1}, "surprise"),
        ({"functions": {}}, "no function decode"),
        ({"functions": []}, "not a manifest"),
    ],
)
def test_a_wrong_manifest_is_one_clear_error(bundle, tmp_path, change, message):
    value = json.loads((bundle / FILE).read_text()) | change
    (tmp_path / FILE).write_text(json.dumps(value))
    with pytest.raises(PackageError, match=message):
        read_manifest(tmp_path)


def test_a_manifest_cut_short_is_one_clear_error(bundle, tmp_path):
    (tmp_path / FILE).write_bytes((bundle / FILE).read_bytes()[:100])
    with pytest.raises(PackageError, match="not a manifest"):
        read_manifest(tmp_path)


def test_a_package_that_is_given_for_its_bundle_is_told(bundle):
    with pytest.raises(PackageError, match=r"no macai\.json in it") as error:
        read_manifest(bundle / "Tiny.mlpackage")
    assert error.value.hint.endswith(f"give the bundle it is in, {bundle}")


def test_a_manifest_that_contradicts_its_package_is_refused(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "b")
    value = json.loads((bundle / FILE).read_text())
    value["functions"]["decode"]["inputs"]["inputIds"]["shape"] = [1, 2]
    (tmp_path / "b" / FILE).write_text(json.dumps(value))
    with pytest.raises(PackageError, match=r"decode takes no inputIds \[1, 2\]"):
        open_bundle(tmp_path / "b")


def test_an_agreement_counts_near_ties_apart():
    agreement = Agreement()
    model = np.array([1.0, 1.01, -3, -3, -3, -3, -3], np.float32)
    agreement.add(np.array([1.01, 1.0, -3, -3, -3, -3, -3], np.float32), model)
    agreement.add(
        np.array([3.0, 1.0, -3, -3, -3, -3, -3], np.float32), model - [0, 0, 0, 0, 0, 0, 0]
    )
    assert (agreement.top1, agreement.ties) == (0, 2)
    far = np.array([1.0, 3.0, -3, -3, -3, -3, -3], np.float32)
    agreement.add(model[[1, 0, 2, 3, 4, 5, 6]], far)
    assert (agreement.top1, agreement.ties) == (0, 2)
    assert agreement.problems("decode")
