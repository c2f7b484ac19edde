"""SmolLM2-135M as a package: the bars of the export, on real weights."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macai.coreml.bundle import write_bundle
from macai.coreml.package import package_hash
from macai.coreml.profiles.ane import ANE
from macai.coreml.session import ReferenceRunner, Session, open_bundle
from macai.coreml.verify import sample_text, verify_package
from macai.models.load import load_model

pytestmark = pytest.mark.slow

GOLDENS = Path(__file__).parent.parent / "goldens"
OPTIONS = {
    "name": "SmolLM2",
    "source": {"model": "smollm2-135m"},
    "context": 1024,
    "prefill": [64],
}


def write(model: Path, folder: Path, **options) -> Path:
    folder.mkdir()
    write_bundle(load_model(model, as_stored=True), folder, **(OPTIONS | options))
    return folder


@pytest.fixture(scope="module")
def halves(smollm2_dir, tmp_path_factory):
    return write(smollm2_dir, tmp_path_factory.mktemp("halves") / "b")


@pytest.fixture(scope="module")
def carried(smollm2_dir, tmp_path_factory):
    """The 4-bit weights of the GGUF, carried over as they are."""
    return write(smollm2_dir, tmp_path_factory.mktemp("carried") / "b", weights="keep")


def assert_meets_the_bars(report, positions):
    assert report["passed"], report["problems"]
    decode = report["functions"]["decode"]
    assert decode["positions"] >= positions
    assert decode["top1"] >= 0.995
    assert decode["kl"] <= 1e-3
    assert report["transcript"]["different"] == 0
    assert report["transcript"]["tokens"] == 64
    assert report["float16"]["overflows"] == 0


def test_a_text_and_a_reply_agree(halves, smollm2):
    ids = smollm2.tokenizer.encode(sample_text())[:40]
    report = verify_package(smollm2, *open_bundle(halves), ids, tokens=4)
    assert report["passed"], report["problems"]
    assert report["functions"]["decode"]["kl"] < 1e-4
    assert report["float16"]["overflows"] == 0


@pytest.mark.parametrize("chunks", [1, pytest.param(3, marks=pytest.mark.long)])
def test_packages_for_the_neural_engine_agree(smollm2_dir, smollm2, tmp_path, chunks):
    """Without anything in float32, whose norms would overflow if they were squared as they are."""
    folder = write(smollm2_dir, tmp_path / "b", profile=ANE, chunks=chunks)
    ids = smollm2.tokenizer.encode(sample_text())[:32]
    report = verify_package(smollm2, *open_bundle(folder), ids, tokens=4)
    assert report["passed"], report["problems"]
    assert report["functions"]["decode"]["kl"] < 1e-4
    assert report["float16"]["overflows"] == 0
    assert report["float16"]["cosine"] > 0.9999


@pytest.mark.long
def test_500_positions_of_text_and_64_tokens_of_reply_agree(halves, smollm2):
    ids = smollm2.tokenizer.encode(sample_text())[:516]
    report = verify_package(smollm2, *open_bundle(halves), ids, tokens=64)
    assert_meets_the_bars(report, 500)


@pytest.mark.long
def test_the_four_bit_weights_of_the_gguf_are_carried_over(carried, halves, smollm2):
    manifest, package = open_bundle(carried)
    assert manifest.weights == "keep"
    assert package.size_bytes < 0.42 * open_bundle(halves)[1].size_bytes
    ids = smollm2.tokenizer.encode(sample_text())[:516]
    report = verify_package(smollm2, manifest, package, ids, tokens=64)
    assert_meets_the_bars(report, 500)


@pytest.mark.long
def test_replies_are_those_of_transformers_up_to_near_ties(halves):
    """transformers computed in float32; where its two best are within 0.05 either may be said."""
    replies = json.loads((GOLDENS / "greedy_smollm2.json").read_text(encoding="utf-8"))["replies"]
    manifest, package = open_bundle(halves)
    session = Session(manifest, ReferenceRunner(package))
    short = [r for r in replies if len(r["prompt_ids"]) < 100][:6]
    assert len(short) == 6
    for reply in short:
        session.reset()
        logits = session.feed(reply["prompt_ids"])
        for expected, margin in zip(reply["output_ids"], reply["margins"], strict=True):
            assert int(logits.argmax()) == expected or margin < 0.05
            logits = session.feed([expected])


def test_an_export_is_the_same_to_the_last_byte_the_second_time(halves, smollm2_dir, tmp_path):
    again = write(smollm2_dir, tmp_path / "again")
    assert package_hash(again / "SmolLM2.mlpackage") == package_hash(halves / "SmolLM2.mlpackage")


def test_two_functions_are_hardly_larger_than_the_weights(halves, smollm2):
    numbers = sum(v.size for _, v in _leaves(smollm2))
    assert open_bundle(halves)[1].size_bytes < 1.05 * 2 * numbers


def test_what_float32_norms_are_for(halves, smollm2):
    """Without them this model's activations, up to 25,000, overflow when they are squared."""
    manifest, package = open_bundle(halves)
    runner = ReferenceRunner(package, "fp16")
    session = Session(manifest, runner)
    ids = smollm2.tokenizer.encode(sample_text())[:24]
    own = session.feed(ids)
    model = np.array(smollm2.model(mx.array(ids)[None])[0, -1])
    cosine = own @ model / np.linalg.norm(own) / np.linalg.norm(model)
    assert runner.overflows == 0
    assert cosine > 0.9999


def _leaves(loaded):
    from mlx.utils import tree_flatten

    return tree_flatten(loaded.model.parameters())
