"""`macai train`, as a user meets it."""

import json

import mlx.core as mx
import pytest

from macai.models.adapter import WEIGHTS, load_adapter
from macai.models.load import load_model
from macai.models.lora import lora_layers
from macai.recipe import load_recipe
from macai.train.checkpoint import FILE
from tests.cli.train.runs import (
    SMALL,
    SUMMARY,
    logged,
    names,
    row,
    write,
)
from tests.tiny import tiny_model_dir


def test_a_run_ends_with_one_line_of_json_and_an_adapter_that_helps(macai, folder, data, tmp_path):
    out = tmp_path / "new" / "run"
    result = macai(
        "train", "lora", "--model", folder, "--data", data, "--out", out, *SMALL,
        "--set", "optimizer.learning_rate=2e-2", "--json",
    )  # fmt: skip
    assert result.code == 0
    assert result.out.count("\n") == 1
    summary = json.loads(result.out)
    assert summary.keys() == SUMMARY
    assert summary["adapter"] == str(out)
    assert summary["epochs"] == 3
    records = logged(out)
    steps = [r for r in records if "loss" in r]
    validated = [r["valid_loss"] for r in records if "valid_loss" in r]
    assert [r["step"] for r in steps] == list(range(1, summary["steps"] + 1))
    assert summary["best_valid_loss"] == min(validated) <= summary["valid_loss"] == validated[-1]
    assert summary["best_valid_loss"] < steps[0]["loss"] - 0.5
    for key in ("real_tokens", "processed_tokens"):
        assert summary[key] == sum(r[key] for r in steps)
    assert summary["tokens_per_second"] == pytest.approx(
        summary["real_tokens"] / sum(r["seconds"] for r in steps)
    )
    assert "36 rows to learn from, 4 to check with" in result.err
    assert "of a step's tokens are real" in result.err
    assert f"done: {summary['steps']} steps" in result.err
    assert f"report: {out}/report.html" in result.err
    assert (out / "report.html").read_text().count("<dt>after</dt>") == 3
    assert names(out) == [
        "adapter_config.json", WEIGHTS, FILE, "metrics.jsonl", "recipe.toml", "report.html",
        "run.json",
    ]  # fmt: skip
    loaded = load_model(folder)
    assert load_adapter(loaded, out).sizes.rank == 4
    assert any(
        mx.abs(layer.lora_B).max().item() > 0 for layer in lora_layers(loaded.model).values()
    )


def test_without_json_only_the_adapters_folder_is_printed(macai, folder, data, tmp_path):
    out = tmp_path / "run"
    result = macai("train", "--model", folder, "--data", data, "--out", out, *SMALL)
    assert (result.code, result.out) == (0, f"adapter: {out}\n")


