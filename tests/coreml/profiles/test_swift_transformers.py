"""Packages for swift-transformers: right at any length, for both of its callers."""

import json
import shutil
import sys
from pathlib import Path

import coremltools as ct
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.converters.mil.mil import get_new_symbol, types

from macai.bench.architectures import build, config_of, rounded_cache
from macai.coreml import export_functions
from macai.coreml.bundle import write_bundle
from macai.coreml.device import CoreMLRunner
from macai.coreml.export_llm import Export, export_llm
from macai.coreml.package import package_hash
from macai.coreml.profiles import PROFILES
from macai.coreml.session import ReferenceRunner, Session, open_bundle
from macai.coreml.verify import sample_text, verify_package
from macai.errors import PackageError, UsageError
from macai.mil import open_package
from macai.mil.lint import lint
from macai.models.load import load_model
from tests.coreml.test_architectures import FAST, MORE, many
from tests.mil.packages import save_model

PROFILE = PROFILES["swift-transformers"]
CONTEXT = 96
IDS = [5, 80, 33, 7, 260, 9, 41, 17, 300, 77, 120, 8, 55, 401, 3]
QUICK = ("llama", "llama, sliding", "qwen2", "qwen3", "gemma3_text")
SHORT = {"gpt2"}  # its table has fewer positions than the context here
OTHERS = [name for name in (*FAST, *MORE) if name not in {*QUICK, *SHORT}]


def saved(model, path, precision="fp32"):
    functions = PROFILE.functions(model, context=CONTEXT, prefill=(), precision=precision)
    export_functions(functions, path, force=True)
    return open_package(path)


def app_mask(tokens, rows):
    """LanguageModelWithStatefulKVCache, swift-transformers 1.3.3: zeros, a column too many."""
    return np.zeros((1, 1, 1, tokens + 1), np.float16)


def script_mask(tokens, rows):
    """Examples/Mistral7B/generate.py there: -inf above the diagonal of a prompt, else zeros."""
    first = -np.inf if rows == tokens else 0
    return np.triu(np.full((1, 1, rows, tokens), first), k=1).astype(np.float16)


class Talk:
    """A state, and mlx-lm's own cache beside it."""

    def __init__(self, model, package, mask):
        self.model, self.function, self.mask = model, package.functions["main"], mask
        self.state, self.cache = package.make_state(), rounded_cache(model)
        self.tokens = 0

    def error(self, rows):
        """Take the next tokens; return the largest error of all rows over the largest logit."""
        ids = np.random.default_rng(self.tokens).integers(1, 60, (1, rows)).astype(np.int32)
        self.tokens += rows
        inputs = {"inputIds": ids, "causalMask": self.mask(self.tokens, rows)}
        got = self.function.run(inputs, state=self.state).outputs["logits"]
        wanted = np.array(self.model(mx.array(ids), cache=self.cache))
        assert got.shape == wanted.shape
        return float(np.abs(got - wanted).max() / np.abs(wanted).max())


NEAR = 5e-4  # a key that rounds to the next float16


def assert_right_at_all_lengths(model, path):
    package = saved(model, path)
    for mask, room in [(app_mask, CONTEXT - 1), (script_mask, CONTEXT)]:
        talk = Talk(model, package, mask)
        assert max(talk.error(rows) for rows in (7, 1, 1, 64, 1, 1)) <= NEAR
        assert Talk(model, package, mask).error(1) <= NEAR
        assert Talk(model, package, mask).error(room) <= NEAR


@pytest.mark.parametrize("name", QUICK)
def test_each_logit_is_mlxs_at_any_length_for_either_caller(name, tmp_path):
    assert_right_at_all_lengths(build(config_of(*FAST[name])), tmp_path / "p.mlpackage")


@pytest.mark.slow
@pytest.mark.parametrize("name", many(OTHERS))
def test_so_it_is_for_other_models(name, tmp_path):
    assert_right_at_all_lengths(
        build(config_of(*FAST.get(name, (name, MORE.get(name))))), tmp_path / "p.mlpackage"
    )


@pytest.fixture(scope="module")
def model():
    return build(config_of(*FAST["llama"]))


@pytest.fixture(scope="module")
def package(model, tmp_path_factory):
    return saved(model, tmp_path_factory.mktemp("p") / "p.mlpackage", "fp16")


