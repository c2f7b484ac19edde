"""What goes wrong in silence elsewhere, a test a row of the table in docs/training.md.

Each also runs with the defect built in, and must fail then. Long because it is that table.
"""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from macai.data import batches, tokens
from macai.data.rows import Message, Row, read_splits
from macai.errors import AdapterError, DataError, TrainingError
from macai.finetune import finetune
from macai.models import lora
from macai.models.adapter import load_adapter
from macai.models.fuse import fuse
from macai.models.load import load_model, load_tokenizer
from macai.selftest import gradients, models, runs
from macai.selftest.proof import Subject, adapt
from macai.train import loss
from macai.train.evaluate import mean_loss
from macai.train.events import Started, Validated
from macai.train.loop import Report
from macai.train.progress import Progress
from tests.data.test_tokens import R1
from tests.tiny import tiny_model_dir
from tests.train import defects
from tests.train.silent import fails_with

RECIPE = runs.recipe()


@pytest.fixture
def subject(tiny_dir, tmp_path):
    return Subject(tiny_dir, tmp_path)


@pytest.fixture
def chat():
    return tuple(
        Message(role="user" if i % 2 == 0 else "assistant", content=words)
        for i, words in enumerate(("Hi", "Hello there", "Bye", "See you soon"))
    )


def events_of(subject, recipe=RECIPE, *, data=None, out="run", base=None, **options):
    data = data or runs.write_rows(subject.scratch / "data")
    loaded = load_model(base or subject.folder)
    return list(finetune(recipe, loaded, data=data, out=subject.scratch / out, **options))


def of_type(events, kind):
    return [event for event in events if isinstance(event, kind)]


def skewed(rows=2000):
    """Lengths as they are in real data: most short, few very long."""
    rng = np.random.default_rng(0)
    return np.clip(rng.lognormal(np.log(90), 0.9, rows), 8, 1024).astype(int).tolist()


@fails_with(defects.sort_by_nothing, defects.pad_each_row_to_a_width_of_its_own)
def test_row_01_most_computed_tokens_are_real_in_at_most_16_widths(subject):
    lengths = skewed()
    options = {"tokens": 2048, "micro_tokens": 2048, "seed": 0}
    plans = [
        plan
        for epoch in range(2)
        for step in batches.plan_epoch(lengths, epoch=epoch, **options)
        for plan in step
    ]
    assert 2 * sum(lengths) / sum(plan.padded_tokens for plan in plans) >= 0.87
    assert len({plan.width for plan in plans}) <= 16


@fails_with(defects.train_the_pad_after_each_row)
def test_row_02_no_pad_is_in_the_loss(subject):
    assert gradients.find_padding(subject).held


@fails_with(defects.average_the_means_of_micro_batches)
def test_row_03_micro_batches_add_up_to_one_big_batch(subject):
    assert gradients.find_accumulation(subject).held


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="on a GPU one process computes")
@fails_with(defects.average_the_means_of_workers)
def test_row_03_so_do_the_shares_of_workers(subject):
    assert runs.find_workers(subject).held


@fails_with(defects.keep_rows_with_nothing_learnt)
def test_row_04_a_row_that_truncation_leaves_nothing_to_learn_of_is_not_trained(subject):
    tokenizer = load_tokenizer(subject.folder)
    rows = [
        Row(source="1", prompt="word " * 60, completion="yes"),
        Row(source="2", prompt="word", completion="yes " * 60),
    ]
    (split,) = tokens.prepare([rows], tokenizer, max_length=40, truncation="split")
    assert all(example.learnt_tokens for example in split.examples)
    with pytest.raises(DataError, match=r"2 bad rows"):
        tokens.prepare([rows], tokenizer, max_length=40, truncation="error")


@fails_with(defects.go_on_with_a_loss_that_is_not_finite)
def test_row_04_a_loss_that_is_not_finite_stops_the_run_and_nothing_of_it_is_saved(subject):
    rate = replace(RECIPE.optimizer, learning_rate=3e38, max_grad_norm=0.0)
    recipe = replace(RECIPE, optimizer=rate, train=replace(RECIPE.train, eval_every=0))
    with pytest.raises(TrainingError, match=r"the (validation )?loss is"):
        events_of(subject, recipe)
    for file in (subject.scratch / "run").glob("*.safetensors"):
        assert all(mx.isfinite(a).all().item() for a in mx.load(str(file)).values())


@fails_with(defects.draw_dropout_anew_when_recomputing)
def test_row_05_gradient_checkpointing_changes_no_bit_with_dropout(subject):
    assert gradients.find_recomputing(subject).held


