"""The sections on models of two layers: what they give, and whether their clocks are right."""

import json
import time

import mlx.core as mx
import numpy as np
import pytest

from macai.bench import work
from macai.bench.cases.generate import Replies, open_generate
from macai.bench.cases.image import open_image
from macai.bench.cases.package import open_package_cases
from macai.bench.cases.train import open_train
from macai.coreml.bundle import write_bundle
from macai.models.load import load_model
from tests.diffusion.tiny import tiny_pipeline_dir


def sampled(cases):
    """Return figures and values of one sample of each case, by name and size."""
    found = {}
    for case in cases:
        figures = case.figures
        for key, value in case.sample().items():
            found[figures[key].id] = (figures[key], value)
    return found


def named(found, name):
    return [value for figure, value in found.values() if figure.name == name]


def test_generation_has_prompts_of_several_lengths_one_at_a_time_and_together(tiny_dir):
    found = sampled(open_generate(tiny_dir, "tiny", quick=True))
    sizes = [f.parameters for f, _ in found.values() if f.name == "decode"]
    assert sizes == [  # 512 is the model's context, so a prompt of 512 leaves no room
        {"context": 32, "batch": 1},
        {"context": 128, "batch": 1},
        {"context": 32, "batch": 4},
        {"context": 128, "batch": 4},
    ]
    assert len(named(found, "load")) == len(named(found, "process memory")) == 1
    assert all(
        value > 0 for name in ("prefill", "decode", "first token") for value in named(found, name)
    )
    assert all(figure.work.flops > 0 for figure, _ in found.values() if figure.name == "decode")


def test_a_decoded_token_reads_the_weights_and_what_is_kept_of_the_prompt(tiny_dir, monkeypatch):
    monkeypatch.setattr(work, "CACHED_BYTES", 0)
    config = json.loads((tiny_dir / "config.json").read_text())
    head = config["hidden_size"] // config["num_attention_heads"]
    a_place = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * 4
    read = {
        (figure.parameters["context"], figure.parameters["batch"]): figure.work.bytes
        for case in open_generate(tiny_dir, "tiny", quick=True)
        for figure in case.figures.values()
        if figure.name == "decode"
    }
    assert read[128, 1] - read[32, 1] == (128 - 32) * a_place
    assert read[128, 4] - read[32, 4] == (128 - 32) * a_place  # each row has a prompt of its own
    assert read[32, 1] - read[32, 4] == 3 / 4 * (read[32, 1] - 32 * a_place)


def test_training_has_rows_of_several_lengths(tiny_dir):
    found = sampled(open_train(tiny_dir, "tiny", quick=True))
    assert [f.parameters["length"] for f, _ in found.values() if f.name == "training"] == [
        64,
        128,
        256,
    ]
    assert all(value > 0 for value in named(found, "training"))


def test_images_have_each_part_of_a_picture(tmp_path):
    found = sampled(open_image(tiny_pipeline_dir(tmp_path / "sd"), "tiny", quick=True))
    [whole], [text], [decoding] = (
        named(found, n) for n in ("picture of 4 steps", "text", "decoding")
    )
    [steps] = named(found, "denoising")
    assert text + decoding + 4 / steps <= whole * 1.01
    assert min(text, decoding, steps) > 0


def test_a_package_is_opened_and_asked_by_the_reference_runtime(tiny_dir, tmp_path):
    loaded = load_model(tiny_dir, as_stored=True)
    source = {"model": "tiny"}
    write_bundle(
        loaded, tmp_path, name="Tiny", source=source, context=32, prefill=[8], precision="fp16"
    )
    found = sampled(open_package_cases(tmp_path, "Tiny", quick=True, coreml=False))
    at = [figure.parameters for figure, _ in found.values() if figure.name == "decode"]
    assert at == [{"runtime": "reference", "context": 8}]
    [first], [prefill] = named(found, "first token"), named(found, "prefill")
    assert prefill == pytest.approx(8 / first)


class Ticks:
    """A clock that moves on only when it is told to."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


def test_by_its_clock_a_reply_is_read_once_and_then_written_token_by_token(tiny, monkeypatch):
    clock = Ticks()
    monkeypatch.setattr("macai.bench.cases.generate.time", clock)

    def reply(loaded, ids, *, max_tokens):
        for number in range(max_tokens):
            clock.now += 0.1 if number else 0.5
            yield number

    monkeypatch.setattr("macai.bench.cases.generate.generate", reply)
    values = Replies(tiny, "tiny", 32, 1, 16, 512).sample()
    assert values["first"] == pytest.approx(0.5)
    assert values["prefill"] == pytest.approx(32 / 0.5)
    assert values["decode"] == pytest.approx(1 / 0.1)


@pytest.mark.slow
@pytest.mark.long
def test_tokens_a_second_are_those_of_a_stopwatch_around_another_loop(smollm2):
    """Greedy decoding written down once more, with mlx-lm's cache; the two alternate."""
    from mlx_lm.models.cache import make_prompt_cache

    case = Replies(smollm2, "smollm2", 32, 1, 16, 49152)
    ids = mx.array(np.random.default_rng(32).integers(0, 49152, (1, 32), np.int32))

    def by_stopwatch():
        cache = make_prompt_cache(smollm2.model)
        token = mx.argmax(smollm2.model(ids, cache=cache)[:, -1], axis=-1)
        mx.eval(token)
        began = time.perf_counter()
        for _ in range(16):
            token = mx.argmax(smollm2.model(token[:, None], cache=cache)[:, -1], axis=-1)
            mx.eval(token)
        return 16 / (time.perf_counter() - began)

    case.sample()
    pairs = [(case.sample()["decode"], by_stopwatch()) for _ in range(12)]
    # The best of each: a machine's interruptions only ever take.
    ours, theirs = (max(values) for values in zip(*pairs, strict=True))
    assert ours == pytest.approx(theirs, rel=0.15), pairs
