"""What a model is given and gives: masks from its template, quantised weights, its adapter."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.data import tokens
from macai.data.rows import Message, Row
from macai.models import adapter
from macai.models.adapter import AdapterConfig
from macai.models.arrays import scalar
from macai.models.load import dequantise
from macai.models.peft_config import PeftConfig
from macai.selftest.gradients import examples_for, made, sums_of, tolerance
from macai.selftest.proof import (
    RANK,
    Finding,
    Proof,
    Subject,
    adapt,
    largest_difference,
    within,
)
from macai.train.loss import logits_for

CHAT = (
    Message(role="user", content="Good morning"),
    Message(role="assistant", content="Hello, what is it?"),
    Message(role="user", content="Two plus two"),
    Message(role="assistant", content="That is four."),
    Message(role="user", content="And doubled"),
    Message(role="assistant", content="Eight."),
)


def spans(example: tokens.Example) -> list[slice]:
    """Return the runs of learnt tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], example.learn, [False]]).astype(int)))
    return [slice(a, b) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]


def expected_turns(messages: tuple[Message, ...], tokenizer: Any) -> list[str | None]:
    """Return what the template writes after each prompt of an assistant's turn.

    None for a turn whose prompt is not what the conversation goes on from.
    """
    texts: list[str | None] = []
    for number, message in enumerate(messages):
        if message.role == "assistant":
            prompt = tokens.render(messages[:number], tokenizer, generation=True)
            whole = tokens.render(messages[: number + 1], tokenizer)
            texts.append(whole[len(prompt) :] if whole.startswith(prompt) else None)
    return texts


def find_masks(subject: Subject) -> Finding:
    """Compare what is learnt of a conversation with what its template writes for each turn."""
    loaded = subject.load()
    tokenizer = loaded.tokenizer
    if not tokenizer.has_chat_template:
        return Finding(None, "the model has no chat template")
    example = tokens.tokenise(Row(source="selftest", messages=CHAT), tokenizer)
    learnt = [example.ids[span].tolist() for span in spans(example)]
    said = [message.content for message in CHAT if message.role == "assistant"]
    expected = expected_turns(CHAT, tokenizer)
    wrong = []
    for number, words in enumerate(said):
        ids = learnt[number] if number < len(learnt) else []
        text = tokenizer.decode(ids)
        written = expected[number] or text
        left = written.replace(text, "", 1) if text else written
        if words not in text or left.strip() or not ids or ids[-1] not in loaded.eos_token_ids:
            wrong.append(number + 1)
    marks = "each with the mark that ends it"
    if wrong or len(learnt) != len(said):
        return Finding(False, f"{len(learnt)} parts learnt of {len(said)} turns; wrong: {wrong}")
    return Finding(True, f"{len(said)} turns of the assistant are learnt, {marks}")


def find_quantised(subject: Subject) -> Finding:
    """Compare a base in 4 bits with the same base dequantised: logits and the LoRA's gradient."""
    results = []
    for plain in (True, False):
        loaded = subject.load()
        nn.quantize(loaded.model, group_size=32, bits=4)
        if plain:
            dequantise(loaded.model)
        adapt(loaded)
        loaded.model.train()
        examples = examples_for(loaded.model)[-1:]  # a CPU multiplies quantised weights slowly
        batch = made(examples, range(len(examples)))
        logits = logits_for(loaded.model)(loaded.model, batch.ids, batch.positions)
        results.append((logits, sums_of(loaded.model, examples).vector))
    (expected, slope), (actual, quantised) = results
    return within(
        tolerance(),
        logits=largest_difference(actual, expected),
        gradient=largest_difference(quantised, slope),
    )


def find_adapter(subject: Subject) -> Finding:
    """Save an adapter, load it into a fresh model, and compare logits with and without it."""
    loaded = subject.load()
    ids = mx.array(examples_for(loaded.model)[2].ids)[None]
    base = loaded.model(ids)
    mx.eval(base)
    adapt(loaded)
    trained = loaded.model(ids)
    sizes = PeftConfig(RANK, 2.0 * RANK)
    config = AdapterConfig(sizes=sizes, dropout=0.0, base_name="selftest", base=None)
    folder = subject.scratch / "adapter"
    folder.mkdir(exist_ok=True)
    adapter.save_adapter_config(loaded, folder, config)
    adapter.save_adapter_weights(folder, adapter.adapter_weights(loaded))
    fresh = subject.load()
    adapter.load_adapter(fresh, folder)
    change = largest_difference(trained, base)
    back = scalar(mx.abs(fresh.model(ids) - trained).max())
    held = change > 1e-3 and back == 0
    return Finding(held, f"logits change by {change:.1e} of the largest; loaded: {back:.0e} off")


PROOFS = (
    Proof(
        name="masks",
        claim="learnt is what the chat template writes for the assistant, all turns",
        find=find_masks,
        any_model=True,
    ),
    Proof(
        name="quantised",
        claim="a quantised base computes what its dequantised weights do",
        find=find_quantised,
        any_model=True,
    ),
    Proof(
        name="adapter",
        claim="an adapter changes the logits, and is the same when loaded",
        find=find_adapter,
        any_model=True,
    ),
)
