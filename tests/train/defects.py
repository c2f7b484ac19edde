"""What other trainers do wrong, to build into this one: each takes pytest's monkeypatch.

The numbers are those of the table in docs/training.md.
"""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai import finetune as finetune_module
from macai.data import batches, rows, tokens
from macai.data.batches import Plan, Steps
from macai.models import adapter, fuse, lora, recompute
from macai.models.identity import Identity
from macai.models.lora import LoRALinear
from macai.train import gradient, loop, loss, objective, run
from macai.train.gradient import Gradient, Sums


def sort_by_nothing(patch):
    """1: rows come together as they are shuffled; their width is that of the longest."""

    def unsorted(lengths, *, tokens, seed, epoch, **_):
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
        wide = [-(-lengths[i] // 8) * 8 for i in order]
        steps, begin = [], 0
        for end in range(1, len(order) + 1):
            if end == len(order) or (end + 1 - begin) * max(wide[begin : end + 1]) > tokens:
                steps.append([Plan(tuple(map(int, order[begin:end])), max(wide[begin:end]))])
                begin = end
        return Steps(steps.__getitem__, np.arange(len(steps)))

    patch.setattr(batches, "plan_epoch", unsorted)
    patch.setattr("macai.finetune.wanted.plan_epoch", unsorted)


def pad_each_row_to_a_width_of_its_own(patch):
    """1: as many shapes as there are lengths."""
    patch.setattr(batches, "widths_for", lambda lengths: sorted({-(-n // 8) * 8 for n in lengths}))


def train_the_pad_after_each_row(patch):
    """2: a mask made with `<=`."""
    real = batches.make_batch

    def one_too_many(examples, plan, *, pad_id, prefix=0):
        longer = [
            replace(e, ids=np.append(e.ids, np.int32(pad_id)), learn=np.append(e.learn, True))
            for e in examples
        ]
        return real(longer, replace(plan, width=plan.width + 8), pad_id=pad_id, prefix=prefix)

    patch.setattr(batches, "make_batch", one_too_many)
    patch.setattr(objective, "make_batch", one_too_many)


def average_the_means_of_micro_batches(patch):
    """3: each micro-batch weighs the same, however few of its tokens are learnt."""
    real = Gradient.__call__

    def mean_of_means(self, parts, seed):
        each = [real(self, [part], seed) for part in parts]
        total = sum(each[1:], each[0])
        share = total.learnt_tokens / len(each)
        return replace(
            total,
            loss=sum(s.loss / s.learnt_tokens for s in each) * share,
            vector=sum(s.vector / s.learnt_tokens for s in each) * share,
        )

    patch.setattr(Gradient, "__call__", mean_of_means)


def average_the_means_of_workers(patch):
    """3: each process weighs the same."""

    def add(self, other):
        total = self.learnt_tokens + other.learnt_tokens
        halves = [total / 2 / s.learnt_tokens for s in (self, other)]
        return Sums(
            loss=self.loss * halves[0] + other.loss * halves[1],
            vector=self.vector * halves[0] + other.vector * halves[1],
            learnt_tokens=total,
            real_tokens=self.real_tokens + other.real_tokens,
            processed_tokens=self.processed_tokens + other.processed_tokens,
            peak_memory_bytes=0,
        )

    patch.setattr(Sums, "__add__", add)


def keep_rows_with_nothing_learnt(patch):
    """4: and 7: the end of a long row is cut off, whatever that leaves."""

    def cut_the_end(example, max_length, truncation):
        return [replace(example, ids=example.ids[:max_length], learn=example.learn[:max_length])]

    patch.setattr(tokens, "fit_length", cut_the_end)


def go_on_with_a_loss_that_is_not_finite(patch):
    """4: as the optimiser of MLX does."""
    patch.setattr(loop, "math", type("math", (), {"isfinite": staticmethod(lambda x: True)}))
    patch.setattr(run, "math", type("math", (), {"isfinite": staticmethod(lambda x: True)}))


def draw_dropout_anew_when_recomputing(patch):
    """5: the second pass draws the next numbers, not the same."""
    patch.setattr(recompute, "_drawing_from", lambda key, function, *a, **k: function(*a, **k))


def train_the_last_turn_only(patch):
    """6: a mask that begins after the last prompt."""
    real = tokens._chat_example

    def last(messages, *rest):
        earlier = [replace(m, train=False) for m in messages[:-1]]
        return real([*earlier, messages[-1]], *rest)

    patch.setattr(tokens, "_chat_example", last)


def look_for_the_prompt_as_a_prefix(patch):
    """6: where a template's prompt is no prefix of the whole, the mask begins elsewhere."""

    real = tokens._start

    def after_the_prompt(text, messages, turn, tokenizer):
        prompt = tokens.render(messages[:turn], tokenizer, generation=True)
        return min(len(prompt), real(text, messages, turn, tokenizer) + 1)

    patch.setattr(tokens, "_start", after_the_prompt)


def leave_out_the_mark_that_ends_a_turn(patch):
    """7: only what is said is learnt."""
    patch.setattr(tokens, "_special_ids", lambda tokenizer: frozenset())


def score_other_rows_each_time(patch):
    """8: each validation draws a subset."""
    real, rng = finetune_module.mean_loss, np.random.default_rng(0)

    def subset(model, examples, **options):
        chosen = rng.choice(len(examples), max(1, len(examples) // 2), replace=False)
        return real(model, [examples[i] for i in chosen], **options)

    patch.setattr(finetune_module, "mean_loss", subset)


def weigh_batches_alike_in_validation(patch):
    """8: the mean of the means of batches."""
    real = finetune_module.mean_loss

    def mean_of_means(model, examples, *, tokens, **options):
        losses = [list(real(model, [e], tokens=tokens, **options))[-1][2] for e in examples]
        yield 1, 1, sum(losses) / len(losses)

    patch.setattr(finetune_module, "mean_loss", mean_of_means)


def draw_the_order_from_one_generator(patch):
    """8, 9: what comes next depends on what was drawn before, by whomever."""
    real, rng = batches.plan_epoch, np.random.default_rng(0)

    def drawn(lengths, *, seed, **options):
        return real(lengths, seed=int(rng.integers(1 << 31)), **options)

    patch.setattr(batches, "plan_epoch", drawn)
    patch.setattr("macai.finetune.wanted.plan_epoch", drawn)


def start_the_optimiser_anew(patch):
    """9: the moments are not restored."""
    real = run.restore

    def forgetful(checkpoint, model, optimizer):
        moments = optimizer.state
        real(checkpoint, model, optimizer)
        optimizer.state = moments

    patch.setattr(run, "restore", forgetful)


def start_the_schedule_anew(patch):
    """9: the learning rate follows from the steps of this process."""
    real = finetune_module.train

    def train(model, optimizer, steps, *, rate, first_step=0, **options):
        return real(
            model,
            optimizer,
            steps,
            rate=lambda step: rate(step - first_step),
            first_step=first_step,
            **options,
        )

    patch.setattr(finetune_module, "train", train)


def draw_dropout_from_one_stream(patch):
    """9: the masks follow from what was drawn before."""
    patch.setattr(gradient.mx.random, "seed", lambda seed: None)


def load_adapters_of_any_shape(patch):
    """9: what fits is loaded, the rest left out."""
    real = adapter._read_weights

    def read(file):
        return {k: v for k, v in real(file).items() if "layers.0" in k}

    patch.setattr(adapter, "_read_weights", read)
    patch.setattr(adapter, "require_layers", lambda *args: None)
    patch.setattr(adapter, "_require_shapes", lambda *args: None)


def quantise_what_was_fused(patch):
    """10: the sum goes back into four bits."""
    real = fuse.dequantise

    def requantise(model):
        real(model)
        nn.quantize(model, group_size=32, bits=4)
        real(model)

    patch.setattr(fuse, "dequantise", requantise)


def count_packed_columns_by_whole_words(patch):
    """11: `32 // bits` is 10 for 3 bits, 6 for 5, 5 for 6."""

    def shape(linear):
        rows, columns = linear.weight.shape
        return rows, columns * (32 // linear.bits if hasattr(linear, "bits") else 1)

    patch.setattr(lora, "linear_shape", shape)


def keep_the_last_adapter(patch):
    """12: each checkpoint replaces the adapter."""
    real = finetune_module._save

    def save(run):
        real(run)
        run.method.keep(run.loaded, run.out)

    patch.setattr(finetune_module, "_save", save)


def write_no_identity(patch):
    """13: any base of the same shapes will do."""
    same = Identity(weights="", tokenizer="", chat_template="")
    patch.setattr(adapter, "identify", lambda *args, **options: same)
    patch.setattr(finetune_module, "identify", lambda *args, **options: same)


def load_an_adapter_that_matches_nothing(patch):
    """13: names that the model does not have are passed over."""
    real = adapter.add_lora

    def add(model, paths, **options):
        known = dict(model.named_modules())
        real(model, [p for p in paths if p in known], **options)

    patch.setattr(adapter, "add_lora", add)
    patch.setattr(adapter, "require_layers", lambda *args: None)
    patch.setattr(adapter, "_require_shapes", lambda *args: None)


def load_weights_of_zero(patch):
    """13: an adapter that changes nothing."""
    real = adapter._read_weights
    patch.setattr(adapter, "_read_weights", lambda file: {k: v * 0 for k, v in real(file).items()})


def decide_the_form_of_all_rows_on_the_first(patch):
    """14: the other rows are read as if they had it."""
    forms, real = [], rows._parse

    def parse(line, source):
        if not forms:
            forms.append(real(line, source))
            return forms[0]
        try:
            return real(line, source)
        except ValueError:
            return replace(forms[0], source=source)

    patch.setattr(rows, "_parse", parse)


def stop_at_the_first_bad_row(patch):
    """14: one message a try."""
    real = rows.bad_rows
    patch.setattr(rows, "bad_rows", lambda problems, **k: real(problems[:1], **k))


def put_the_head_on_every_token(patch):
    """16: logits of prompts and of padding as well."""
    patch.setattr(loss, "logits_for", lambda model: loss._whole)


def multiply_the_adapter_in_float32(patch):
    """17: and what comes after it, too."""

    def call(self, x):
        return self.linear(x) + self.scale * (self.dropout(x) @ self.lora_A.T) @ self.lora_B.T

    patch.setattr(LoRALinear, "__call__", call)


def compare_no_token_with_the_one_after_it(patch):
    """Off by one: each position predicts the token that it reads."""
    real = batches.make_batch

    def shifted(*args, **options):
        batch = real(*args, **options)
        return replace(batch, positions=mx.minimum(batch.positions + 1, batch.ids.size - 1))

    patch.setattr(batches, "make_batch", shifted)
    patch.setattr(objective, "make_batch", shifted)


def dequantise_in_half_precision(patch):
    """Scales of float16 are exact numbers; products of them are not."""
    from macai.selftest import models

    def plain(model):
        real(model)
        model.apply(lambda a: a.astype(mx.bfloat16).astype(mx.float32))

    real = models.dequantise
    patch.setattr(models, "dequantise", plain)
