"""Runs on data that is mixed, or larger than memory."""

import json

import pytest

from macai.data.rows import read_learnt
from macai.data.tokens import prepare
from macai.errors import DataError
from macai.finetune import finetune
from macai.models.load import load_model
from macai.recipe import Data, Mixed, dumps, load_recipe
from macai.train.events import Started, Stopped, Summary
from macai.train.loop import Report
from tests.finetune.runs import outcome, small, write_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "train.jsonl", range(10))
    write_rows(folder / "valid.jsonl", range(20, 23))
    write_rows(folder / "some.jsonl", range(30, 42))
    write_rows(folder / "twice.jsonl", range(50, 53))
    return folder


def mixed(folder, **weights):
    mix = tuple(Mixed(path=folder / f"{name}.jsonl", weight=w) for name, w in weights.items())
    return small(data=Data(mix=mix), epochs=4, save_every=5)


def run(tiny_dir, recipe, data, out, *, stop_at=None, **options):
    done, events = [0], []
    for event in finetune(
        recipe,
        load_model(tiny_dir),
        data=data,
        out=out,
        should_stop=lambda: done[0] == stop_at,
        **options,
    ):
        done[0] = event.step if isinstance(event, Report) else done[0]
        events.append(event)
    return events


def tokens(loaded, file):
    (made,) = prepare([read_learnt(file)], loaded.tokenizer, max_length=999, truncation="error")
    return sum(len(e.ids) for e in made.examples)


def test_each_set_is_seen_as_its_weight_says_and_a_resumed_run_is_the_same(
    tiny_dir, tiny, data, tmp_path
):
    recipe, whole, out = mixed(data, some=0.25, twice=2.0), tmp_path / "whole", tmp_path / "out"
    events = run(tiny_dir, recipe, data, whole)
    assert isinstance(events[-1], Summary)
    reports = [event for event in events if isinstance(event, Report)]
    train, some, twice = (tokens(tiny, data / f"{n}.jsonl") for n in ("train", "some", "twice"))
    assert sum(r.real_tokens for r in reports) == 4 * train + some + 4 * 2 * twice
    assert [r.step for r in reports] == list(range(1, len(reports) + 1))
    started = next(event for event in events if isinstance(event, Started))
    assert (started.train_rows, started.steps) == (25, len(reports))
    for stop_at in (3, len(reports) - 2):
        assert isinstance(
            run(tiny_dir, recipe, data, out, stop_at=stop_at, force=True)[-1], Stopped
        )
        run(tiny_dir, recipe, data, out, resume=True)
        assert outcome(out) == outcome(whole)
    assert not (out / "rows").exists()


def test_rows_that_are_validated_on_may_not_be_mixed_in(tiny_dir, data, tmp_path):
    write_rows(tmp_path / "leak.jsonl", (1, 21))
    recipe = mixed(tmp_path, leak=1.0)
    with pytest.raises(DataError, match=r"valid.jsonl:2 is the same as .*leak.jsonl:2"):
        run(tiny_dir, recipe, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_mixed_in_by_its_train_file(tmp_path):
    write_rows(tmp_path / "train.jsonl", range(3))
    write_rows(tmp_path / "valid.jsonl", range(3, 5))
    assert len(read_learnt(tmp_path)) == 3
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"no train.jsonl in it"):
        read_learnt(tmp_path)


def test_the_paths_of_a_mix_are_those_of_the_recipe(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'model = "m"\n[data]\nmix = [{path = "a.jsonl"}, {path = "/b", weight = 0.5}]\n'
    )
    recipe = load_recipe(file)
    assert [(str(m.path), m.weight) for m in recipe.data.mix] == [
        (f"{tmp_path}/a.jsonl", 1.0),
        ("/b", 0.5),
    ]
    again = tmp_path / "again.toml"
    again.write_text(dumps(recipe))
    assert load_recipe(again) == recipe
    changed = load_recipe(file, ['data.mix=[{path="/c", weight=3}]'])
    assert changed.data.mix == (Mixed(path=changed.data.mix[0].path, weight=3.0),)


@pytest.mark.parametrize(
    ("mix", "what"),
    [
        ('"a.jsonl"', "data.mix: must be a list of tables"),
        ("[{weight = 1}]", "data.mix.path: is missing"),
        ('[{path = "a", weight = 0}]', "data.mix.weight: must be finite and greater than 0"),
        ('[{path = "a", share = 1}]', "unknown key 'share'"),
        ("[3]", "data.mix: must be a table"),
    ],
)
def test_what_is_no_mix_is_said(tmp_path, mix, what):
    file = tmp_path / "mine.toml"
    file.write_text(f'model = "m"\n[data]\nmix = {mix}\n')
    with pytest.raises(Exception, match=what):
        load_recipe(file)


def test_the_files_of_rows_are_there_while_it_runs_and_gone_after_it_failed(
    tiny_dir, data, tmp_path
):
    out = tmp_path / "out"
    events = finetune(small(), load_model(tiny_dir), data=data, out=out)
    assert isinstance(next(events), Started)
    assert len(list((out / "rows").iterdir())) == 2
    events.close()
    assert not (out / "rows").exists()
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"text": "word " * 3000}) + "\n" + json.dumps({"text": "b"}) + "\n")
    with pytest.raises(DataError, match="over max_length"):
        run(tiny_dir, small(), bad, tmp_path / "new")
    assert not (tmp_path / "new").exists()