def test_values_of_the_mask_change_nothing(package):
    ids = np.arange(1, 6, dtype=np.int32)[None]
    results = []
    for value in (0, -np.inf, np.nan):
        mask = np.full((1, 1, 1, 6), value, np.float16)
        inputs = {"inputIds": ids, "causalMask": mask}
        results.append(
            package.functions["main"].run(inputs, state=package.make_state()).outputs["logits"]
        )
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_states_hold_what_llm_py_says_a_place_later_for_the_app(package):
    ids = np.arange(1, 4, dtype=np.int32)[None]
    kept = []
    for mask in (app_mask(3, 3), script_mask(3, 3)):
        state = package.make_state()
        package.functions["main"].run({"inputIds": ids, "causalMask": mask}, state=state)
        kept.append(state["keyCache"])
    assert kept[0].shape == (2, 1, 2, CONTEXT, 16)
    np.testing.assert_array_equal(kept[0][..., 1:4, :], kept[1][..., :3, :])
    assert not kept[0][..., 0, :].any()
    assert not kept[1][..., 3:, :].any()


def features(description):
    """Inputs, outputs and states without their texts."""
    found = {}
    for kind in ("input", "output", "state"):
        for feature in getattr(description, kind):
            feature.shortDescription = ""
            found[feature.name] = feature
    return found


def test_inputs_and_states_are_described_as_coremltools_describes_such(package, tmp_path):
    """As Examples/Mistral7B/export.py asks it to, there by way of torch."""
    tokens, rows, width = (get_new_symbol() for _ in range(3))
    specs = [
        mb.TensorSpec((1, tokens), types.int32),
        mb.TensorSpec((1, 1, rows, width), types.fp16),
        *(mb.StateTensorSpec((2, 1, 2, CONTEXT, 16), types.fp16) for _ in range(2)),
    ]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(inputIds, causalMask, keyCache, valueCache):  # noqa: N803
        kept = [mb.reduce_sum(x=mb.read_state(input=s)) for s in (keyCache, valueCache)]
        total = mb.add(x=mb.add(x=kept[0], y=kept[1]), y=mb.reduce_sum(x=causalMask))
        ids = mb.cast(x=mb.expand_dims(x=inputIds, axes=[2]), dtype="fp16")
        return mb.add(x=ids, y=total, name="logits")

    size = ct.RangeDim(lower_bound=1, upper_bound=CONTEXT, default=1)
    other = [ct.RangeDim(lower_bound=1, upper_bound=CONTEXT, default=1) for _ in range(2)]
    path = save_model(
        lambda: ct.convert(
            program,
            inputs=[
                ct.TensorType(name="inputIds", shape=(1, size), dtype=np.int32),
                ct.TensorType(name="causalMask", shape=(1, 1, *other), dtype=np.float16),
            ],
            minimum_deployment_target=ct.target.iOS18,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        ),
        tmp_path / "theirs.mlpackage",
    )
    ours, theirs = (ct.utils.load_spec(str(p)).description for p in (package.path, path))
    assert features(ours) == features(theirs)


def test_coremltools_own_reader_takes_the_package(package):
    read = ct.models.MLModel(str(package.path), skip_model_load=True)
    spec = read.get_spec()
    assert spec.description.defaultFunctionName == ""
    program = load(spec, spec.specificationVersion, file_weights_dir=read.weights_dir)
    (logits,) = program.functions["main"].outputs
    assert logits.rank == 3
    assert logits.shape[2] == 80


