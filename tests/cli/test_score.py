import json

import pytest

from macai.data.rows import Message
from macai.generate import batch
from macai.generate.batch import Reply
from macai.generate.decode import generate
from macai.generate.prompt import chat_prompt
from macai.models.load import load_model
from tests.adapters import adapt, save
from tests.tiny import CONTEXT

LIGHT = '{"intent":"light.on","room":"kitchen"}'
ALARM = '{"intent":"alarm.set","time":"06:30"}'


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "test.jsonl"
    write(
        file,
        chat("Light in the kitchen", LIGHT),
        chat("Wake me at half past six", ALARM),
        {"prompt": "Light in the kitchen, please", "completion": LIGHT},
        chat("Lights!", '{"intent":"light.on"}'),
    )
    return file


def chat(question, answer):
    system = {"role": "system", "content": "You answer with JSON."}
    user = {"role": "user", "content": question}
    return {"messages": [system, user, {"role": "assistant", "content": answer}]}


def write(file, *rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answer_with(monkeypatch, *texts):
    def prepared(loaded, prompts, **options):
        assert len(prompts) == len(texts)
        return [Reply((2,), text, "stop") for text in texts]

    monkeypatch.setattr(batch, "generate_batch", prepared)


def test_the_replies_are_the_models_own(macai, tiny_dir, data, tmp_path):
    replies = tmp_path / "replies.jsonl"
    result = macai(
        "score", "--model", tiny_dir, "--data", data, "--max-tokens", 9, "--replies", replies
    )
    assert result.code == 0
    assert "exact match    0.0%" in result.out
    assert "replies: 4 of 4" in result.err
    loaded = load_model(tiny_dir)
    messages = [
        Message(role="system", content="You answer with JSON."),
        Message(role="user", content="Wake me at half past six"),
    ]
    tokens = list(generate(loaded, chat_prompt(loaded, messages), max_tokens=9))
    lines = [json.loads(line) for line in replies.read_text().splitlines()]
    assert len(lines) == 4
    assert lines[1] == {
        "source": f"{data}:2",
        "expected": ALARM,
        "reply": "".join(token.text for token in tokens),
        "finish": tokens[-1].finish_reason,
    }


def test_the_table_shows_rates_with_their_intervals(macai, tiny_dir, data, monkeypatch):
    answer_with(monkeypatch, LIGHT, '{"intent":"alarm.set","time":"07:30"}', "light", LIGHT)
    result = macai("score", "--model", tiny_dir, "--data", data)
    assert result.out == (
        "exact match   25.0%    4.6% to  69.9%  1 of 4\n"
        "intent        75.0%   30.1% to  95.4%  3 of 4\n"
        "valid JSON    75.0%   30.1% to  95.4%  3 of 4\n"
        "slot F1       33.3%\n"
    )


def test_json_is_one_line_with_the_whole_score(macai, tiny_dir, data, monkeypatch):
    answer_with(monkeypatch, LIGHT, ALARM)
    result = macai("score", "--model", tiny_dir, "--data", data, "--limit", 2, "--json")
    assert result.out.count("\n") == 1
    value = json.loads(result.out)
    assert value["rows"] == 2
    assert value["exact_match"]["hits"] == 2
    assert value["slot_f1"] == 1.0


def test_rows_without_a_reply_are_all_named(macai, tiny_dir, tmp_path):
    file = tmp_path / "odd.jsonl"
    unanswered = chat("Light", LIGHT)
    unanswered["messages"].append({"role": "user", "content": "Thanks"})
    write(file, {"text": "no chat"}, chat("Light", LIGHT), unanswered)
    result = macai("score", "--model", tiny_dir, "--data", file)
    assert (result.code, result.out) == (1, "")
    assert f"{file}:1" in result.err
    assert f"{file}:3" in result.err
    assert f"{file}:2" not in result.err


def test_an_expected_reply_that_is_no_call_is_refused_before_the_model_is_opened(macai, tmp_path):
    file = tmp_path / "odd.jsonl"
    write(file, chat("Light", "Sure!"))
    result = macai("score", "--model", tmp_path / "gone", "--data", file)
    assert result.code == 1
    assert "no JSON object with an intent" in result.err


def test_a_file_of_replies_is_not_replaced(macai, data, tmp_path):
    replies = tmp_path / "replies.jsonl"
    replies.write_text("mine")
    result = macai("score", "--model", tmp_path / "gone", "--data", data, "--replies", replies)
    assert result.code == 1
    assert f"error: {replies} exists already" in result.err
    assert replies.read_text() == "mine"


def test_a_question_over_the_context_is_told(macai, tiny_dir, tmp_path):
    file = tmp_path / "long.jsonl"
    write(file, chat("word " * CONTEXT, LIGHT))
    result = macai("score", "--model", tiny_dir, "--data", file)
    assert result.code == 1
    assert f"the model's context {CONTEXT}" in result.err


def test_a_package_replies_as_the_model_it_was_made_of(macai, tiny_dir, data, tmp_path):
    bundle = tmp_path / "bundle"
    adapter = save(adapt(load_model(tiny_dir)), tmp_path / "adapter")
    size = ("--context", 128, "--prefill", 32, "--precision", "fp32", "--positions", 8)
    slot = ("--adapter-slot", 4)
    assert macai("export", "llm", "--model", tiny_dir, "--out", bundle, *size, *slot).code == 0
    said = []
    for number, tuned in enumerate(((), ("--adapter", adapter))):
        for name, source in (("model", tiny_dir), ("package", bundle)):
            file = tmp_path / f"{name}{number}.jsonl"
            options = ("--data", data, "--max-tokens", 9, "--replies", file)
            result = macai("score", f"--{name}", source, *tuned, *options)
            assert result.code == 0, result.err
            assert "replies: 4 of 4" in result.err
            said.append(file.read_text())
    assert said[0] == said[1]
    assert said[2] == said[3]
    assert said[0] != said[2]


def test_packages_for_the_neural_engine_reply_as_their_model(macai, tiny_dir, data, tmp_path):
    bundle = tmp_path / "bundle"
    size = ("--context", 128, "--prefill", 32, "--precision", "fp32", "--positions", 8)
    size += ("--profile", "ane", "--weights", "full", "--chunks", 2)
    assert macai("export", "llm", "--model", tiny_dir, "--out", bundle, *size).code == 0
    files = [tmp_path / "model.jsonl", tmp_path / "package.jsonl"]
    for source, file in zip((("--model", tiny_dir), ("--package", bundle)), files, strict=True):
        said = macai("score", *source, "--data", data, "--max-tokens", 9, "--replies", file)
        assert said.code == 0
        assert "replies: 4 of 4" in said.err
    assert files[0].read_text() == files[1].read_text()


def test_a_model_or_a_package_is_scored_and_not_both(macai, tiny_dir, data, tmp_path):
    for source in ((), ("--model", tiny_dir, "--package", tmp_path)):
        result = macai("score", *source, "--data", data)
        assert (result.code, "give a model or a package" in result.err) == (1, True)
