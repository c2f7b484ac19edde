import json
import re
import tomllib
from pathlib import Path

import pytest

from macai.catalog import find_recipe, recipe_names
from macai.recipe import load_recipe


def test_the_list_has_every_recipe_and_what_it_does(macai):
    result = macai("recipes", "list")
    assert (result.code, result.err) == (0, "")
    assert [line.split()[0] for line in result.out.splitlines()] == recipe_names()
    assert re.search(r"^lora +Tune a small model on your own rows$", result.out, re.M)


def test_the_list_as_json_is_one_line(macai):
    result = macai("recipes", "list", "--json")
    assert result.out.count("\n") == 1
    rows = json.loads(result.out)
    assert [row["name"] for row in rows] == recipe_names()
    assert all(row["summary"] for row in rows)


def test_what_is_shown_is_the_resolved_recipe(macai):
    result = macai("recipes", "show", "lora", "--set", "adapter.rank=8", "--set", "model=mine")
    shown = tomllib.loads(result.out)
    assert (shown["adapter"]["rank"], shown["model"]) == (8, "mine")
    assert shown["train"]["save_every"] == load_recipe(find_recipe("lora")).train.save_every


def test_a_users_own_recipe_is_shown(macai, tmp_path):
    (tmp_path / "mine.toml").write_text('model = "m"')
    assert tomllib.loads(macai("recipes", "show", tmp_path / "mine.toml").out)["model"] == "m"


def test_a_copied_recipe_is_equal_and_has_its_data_beside_it(macai, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert macai("recipes", "copy", "intents").out == "intents.toml\n"
    copied = load_recipe(Path("intents.toml"))
    original = load_recipe(find_recipe("intents"))
    assert copied.adapter == original.adapter
    assert copied.data.path == tmp_path / "data/intents"
    assert original.data.path is not None
    rows = (original.data.path / "train.jsonl").read_bytes()
    assert (tmp_path / "data/intents/train.jsonl").read_bytes() == rows


@pytest.mark.parametrize(
    ("destination", "written"), [("mine.toml", "mine.toml"), ("folder", "folder/lora.toml")]
)
def test_a_copy_may_be_named_or_put_into_a_folder(macai, tmp_path, destination, written):
    (tmp_path / "folder").mkdir()
    assert macai("recipes", "copy", "lora", tmp_path / destination).code == 0
    assert (tmp_path / written).read_bytes() == find_recipe("lora").read_bytes()
    assert not (tmp_path / "data").exists()


def test_an_existing_file_is_replaced_only_by_force(macai, tmp_path):
    target = tmp_path / "mine.toml"
    target.write_text("mine")
    result = macai("recipes", "copy", "lora", target)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"error: {target} exists already\nhint: ")
    assert target.read_text() == "mine"
    assert macai("recipes", "copy", "lora", target, "--force").code == 0
    assert target.read_bytes() == find_recipe("lora").read_bytes()


def test_rows_that_are_there_already_are_never_replaced(macai, tmp_path):
    mine = tmp_path / "data/intents/train.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert macai("recipes", "copy", "intents", tmp_path, "--force").code == 0
    assert mine.read_text() == "mine"
    assert [path.name for path in mine.parent.iterdir()] == ["train.jsonl"]


def test_an_unknown_recipe_is_named(macai):
    result = macai("recipes", "copy", "intent")
    assert result.err.splitlines() == [
        "error: no recipe is called 'intent', and no .toml file is there",
        "hint: did you mean 'intents'?",
    ]


def test_a_recipe_for_pictures_is_shown_and_copied(macai, tmp_path):
    shown = tomllib.loads(macai("recipes", "show", "sd-lora", "--set", "lora.rank=3").out)
    assert (shown["kind"], shown["lora"]["rank"]) == ("diffusion", 3)
    assert macai("recipes", "copy", "sd-lora", tmp_path / "mine.toml").code == 0
    assert (tmp_path / "mine.toml").read_bytes() == find_recipe("sd-lora").read_bytes()


def test_a_copied_recipe_has_the_model_that_it_names_beside_it(macai, tmp_path):
    assert macai("recipes", "copy", "emoji-vae", tmp_path / "mine.toml").code == 0
    shipped = find_recipe("emoji-vae").parent / "emoji"
    copied = {p.relative_to(tmp_path / "emoji") for p in (tmp_path / "emoji").rglob("*")}
    assert copied == {p.relative_to(shipped) for p in shipped.rglob("*")}
    shown = tomllib.loads(macai("recipes", "show", tmp_path / "mine.toml").out)
    assert shown["model"] == str(tmp_path / "emoji")