@fails_with(defects.train_the_last_turn_only)
def test_row_06_every_turn_of_the_assistant_is_learnt(subject, chat):
    assert models.find_masks(subject).held
    tokenizer = load_tokenizer(subject.folder)
    chat = (*chat[:1], replace(chat[1], train=False), *chat[2:], *chat[:2])
    example = tokens.tokenise(Row(source="r", messages=chat), tokenizer)
    learnt = tokenizer.decode(example.ids[example.learn].tolist())
    assert learnt == "See you soon<|im_end|>Hello there<|im_end|>"  # but not what is not to be


@fails_with(defects.look_for_the_prompt_as_a_prefix)
def test_row_06_also_where_the_prompt_is_no_prefix_of_the_whole(subject):
    inner = load_tokenizer(subject.folder)._tokenizer
    inner.chat_template = R1
    tokenizer = TokenizerWrapper(inner)
    said = ("a", "Hello", "b", "<think>\nhm</think>there")
    roles = ("user", "assistant") * 2
    chat = [Message(role=r, content=c) for r, c in zip(roles, said, strict=True)]
    example = tokens.tokenise(Row(source="r", messages=tuple(chat)), tokenizer)
    learnt = tokenizer.decode(example.ids[example.learn].tolist())
    assert learnt == "Hello<|im_end|>there<|im_end|>"


@fails_with(defects.keep_rows_with_nothing_learnt, defects.leave_out_the_mark_that_ends_a_turn)
def test_row_07_what_ends_a_turn_is_learnt_whatever_is_cut_off(subject):
    tokenizer = load_tokenizer(subject.folder)
    long = Row(source="1", prompt="word", completion="yes " * 60)
    for truncation in ("split", "keep-end"):
        (split,) = tokens.prepare([[long]], tokenizer, max_length=40, truncation=truncation)
        last = split.examples[-1]
        assert last.ids[last.learn][-1] == tokenizer.eos_token_id
    with pytest.raises(DataError, match="over max_length = 40"):
        tokens.prepare([[long]], tokenizer, max_length=40, truncation="error")


@fails_with(defects.score_other_rows_each_time, defects.weigh_batches_alike_in_validation)
def test_row_08_every_validation_is_of_all_rows_each_learnt_token_alike(subject):
    still = replace(RECIPE.optimizer, learning_rate=1e-30)
    events = events_of(subject, replace(RECIPE, optimizer=still))
    losses = {event.loss for event in of_type(events, Validated)}
    assert len(losses) == 1
    rows = read_splits(subject.scratch / "data").valid
    loaded = subject.load()
    (split,) = tokens.prepare([rows], loaded.tokenizer, max_length=999, truncation="error")
    expected, _ = gradients.reference(_with_adapter(loaded), split.examples)
    assert losses.pop() == pytest.approx(expected, rel=1e-4)


def _with_adapter(loaded):
    """Give the model an adapter that changes nothing: for a gradient there must be one."""
    lora.add_lora(loaded.model, ["model.layers.0.mlp.up_proj"], rank=2, alpha=2.0)
    return loaded.model


@fails_with(defects.draw_the_order_from_one_generator)
def test_row_08_validating_more_often_changes_nothing_that_is_trained(subject):
    often = replace(RECIPE, train=replace(RECIPE.train, eval_every=1))
    losses = [
        [report.loss for report in of_type(events_of(subject, recipe, out=out), Report)]
        for recipe, out in ((RECIPE, "seldom"), (often, "often"))
    ]
    assert losses[0] == losses[1]


@fails_with(
    defects.start_the_optimiser_anew,
    defects.start_the_schedule_anew,
    defects.draw_dropout_from_one_stream,
    defects.draw_the_order_from_one_generator,
)
def test_row_09_a_resumed_run_is_the_uninterrupted_one(subject):
    assert runs.find_resuming(subject).held


@fails_with(defects.load_adapters_of_any_shape)
def test_row_09_an_adapter_that_does_not_fit_is_refused_and_the_first_mismatch_named(subject):
    events_of(subject)
    folder = subject.scratch / "run"
    file = folder / "adapter_model.safetensors"
    weights = mx.load(str(file))
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    mx.save_safetensors(str(file), weights | {name: weights[name][:2]})
    with pytest.raises(AdapterError, match=r"layers.1.mlp.down_proj.lora_A is \[2, 128\]"):
        load_adapter(subject.load(), folder)
    mx.save_safetensors(str(file), {k: v for k, v in weights.items() if "layers.1" not in k})
    with pytest.raises(AdapterError, match=r"names model.layers.1.mlp.down_proj"):
        load_adapter(subject.load(), folder)


