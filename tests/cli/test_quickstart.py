import json

import pytest

from macai import catalog
from macai.catalog import MODELS
from macai.data.rows import read_rows
from macai.generate.batch import generate_batch
from macai.generate.prompt import chat_prompt
from macai.models.adapter import WEIGHTS
from macai.models.load import load_model
from macai.train.checkpoint import FILE
from tests.tiny import tiny_model_dir

RECIPE = """
model = "smollm2-135m"
[adapter]
rank = 4
[batch]
tokens = 1024
[data]
path = "rows"
[train]
epochs = 2
"""
COMMANDS = """go on with your own model and data:
  macai recipes copy lora mine.toml
  macai train mine.toml --model smollm2-135m --data examples.jsonl --out runs/mine
  macai generate --model smollm2-135m --adapter runs/mine "a prompt"
  macai chat --model smollm2-135m --adapter runs/mine
  macai export llm --model smollm2-135m --adapter runs/mine --out MyModel
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def small(folder, tmp_path, monkeypatch):
    """A small model in place of the real one, and a few of the shipped rows."""
    rows = catalog.find_recipe("intents").parent / "data" / "intents"
    (tmp_path / "rows").mkdir()
    for split, count in (("train", 24), ("valid", 4), ("test", 12)):
        lines = (rows / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "rows" / f"{split}.jsonl").write_text("".join(lines[:count]))
    recipe = tmp_path / "intents.toml"
    recipe.write_text(RECIPE)

    def located(name, *, progress):
        assert name == "smollm2-135m"
        return folder

    monkeypatch.setattr(catalog, "find_recipe", {"intents": recipe}.__getitem__)
    monkeypatch.setattr(catalog, "locate_model", located)
    monkeypatch.chdir(tmp_path)


def names(path):
    return sorted(p.name for p in path.iterdir())


def report_of(out):
    return json.loads((out / "report.json").read_text())


def replies_of(model, folder, count):
    """What the fused model says to the first requests."""
    loaded = load_model(model)
    rows = read_rows(folder / "rows" / "test.jsonl")[:count]
    prompts = [chat_prompt(loaded, row.messages[:-1]) for row in rows]
    return [reply.text for reply in generate_batch(loaded, prompts, max_tokens=40)]


def test_the_report_holds_all_that_was_measured(macai, tmp_path):
    result = macai("quickstart", "--json")
    assert result.code == 0
    assert result.out.count("\n") == 1
    out = tmp_path / "quickstart"
    report = json.loads(result.out)
    assert report == report_of(out)
    assert names(out) == ["adapter", "model", "package", "report.json"]
    assert report.keys() == {
        "model", "sha256", "rows", "steps", "epochs", "train_loss", "valid_loss",
        "best_valid_loss", "real_tokens", "processed_tokens", "tokens_per_second",
        "peak_memory_bytes", "seconds", "base", "tuned", "fused", "package", "answers", "versions",
        "machine", "total_seconds", "workers",
    }  # fmt: skip
    source = MODELS["smollm2-135m"].source
    assert (report["model"], report["sha256"]) == ("smollm2-135m", source.member_sha256)
    assert report["rows"] == {"train": 24, "test": 12}
    assert report["epochs"] == 2
    assert 0 < report["processed_tokens"] < 2 * report["real_tokens"]
    assert report["valid_loss"] < 6.5  # of about ln 476 = 6.2 untrained, and finite
    # float16 weights may say another of two tokens that a random model finds equally good.
    assert report["fused"]["rows"] == 12
    assert report["fused"]["same_replies"] >= 10
    assert report["package"]["verify"]["passed"]
    assert report["package"]["bytes"] > 0
    fused = replies_of(out / "model", tmp_path, 3)
    assert report["package"]["answers"] == fused
    for name in ("base", "tuned"):
        assert report[name]["rows"] == 12
        assert report[name]["exact_match"].keys() >= {"hits", "total", "value", "low", "high"}
    assert {"mlx", "mlx-lm", "macai"} <= report["versions"].keys()
    assert report["machine"]
    tests = [
        json.loads(line) for line in (tmp_path / "rows" / "test.jsonl").read_text().splitlines()
    ]
    assert len(report["answers"]) == 10
    for answer, row in zip(report["answers"], tests, strict=False):
        assert answer.keys() == {"request", "expected", "base", "tuned"}
        assert answer["request"] == row["messages"][-2]["content"]
        assert answer["expected"] == row["messages"][-1]["content"]
    assert load_model(out / "model").model is not None


def test_the_stages_are_told_and_the_next_commands_shown(macai, tmp_path):
    result = macai("quickstart", "--out", tmp_path / "mine")
    assert result.code == 0
    assert [line[:4] for line in result.err.splitlines() if line[1:3] == "/6"] == [
        f"{n}/6 " for n in range(1, 7)
    ]
    assert result.out.endswith(COMMANDS)
    report = report_of(tmp_path / "mine")
    for answer in report["answers"]:
        assert f"{answer['request']}\n  before  " in result.out
        assert f"  wanted  {answer['expected']}\n" in result.out
    assert f"anew: {report['fused']['same_replies']} of 12 replies are the same\n" in result.out
    for answer in report["package"]["answers"]:
        assert f"  {answer}\n" in result.out
    for name in ("base", "tuned"):
        assert f"  {name:5}    0 of 12    0.0%  (95 %: 0.0% to " in result.out
    assert f"{report['steps']} steps, {report['real_tokens']} tokens, " in result.out
    assert f"report: {tmp_path / 'mine' / 'report.json'}\n" in result.out


def test_a_second_run_replaces_the_first(macai, tmp_path):
    assert macai("quickstart").code == 0
    out = tmp_path / "quickstart"
    first = report_of(out)
    weights = (out / "adapter" / WEIGHTS).read_bytes()
    (tmp_path / "intents.toml").write_text(RECIPE.replace("epochs = 2", "epochs = 1"))
    result = macai("quickstart")
    assert result.code == 0
    assert "resumed" not in result.err
    second = report_of(out)
    assert (first["epochs"], second["epochs"]) == (2, 1)
    assert (out / "adapter" / WEIGHTS).read_bytes() != weights
    assert names(out) == ["adapter", "model", "package", "report.json"]


def test_a_folder_that_is_not_its_own_is_refused_before_any_work(macai, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "locate_model", None)  # work would call it
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "thesis.txt").write_text("mine")
    result = macai("quickstart")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: quickstart exists already\nhint: ")
    assert names(tmp_path / "quickstart") == ["thesis.txt"]


def stop_after(monkeypatch, steps):
    """Let the training be asked to stop after some steps, as Ctrl-C does."""
    from macai import finetune

    run, left = finetune.finetune, iter(range(steps - 1))

    def stopping(*arguments, **options):
        should_stop = lambda: next(left, None) is None  # noqa: E731
        return run(*arguments, **(options | {"should_stop": should_stop}))

    monkeypatch.setattr(finetune, "finetune", stopping)


def test_a_stopped_run_goes_on_and_gives_the_same_model(macai, tmp_path, monkeypatch):
    assert macai("quickstart", "--out", "whole").code == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        stopped = macai("quickstart", "--out", "parts")
    assert (stopped.code, stopped.out) == (130, "")
    assert "stopped after step 2" in stopped.err
    assert names(tmp_path / "parts") == ["adapter"]
    assert (tmp_path / "parts" / "adapter" / FILE).is_file()
    result = macai("quickstart", "--out", "parts")
    assert result.code == 0
    assert "resumed at step 2" in result.err
    for file in (f"adapter/{WEIGHTS}", "model/model.safetensors"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    whole, parts = report_of(tmp_path / "whole"), report_of(tmp_path / "parts")
    for key in ("steps", "real_tokens", "train_loss", "valid_loss", "tuned", "fused", "answers"):
        assert parts[key] == whole[key]


def test_force_begins_a_stopped_run_anew(macai, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        macai("quickstart")
    result = macai("quickstart", "--force")
    assert result.code == 0
    assert "resumed" not in result.err


def test_a_run_killed_before_its_first_checkpoint_begins_anew(macai, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        macai("quickstart")
    (tmp_path / "quickstart" / "adapter" / FILE).unlink()
    result = macai("quickstart")
    assert result.code == 0
    assert "resumed" not in result.err


def test_no_report_of_an_earlier_run_stands_beside_a_stopped_one(macai, tmp_path, monkeypatch):
    assert macai("quickstart").code == 0
    stop_after(monkeypatch, 2)
    assert macai("quickstart").code == 130
    assert not (tmp_path / "quickstart" / "report.json").exists()