@pytest.fixture(scope="module")
def bundle(tiny_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "Tiny"
    folder.mkdir()
    loaded = load_model(tiny_dir, as_stored=True)
    source = {"model": "tiny", "repository": "org/tiny"}
    write_bundle(loaded, folder, name="Tiny", source=source, context=CONTEXT, profile=PROFILE)
    return folder


def test_a_bundle_has_one_function_and_no_swift_but_how_to_use_it(bundle):
    manifest, package = open_bundle(bundle)
    assert manifest.profile == "swift-transformers"
    assert list(manifest.functions) == list(package.functions) == ["main"]
    assert manifest.functions["main"].tokens == CONTEXT
    assert package.metadata["co.huggingface.exporters.name"] == "org/tiny"
    assert not (bundle / "Swift").exists()
    card = " ".join((bundle / "README.md").read_text().split())
    assert "LanguageModel.loadCompiled(url: compiled, tokenizer: tokenizer)" in card
    assert f"have {CONTEXT - 1} tokens at most" in card
    assert "Not verified is: - that Core ML loads and runs it" in card


def test_doctor_has_no_errors_to_find_and_of_the_mask_nothing_to_say(bundle):
    applied = {a.rule.id: a for a in lint(bundle).applied}
    assert {name for name, a in applied.items() if a.severity != "note"} <= {
        "bundle-verification",  # it was written, and not compared
        "license-missing",
    }
    assert "swift-transformers-mask" not in applied
    assert "swift-transformers, in a macai bundle" in str(applied["known-contract"].findings)


def test_doctor_knows_when_the_manifest_promises_another_range(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "b")
    file = tmp_path / "b/macai.json"
    value = json.loads(file.read_text())
    value["functions"]["main"]["inputs"]["inputIds"]["most"] = [1, CONTEXT + 1]
    file.write_text(json.dumps(value))
    assert "bundle-functions" in {a.rule.id for a in lint(tmp_path / "b").applied}
    with pytest.raises(PackageError, match="main takes no inputIds"):
        open_bundle(tmp_path / "b")


def test_a_conversation_goes_in_whole_and_keeps_what_a_new_prompt_begins_with(bundle, tiny):
    manifest, package = open_bundle(bundle)
    session = Session(manifest, ReferenceRunner(package))
    other = [*IDS[:6], 99, 98]
    for ids in (IDS, other):
        session.feed(ids[session.keep_prefix(ids) :])
        wanted = np.array(tiny.model(mx.array(ids)[None])[0, -1])
        np.testing.assert_allclose(session.last, wanted, atol=0.02 * np.abs(wanted).max())
    assert session.ids == other


def test_a_conversation_beyond_the_room_is_refused(bundle):
    session = Session(*(lambda m, p: (m, ReferenceRunner(p)))(*open_bundle(bundle)))
    session.feed([1] * (CONTEXT - 1))
    with pytest.raises(PackageError, match=f"{CONTEXT} tokens, and the package's context is 95"):
        session.feed([1])


def test_verification_passes_for_the_model_and_fails_for_another(bundle, tiny, adapted):
    report = verify_package(tiny, *open_bundle(bundle), IDS, tokens=8)
    assert report["passed"], report["problems"]
    assert {n: f["positions"] for n, f in report["functions"].items()} == {"main": 4, "decode": 12}
    adapted()
    assert not verify_package(tiny, *open_bundle(bundle), IDS, tokens=8)["passed"]


def test_an_export_is_the_same_to_the_last_byte_the_second_time(bundle, tiny_dir, tmp_path):
    loaded = load_model(tiny_dir, as_stored=True)
    source = {"model": "tiny", "repository": "org/tiny"}
    write_bundle(loaded, tmp_path, name="Tiny", source=source, context=CONTEXT, profile=PROFILE)
    assert package_hash(tmp_path / "Tiny.mlpackage") == package_hash(bundle / "Tiny.mlpackage")


def test_core_ml_is_asked_for_the_model_not_for_a_function(bundle, monkeypatch):
    class StandIn:
        """coremltools' MLModel as documented, run by the reference runtime."""

        def __init__(self, path, *, compute_units, function_name):
            assert function_name is None
            self.package = open_package(Path(path))

        def make_state(self):
            return self.package.make_state()

        def predict(self, data, state=None):
            return self.package.functions["main"].run(data, state=state).outputs

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ct.models, "MLModel", StandIn)
    manifest, package = open_bundle(bundle)
    ours = Session(manifest, ReferenceRunner(package))
    theirs = Session(manifest, CoreMLRunner(bundle, manifest))
    for ids in (IDS[:11], IDS[11:]):
        assert np.array_equal(ours.feed(ids), theirs.feed(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill": [64]}, "takes any number of tokens at once"),
        ({"adapters": {"a": Path("a"), "b": Path("b")}}, "one function, and no room for adapters"),
        ({"adapters": {"a": Path("a")}, "weights": "keep"}, "no room for adapters"),
        ({"context": 100}, "a context of 100"),
    ],
)
def test_what_the_profile_does_not_have_is_refused(tiny_dir, tmp_path, options, message):
    export = Export(path=tiny_dir, name="T", source={"model": "t"}, profile=PROFILE, **options)
    with pytest.raises(UsageError, match=message):
        export_llm(export, tmp_path)


def test_four_bit_weights_are_carried_over(tiny, tmp_path):
    """A quantised model, kept: the same numbers in the one function."""
    nn.quantize(tiny.model, group_size=32, bits=4)
    package = saved(tiny.model, tmp_path / "p.mlpackage")
    types_ = {o.type for o in package.functions["main"].operations}
    assert "constexpr_blockwise_shift_scale" in types_
    assert Talk(tiny.model, package, app_mask).error(33) <= 1e-4


@pytest.mark.slow
def test_a_text_and_a_reply_of_a_real_model_agree(smollm2_dir, smollm2, tmp_path):
    loaded = load_model(smollm2_dir, as_stored=True)
    options = {"name": "SmolLM2", "source": {"model": "smollm2-135m"}, "context": 512}
    write_bundle(loaded, tmp_path, profile=PROFILE, **options)
    del loaded
    ids = smollm2.tokenizer.encode(sample_text())[:64]
    report = verify_package(smollm2, *open_bundle(tmp_path), ids, tokens=8)
    assert report["passed"], report["problems"]
    assert report["functions"]["main"]["kl"] < 1e-4
    assert report["functions"]["decode"]["kl"] < 1e-4
    assert report["float16"]["overflows"] == 0