@fails_with(defects.quantise_what_was_fused)
def test_row_10_a_model_fused_into_a_quantised_base_says_what_its_adapter_did(subject):
    results = []
    for fused in (False, True):
        loaded = subject.load()
        nn.quantize(loaded.model, group_size=32, bits=4)
        adapt(loaded)
        if fused:
            fuse(loaded)
        examples = gradients.random_examples((200, 1), vocabulary=400)
        logits = loaded.model(mx.array(examples[0].ids)[None])[0]
        results.append(np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True)))
    expected, actual = results
    assert (expected.argmax(-1) == actual.argmax(-1)).mean() >= 0.99
    assert (np.exp(expected) * (expected - actual)).sum(-1).mean() < 1e-6  # nats


@fails_with(defects.count_packed_columns_by_whole_words)
def test_row_11_lora_and_dora_fit_bases_of_every_width_of_bits(subject):
    plain = dict(subject.load().model.named_modules())
    shapes = {p: m.weight.shape for p, m in plain.items() if isinstance(m, nn.Linear)}
    for bits in (2, 3, 4, 5, 6, 8):
        loaded = subject.load()
        nn.quantize(loaded.model, group_size=32, bits=bits)
        quantised = dict(loaded.model.named_modules())
        assert all(lora.linear_shape(quantised[path]) == shape for path, shape in shapes.items())
        before = loaded.model(mx.arange(4)[None])
        paths = lora.target_paths(loaded.model, [lora.ALL_LINEAR])
        lora.add_lora(loaded.model, paths, rank=2, alpha=4.0, use_dora=True)
        after = loaded.model(mx.arange(4)[None])
        assert mx.abs(after - before).max().item() < 1e-4  # a new one changes nothing


@fails_with(defects.keep_the_last_adapter)
def test_row_12_the_adapter_of_the_best_validation_is_kept(subject):
    rate = replace(RECIPE.optimizer, learning_rate=0.3, max_grad_norm=0.0)
    train = replace(RECIPE.train, epochs=5, eval_every=1, patience=2)
    events = events_of(subject, replace(RECIPE, optimizer=rate, train=train))
    validated = of_type(events, Validated)
    best = min(event.loss for event in validated)
    assert validated[-1].loss > best
    loaded = subject.load()
    load_adapter(loaded, subject.scratch / "run")
    assert _valid_loss(subject, loaded) == pytest.approx(best, rel=1e-5)


def _valid_loss(subject, loaded):
    rows = read_splits(subject.scratch / "data").valid
    (split,) = tokens.prepare([rows], loaded.tokenizer, max_length=999, truncation="error")
    options = {"logits": loss.logits_for(subject.load().model), "tokens": 256, "pad_id": 0}
    return list(mean_loss(loaded.model, split.examples, **options))[-1][2]


def go_on_to_the_last_step(patch):
    """12: however long the loss has got no better."""
    real = Progress.count

    def count(self, report):
        real(self, report)
        self.stale = 0

    patch.setattr(Progress, "count", count)


@fails_with(go_on_to_the_last_step)
def test_row_12_a_run_ends_early_when_the_loss_gets_no_better(subject):
    rate = replace(RECIPE.optimizer, learning_rate=0.3, max_grad_norm=0.0)
    train = replace(RECIPE.train, epochs=5, eval_every=1, patience=2)
    recipe = replace(RECIPE, optimizer=rate, train=train)
    events = events_of(subject, recipe)
    validated, summary = of_type(events, Validated), events[-1]
    assert [event.best for event in validated[-3:]] == [True, False, False]
    assert not any(not (a.best or b.best) for a, b in pairwise(validated[:-1]))
    assert summary.steps == validated[-1].step < events[0].steps
    assert summary.best_valid_loss == validated[-3].loss
    again = events_of(subject, recipe, resume=True)  # it is over: nothing more is trained
    assert of_type(again, Report) == []
    assert replace(again[-1], seconds=0) == replace(summary, seconds=0)


@fails_with(defects.write_no_identity)
def test_row_13_an_adapter_goes_on_no_other_base_of_the_same_shapes(subject):
    events_of(subject)
    other = tiny_model_dir(subject.scratch / "other", seed=1)
    with pytest.raises(AdapterError, match="trained on another base"):
        load_adapter(load_model(other), subject.scratch / "run")


@fails_with(defects.load_an_adapter_that_matches_nothing)
def test_row_13_an_adapter_that_matches_nothing_is_refused(subject):
    events_of(subject)
    file = subject.scratch / "run" / "adapter_model.safetensors"
    weights = {k.replace("layers", "blocks"): v for k, v in mx.load(str(file)).items()}
    mx.save_safetensors(str(file), weights)
    with pytest.raises(AdapterError, match=r"no linear layer model.blocks.0"):
        load_adapter(subject.load(), subject.scratch / "run")