def test_the_recipe_beside_the_adapter_is_the_one_that_was_run(macai, folder, data, tmp_path):
    mine, out = tmp_path / "mine.toml", tmp_path / "run"
    mine.write_text(f"model = {json.dumps(str(folder))}\n[train]\nepochs = 0.5\n")
    result = macai("train", mine, "--data", data, "--out", out, *SMALL)
    assert result.code == 0
    recipe = load_recipe(out / "recipe.toml")
    assert (recipe.model, recipe.train.epochs, recipe.adapter.rank) == (str(folder), 0.5, 4)
    again = tmp_path / "again"
    command = ("train", out / "recipe.toml", "--model", folder, "--data", data, "--out", again)
    assert macai(*command).code == 0
    assert (again / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()


def test_help_ends_with_an_example(macai):
    result = macai("train", "--help")
    assert result.code == 0
    example = "macai train lora --model smollm2-135m --data examples.jsonl --out runs/mine"
    assert f"Example: {example}" in " ".join(result.out.split())


def refused(macai, folder, data, out, *arguments):
    """Run, expect exit 1 without a traceback or anything on stdout, and return stderr."""
    result = macai("train", "--model", folder, "--data", data, "--out", out, *SMALL, *arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    return result.err


def test_every_malformed_row_is_listed_with_its_line(macai, folder, tmp_path):
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text(
            json.dumps(row("a", "b")) + '\n\n{"messages": []}\n{"text": 3}\nnot json\n'
        )
    err = refused(macai, folder, tmp_path, tmp_path / "run")
    for file in (tmp_path / "train.jsonl", tmp_path / "valid.jsonl"):
        assert f"{file}:3: 'messages' is not a list with turns in it" in err
        assert f"{file}:4: 'text' is not a string" in err
        assert f"{file}:5: not valid JSON" in err
        assert f"{file}:1:" not in err
    assert "\nhint: a row is " in err
    assert not (tmp_path / "run").exists()


def test_an_empty_file_is_refused(macai, folder, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n \n")
    assert f"error: {file}: no rows in it" in refused(macai, folder, file, tmp_path / "run")


@pytest.mark.parametrize("content", [None, "not JSON"])
def test_rows_are_read_before_a_model_is_fetched(macai, tmp_path, content):
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    result = macai("train", "--model", "no-model", "--data", file, "--out", tmp_path / "run")
    assert (result.code, result.out) == (1, "")
    assert str(file) in result.err
    assert "no-model" not in result.err


def test_every_row_over_the_limit_is_listed(macai, folder, data, tmp_path):
    train = data.rename(tmp_path / "train.jsonl")
    write(tmp_path / "valid.jsonl", row("short", "yes"))
    with train.open("a") as f:
        f.writelines(json.dumps(row("word " * n, "yes")) + "\n" for n in (300, 400))
    err = refused(macai, folder, tmp_path, tmp_path / "run", "--set", "data.max_length=128")
    found = [line for line in err.splitlines() if "tokens, over max_length = 128" in line]
    assert [line.partition(": ")[0].strip() for line in found] == [f"{train}:41", f"{train}:42"]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--set", "adapter.rnak=8"], "unknown key 'rnak'", "did you mean 'rank'?"),
        (["--set", "train.epochs=many"], "train.epochs", ""),
        (["lorra"], "no recipe is called 'lorra'", "did you mean 'lora'?"),
        (["--model", "smollm2-135"], "'smollm2-135' is neither", "did you mean 'smollm2-135m'?"),
        (["--set", 'adapter.targets=["c_attn"]'], "no linear layer is called 'c_attn'", "q_proj"),
        (["--data", "gone.jsonl"], "gone.jsonl: no such file or folder", "--data takes"),
        (["--resume"], "no checkpoint to resume from", "leave out --resume"),
    ],
)
def test_a_wrong_word_is_one_message_with_a_hint(
    macai, folder, data, tmp_path, arguments, message, hint
):
    out = tmp_path / "run"
    err = refused(macai, folder, data, out, *arguments)
    first, *rest = err.splitlines()
    assert message in first
    assert hint in "\n".join(rest) if hint else True
    assert not out.exists()


def test_without_data_one_is_told_how_to_give_it(macai, folder, tmp_path):
    result = macai("train", "--model", folder, "--out", tmp_path / "run")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: no data to learn from\nhint: give --data")


def test_an_existing_output_is_refused_without_force_and_replaced_with_it(
    macai, folder, data, tmp_path
):
    out = tmp_path / "run"
    command = ("train", "--model", folder, "--data", data, "--out", out, *SMALL)
    assert macai(*command, "--set", "train.epochs=1").code == 0
    before = (out / WEIGHTS).read_bytes()
    err = refused(macai, folder, data, out)
    assert err.startswith(f"error: {out} exists already\nhint: ")
    assert (out / WEIGHTS).read_bytes() == before
    assert macai(*command, "--set", "train.seed=1", "--force").code == 0
    assert (out / WEIGHTS).read_bytes() != before


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_output_that_cannot_be_a_folder_is_refused(macai, folder, data, tmp_path, out):
    (tmp_path / "file").write_text("mine")
    err = refused(macai, folder, data, tmp_path / out, "--force")
    assert f"error: {tmp_path / out}" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_generate_refuses_the_adapter_of_another_base(macai, folder, data, tmp_path):
    out, other = tmp_path / "run", tiny_model_dir(tmp_path / "other", seed=5)
    command = ("train", "--model", folder, "--data", data, "--out", out, *SMALL)
    assert macai(*command, "--set", "train.epochs=0.3").code == 0
    result = macai("generate", "Hi", "--model", other, "--adapter", out)
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        f"error: {out}: trained on another base: its weights differ from those of {other}\n"
        f"hint: it belongs to '{folder}'\n"
    )


def test_resume_and_force_contradict_each_other(macai, tmp_path):
    result = macai("train", "--out", tmp_path / "run", "--resume", "--force")
    assert (result.code, result.out) == (2, "")
    assert "--resume goes on with a run, and --force replaces it" in " ".join(result.err.split())
