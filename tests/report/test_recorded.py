"""What a run leaves as its events pass, with the tiny model."""

import json
from dataclasses import replace

import mlx.core as mx
import pytest

from macai.data.rows import Message, Row
from macai.finetune import finetune
from macai.models.load import load_model
from macai.models.lora import lora_layers
from macai.recipe import Adapter, Batch, Optimizer, Recipe, Train
from macai.report import recorded
from macai.report.answers import Questions
from macai.train.events import Started, Stopped, Summary

RECIPE = Recipe(
    model="m",
    adapter=Adapter(rank=4),
    batch=Batch(tokens=512),
    optimizer=Optimizer(learning_rate=2e-2),
    train=Train(epochs=2.0, workers=1),
)


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Light {n} in the room?", "completion": f" on {n}"} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def chat(*turns, **more):
    roles = ("user", "assistant") * len(turns)
    messages = [Message(role=r, content=c) for r, c in zip(roles, turns, strict=False)]
    return Row(source="x:1", messages=tuple(messages), **more)


def train(loaded, data, out, *, ask=None, stop_at=0, **options):
    seen = []
    events = finetune(
        RECIPE, loaded, data=data, out=out, should_stop=lambda: len(seen) >= stop_at > 0, **options
    )
    for event in recorded(events, out, ask=ask):
        seen.append(event)
    return seen


def record(out):
    return json.loads((out / "run.json").read_text())


def questions(loaded, count=2):
    rows = [chat(f"Is light {n} on?", f"on {n}") for n in range(4)]
    return Questions(loaded, rows, count=count, max_tokens=6)


def test_a_run_leaves_its_facts_its_answers_and_a_page(tiny, data, tmp_path):
    out = tmp_path / "run"
    seen = train(tiny, data, out, ask=questions(tiny))
    assert isinstance(seen[0], Started)
    assert isinstance(seen[-1], Summary)
    left = record(out)
    assert left["state"] == "finished"
    assert left["started"]["train_tokens"] == seen[0].train_tokens > seen[0].learnt_tokens > 0
    assert sum(count for *_, count in left["started"]["lengths"]) == seen[0].train_rows == 36
    assert left["summary"]["best_valid_loss"] == seen[-1].best_valid_loss
    assert [a["prompt"] for a in left["answers"]] == ["Is light 0 on?", "Is light 1 on?"]
    assert all(a["before"] != a["after"] for a in left["answers"])
    assert str(tmp_path) not in (out / "run.json").read_text()
    assert str(tmp_path) not in (out / "report.html").read_text()


def test_a_stopped_run_leaves_a_page_and_a_resumed_one_keeps_the_answers_of_before(
    tiny_dir, data, tmp_path
):
    out = tmp_path / "run"
    loaded = load_model(tiny_dir)
    seen = train(loaded, data, out, ask=questions(loaded), stop_at=2)
    assert isinstance(seen[-1], Stopped)
    assert record(out)["state"] == "stopped"
    assert f"{seen[-1].step} of {seen[0].steps} steps" in (out / "report.html").read_text()
    before = [a["before"] for a in record(out)["answers"]]
    loaded = load_model(tiny_dir)
    train(loaded, data, out, ask=questions(loaded, count=1), resume=True)
    left = record(out)
    assert left["state"] == "finished"
    assert [a["before"] for a in left["answers"]] == before
    assert [bool(a.get("after")) for a in left["answers"]] == [True, False]


def test_questions_change_nothing_of_what_is_learnt(tiny_dir, data, tmp_path):
    asked, plain = (tmp_path / name for name in ("asked", "plain"))
    loaded = load_model(tiny_dir)
    train(loaded, data, asked, ask=questions(loaded))
    train(load_model(tiny_dir), data, plain)
    for name in ("adapter_model.safetensors", "checkpoint.safetensors"):
        one, other = (mx.load(str(out / name)) for out in (asked, plain))
        assert one.keys() == other.keys()
        assert all(mx.array_equal(one[key], other[key]).item() for key in one)


def test_a_run_that_fails_leaves_a_page_of_what_was(tiny, data, tmp_path):
    out = tmp_path / "run"

    def failing():
        for number, event in enumerate(finetune(RECIPE, tiny, data=data, out=out)):
            if number == 3:
                raise RuntimeError("no more")
            yield event

    with pytest.raises(RuntimeError, match="no more"):
        list(recorded(failing(), out))
    assert record(out)["state"] == "begun"
    assert "steps are shown" in (out / "report.html").read_text()


def test_a_new_run_has_no_page_of_the_one_before_it(tiny_dir, data, tmp_path):
    out = tmp_path / "run"
    train(load_model(tiny_dir), data, out)
    events = recorded(finetune(RECIPE, load_model(tiny_dir), data=data, out=out, force=True), out)
    assert isinstance(next(events), Started)
    assert not (out / "report.html").exists()
    assert record(out)["state"] == "begun"
    events.close()


def test_a_model_is_asked_without_its_dropout(tiny, adapted):
    model = adapted(dropout=0.9)
    for layer in lora_layers(model).values():
        layer.lora_B = layer.lora_B * 100  # else it would hardly matter
    model.train()
    ask = questions(tiny)
    assert ask() == ask()
    assert model.training


@pytest.mark.parametrize(
    ("row", "prompt", "wanted"),
    [
        (chat("a?", "b", "c?", "d"), "c?", "d"),
        (Row(source="x", prompt="p", completion="c"), "p", "c"),
        (Row(source="x", prompt="p", chosen="c", rejected="r"), "p", "c"),
        (Row(source="x", text="on and off and"), None, None),
    ],
)
def test_each_form_of_row_can_be_asked(tiny, row, prompt, wanted):
    (asked,) = Questions(tiny, [row], count=3, max_tokens=4)()
    if prompt is None:
        assert "on and off and".startswith(asked.prompt)
        assert asked.prompt + asked.wanted == "on and off and"
    else:
        assert (asked.prompt, asked.wanted) == (prompt, wanted)


def test_rows_without_a_question_or_without_room_are_left_out(tiny):
    silent = Row(source="x", messages=(Message(role="assistant", content="hello"),))
    unlearnt = replace(chat("a", "b").messages[1], train=False)
    rows = [
        silent,
        Row(source="x", messages=(*chat("a").messages, unlearnt)),
        chat("long " * 3000, "on"),
    ]
    assert Questions(tiny, rows, count=3, max_tokens=4)() == []
    assert Questions(tiny, [chat("a", "b")], count=0, max_tokens=4)() == []
