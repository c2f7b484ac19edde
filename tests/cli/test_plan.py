import json

import mlx.core as mx
import pytest

ROOM = "macai.finetune.expected.available_bytes"


@pytest.fixture
def data(tmp_path):
    rows = [
        {"prompt": f"question {n} " * (1 + n % 5), "completion": f"answer {n}"} for n in range(30)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_it_says_what_a_run_takes_and_what_fits(macai, tiny_dir, data):
    result = macai("plan", "lora", "--model", tiny_dir, "--data", data)
    assert result.code == 0, result.err
    assert "at most, in one process" in result.out
    assert "what the blocks keep for the backward pass" in result.out
    assert "it fits" in result.out
    assert "batch.recompute" in result.out


def test_json_has_the_terms_and_they_add_up(macai, tiny_dir, data):
    result = macai("plan", "--model", tiny_dir, "--data", data, "--json")
    planned = json.loads(result.out)
    assert planned["expected"]["fits"] is True
    assert planned["expected"]["memory_bytes"] == sum(planned["expected"]["terms"].values())
    assert planned["probe"] is None
    assert planned["changes"] == []
    assert planned["options"]


def test_a_run_that_does_not_fit_is_an_exit_code_and_the_settings_that_would(
    macai, tiny_dir, monkeypatch
):
    monkeypatch.setattr(ROOM, lambda: 372_000_000 - mx.get_active_memory())
    flags = ("--model", tiny_dir, "--set", "data.max_length=256", "--set", "batch.tokens=8192")
    result = macai("plan", *flags)
    assert result.code == 1
    (line,) = (line for line in result.out.splitlines() if line.startswith("it does not fit"))
    changes = line.partition(" with ")[2].split()
    assert "batch.micro_tokens=" in line
    assert macai("plan", *flags, *changes).code == 0


def test_a_probe_says_what_it_measured(macai, tiny_dir, data):
    result = macai("plan", "--model", tiny_dir, "--data", data, "--probe")
    assert result.code == 0, result.err
    assert "two steps took" in result.out


def test_pictures_are_refused(macai):
    result = macai("plan", "sd-lora")
    assert result.code == 1
    assert "for language models" in result.err


def test_train_says_what_it_expects_and_refuses_what_cannot_fit(
    macai, tiny_dir, data, tmp_path, monkeypatch
):
    flags = ("--model", tiny_dir, "--data", data, "--out", tmp_path / "run")
    small = ("--set", "train.epochs=0.1", "--set", "data.strict=false")
    result = macai("train", *flags, *small)
    assert result.code == 0, result.err
    assert "expected to take 0.0 GB of the " in result.err
    monkeypatch.setattr(ROOM, lambda: 1000 - mx.get_active_memory())
    result = macai("train", *flags, *small, "--force")
    assert result.code == 1
    assert "its weights are" in result.err
    monkeypatch.setattr(ROOM, lambda: 10_000_000 - mx.get_active_memory())
    result = macai("train", *flags, *small, "--force")
    assert result.code == 1
    assert "the run is expected to need" in result.err
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()  # of the run before
    assert macai("train", *flags, *small, "--force", "--set", "batch.must_fit=false").code == 0