@fails_with(defects.load_weights_of_zero)
def test_row_13_an_adapter_changes_the_logits(subject):
    assert models.find_adapter(subject).held


@fails_with(defects.decide_the_form_of_all_rows_on_the_first, defects.stop_at_the_first_bad_row)
def test_row_14_each_row_is_checked_and_all_errors_are_said_at_once(tmp_path):
    train = ['{"text": "a"}', "", '{"prompt": "q"}', '{"messages": []}', "no JSON"]
    (tmp_path / "train.jsonl").write_text("\n".join(train) + "\n")
    (tmp_path / "valid.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError) as caught:
        read_splits(tmp_path)
    for place in ("train.jsonl:3", "train.jsonl:4", "train.jsonl:5", "valid.jsonl:1"):
        assert place in caught.value.message
    assert "train.jsonl:2" not in caught.value.message  # a blank line is no row


def validate_on_training_rows(patch):
    """14: the validation split is not read."""
    real = read_splits
    patch.setattr(
        "macai.finetune.rows.read_splits", lambda path: replace(real(path), valid=real(path).train)
    )


@fails_with(validate_on_training_rows)
def test_row_14_the_validation_split_is_used(subject):
    data = runs.write_rows(subject.scratch / "data")
    lenient = replace(RECIPE, data=replace(RECIPE.data, strict=False))
    (started,) = of_type(events_of(subject, lenient, data=data), Started)
    assert (started.train_rows, started.valid_rows) == (12, 3)


def free_the_cache_after_every_step(patch):
    """15: each step asks the system for its memory again."""
    real = Report.__init__

    def init(self, **values):
        real(self, **values)
        mx.clear_cache()

    patch.setattr(Report, "__init__", init)


def wire_all_there_is(patch):
    """15: nothing is left for other programs."""
    patch.setattr("macai.train.memory.WIRED_SHARE", 1.0)


@pytest.fixture
def metal(monkeypatch):
    """A Mac with 10 GB to recommend; returns what was asked of its allocator."""
    asked = []

    def ask(name, before):
        def function(size=None):
            asked.append((name, size))
            return before

        monkeypatch.setattr(mx, name, function)

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    info = {"max_recommended_working_set_size": 10_000_000_000}
    monkeypatch.setattr(mx, "device_info", lambda: info)
    for name, before in (("set_wired_limit", 1), ("set_cache_limit", 2), ("clear_cache", None)):
        ask(name, before)
    return asked


@fails_with(free_the_cache_after_every_step, wire_all_there_is)
def test_row_15_wired_memory_and_cache_are_limited_and_the_cache_is_kept(subject, metal):
    events_of(subject)
    (wired, most), (cache, kept), *after = metal
    assert (wired, cache) == ("set_wired_limit", "set_cache_limit")
    assert 0 < kept < most < 0.9 * 10_000_000_000
    assert after == [("set_cache_limit", 2), ("set_wired_limit", 1)]


@fails_with(defects.put_the_head_on_every_token)
def test_row_16_the_head_is_on_learnt_tokens_only(subject):
    loaded = subject.load()
    rows, logits = [], loss.logits_for(loaded.model)
    inner = type(loaded.model.lm_head)

    class Watched(inner):
        def __call__(self, x):
            rows.append(x.size // x.shape[-1])
            return super().__call__(x)

    loaded.model.lm_head.__class__ = Watched
    examples = gradients.random_examples((200, 3), (120, 4), vocabulary=400)
    batch = gradients.made(examples, (0, 1))
    logits(loaded.model, batch.ids, batch.positions)
    assert rows == [8]  # 7, rounded up; not 400


@fails_with(defects.multiply_the_adapter_in_float32)
def test_row_17_adapters_leave_the_type_of_the_activations(subject):
    loaded = subject.adapted()
    x = mx.zeros((2, 64), mx.bfloat16)
    for layer in lora.lora_layers(loaded.model).values():
        layer.linear.set_dtype(mx.bfloat16)
        if lora.linear_shape(layer.linear)[1] == 64:
            assert layer(x).dtype == mx.bfloat16
        assert layer.lora_A.dtype == layer.lora_B.dtype == mx.float32  # what is trained


def test_every_row_of_the_table_in_the_docs_has_a_test_and_each_a_defect():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    named = {int(number) for number in re.findall(r"^\| row (\d\d) \|", page, re.MULTILINE)}
    tests = {name: test for name, test in globals().items() if name.startswith("test_row_")}
    assert named == {int(name[9:11]) for name in tests} == set(range(1, 18))
    for name, test in tests.items():
        (cases,) = (mark.args[1] for mark in test.pytestmark if mark.name == "parametrize")
        assert len(cases) > 1, name
