import math
import tomllib
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.catalog import find_recipe, recipe_names
from macai.errors import RecipeError
from macai.recipe import (
    Adapter,
    Data,
    DiffusionRecipe,
    Optimizer,
    Recipe,
    Train,
    differences,
    diffusion,
    dumps,
    load_any_recipe,
    load_recipe,
)


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    error = caught.value
    return f"{error.message} ({error.hint})" if error.hint else error.message


def test_a_recipe_with_only_a_model_has_the_documented_defaults(write):
    recipe = load_recipe(write('model = "m"'))
    assert recipe == Recipe(model="m")
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.targets) == (
        16,
        32.0,
        ("all-linear",),
    )
    assert (recipe.optimizer.learning_rate, recipe.schedule.warmup_steps) == (2e-4, 10)
    assert (recipe.batch.tokens, recipe.data.max_length, recipe.train.epochs) == (2048, 1024, 3.0)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Recipe(model="m").model = "n"  # type: ignore[misc]


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_says_how_to_run_it(name):
    path = find_recipe(name)
    recipe = load_any_recipe(path)
    assert recipe.kind == "diffusion" or recipe.model == "smollm2-135m"
    head = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert any(line.startswith(f"#   macai train {name} ") for line in head)


def test_the_data_of_a_shipped_recipe_is_there():
    assert load_recipe(find_recipe("lora")).data.path is None
    path = load_recipe(find_recipe("intents")).data.path
    assert path is not None
    assert (path / "train.jsonl").is_file()


def test_a_whole_number_becomes_a_float_where_one_is_meant(write):
    epochs = load_recipe(write('model = "m"\n[train]\nepochs = 2')).train.epochs
    assert (epochs, type(epochs)) == (2.0, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('modle = "m"', "mine.toml: unknown key 'modle' (did you mean 'model'?)"),
        ("[adaptor]\nrank = 3", "unknown table 'adaptor' (did you mean 'adapter'?)"),
        ("[adapter]\nrnak = 3", "mine.toml: adapter: unknown key 'rnak' (did you mean 'rank'?)"),
        ("[adapter]\nzzz = 3", "known here: method, rank, alpha, use_rslora"),
        ("adapter = 3", "mine.toml: adapter: must be a table, not 3"),
        ("[adapter]\nrank = true", "adapter.rank: must be a whole number, not true"),
        ("[adapter]\nrank = 8.0", "adapter.rank: must be a whole number, not 8.0"),
        ("[adapter]\nrank = 0", "adapter.rank: must be finite and at least 1, not 0"),
        ("[adapter]\nalpha = 0", "adapter.alpha: must be finite and greater than 0, not 0"),
        ("[adapter]\nalpha = nan", "adapter.alpha: must be finite and greater than 0, not nan"),
        ("[adapter]\nalpha = inf", "adapter.alpha: must be finite and greater than 0, not inf"),
        ("[adapter]\ndropout = 1.0", "must be at least 0 and less than 1, not 1.0"),
        ("[adapter]\ndropout = true", "adapter.dropout: must be a number, not true"),
        ('[adapter]\ntargets = "q_proj"', 'must be a list of names, not "q_proj"'),
        ('[adapter]\ntargets = ["q_proj", 3]', "must be a list of names"),
        ("[adapter]\ntargets = []", "must name at least one module"),
        ('[adapter]\ntargets = ["all-linear", "q_proj"]', '"all-linear" stands alone'),
        ('[adapter]\nmethod = "loar"', "(did you mean 'lora'?)"),
        ('[optimizer]\nname = "adamw8bi"', "(did you mean 'adamw8bit'?)"),
        ("[adapter]\nrank_pattern = 3", "rank_pattern: must be a table of numbers, not 3"),
        ("[adapter.rank_pattern]\nq_proj = 0.5", "rank_pattern.q_proj: must be a whole number"),
        ('[schedule]\nname = ["cosine"]', 'must be "cosine" or "constant" or "linear"'),
        ('[optimizer]\nlearning_rate = "1e-4"', 'must be a number, not "1e-4"'),
        ("[train]\nseed = 4294967296", "must be at least 0 and at most 4294967295"),
        ("[train]\nworkers = 65", "train.workers: must be at least 0 and at most 64, not 65"),
        (f"[train]\nepochs = {'9' * 400}", "must be finite and greater than 0"),
        ("[data]\npath = 3", "data.path: must be a string of at least one character, not 3"),
        ('[data]\npath = ""', 'must be a string of at least one character, not ""'),
        ('[data]\npath = "a\\u0000b"', "data.path: must be a string"),
        ("[data]\npath = 1979-05-27", "not 1979-05-27"),
        ('kind = "vision"', 'kind: must be "language", not "vision"'),
        ("model = 3", "mine.toml: model: must be a string of at least one character, not 3"),
    ],
)
def test_a_wrong_value_is_named_with_its_file_and_key(write, text, message):
    model = "" if "mod" in text else 'model = "m"\n'
    assert message in problems(write(model + text))


def test_a_missing_model_is_named(write):
    assert problems(write("")) == (
        "mine.toml: model: is missing (write model = ..., or --set model=...)"
    )


def test_every_problem_of_a_file_and_its_overrides_is_reported_at_once(write):
    path = write('[adapter]\nrnak = 3\nalpha = "x"\n[train]\nepochs = 0')
    assert problems(path, "batch.tokens=0", "nonsense").splitlines() == [
        "mine.toml: 6 problems",
        "--set nonsense: is not table.key=value (for example --set adapter.rank=8)",
        "mine.toml: model: is missing (write model = ..., or --set model=...)",
        "mine.toml: adapter: unknown key 'rnak' (did you mean 'rank'?)",
        'mine.toml: adapter.alpha: must be a number, not "x"',
        "--set batch.tokens: must be finite and at least 1, not 0",
        "mine.toml: train.epochs: must be finite and greater than 0, not 0",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model = ", "mine.toml: is not TOML"),
        (b"model = 'a'\nmodel = 'b'", "mine.toml: is not TOML"),
        (b"x = " + b"9" * 5000, "mine.toml: is not TOML"),
        (b"x = " + b"[" * 100_000, "mine.toml: is not TOML"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_file_that_is_not_toml_is_refused(tmp_path, content, message):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    assert message in problems(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert "gone.toml: cannot be read: No such file" in problems(tmp_path / "gone.toml")
    assert "cannot be read: Is a directory" in problems(tmp_path)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b'\xef\xbb\xbfmodel = "m"')
    assert load_recipe(path).model == "m"


@pytest.mark.parametrize(
    ("override", "part", "value"),
    [
        ("adapter.rank=8", "adapter", Adapter(rank=8)),
        (" adapter . rank = 8 ", "adapter", Adapter(rank=8)),
        ("optimizer.learning_rate=1e-5", "optimizer", Optimizer(learning_rate=1e-5)),
        ('adapter.targets=["q_proj"]', "adapter", Adapter(targets=("q_proj",))),
        ("model=smollm2-135m", "model", "smollm2-135m"),
        ('model="a = b"', "model", "a = b"),
        ("model=a=b", "model", "a=b"),
        ("data.truncation=keep-end", "data", Data(truncation="keep-end")),
    ],
)
def test_an_override_is_toml_or_a_bare_word(write, override, part, value):
    recipe = load_recipe(write('model = "m"'), [override])
    assert recipe == replace(Recipe(model="m"), **{part: value})


def test_an_override_wins_over_the_file_and_the_last_one_over_the_others(write):
    path = write('model = "m"\n[adapter]\nrank = 4')
    assert load_recipe(path, ["adapter.rank=8", "adapter.rank=2"]).adapter.rank == 2
    assert load_recipe(path).adapter.rank == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.rnak=3", "--set adapter: unknown key 'rnak' (did you mean 'rank'?)"),
        ("adaptor.rank=3", "--set unknown table 'adaptor' (did you mean 'adapter'?)"),
        ("adapter.rank=true", "--set adapter.rank: must be a whole number, not true"),
        ("adapter.rank=3\nx = 4", "--set adapter.rank: must be a whole number"),
        ("adapter={rank = 0}", "adapter.rank: must be finite and at least 1, not 0"),
        ("adapter.rank", "--set adapter.rank: is not table.key=value"),
        ("a.b.c=3", "is not table.key=value"),
        (".rank=3", "is not table.key=value"),
        ("model=", 'model: must be a string of at least one character, not ""'),
    ],
)
def test_a_wrong_override_is_named(write, override, message):
    assert message in problems(write('model = "m"'), override)


def test_a_data_path_belongs_to_the_recipe_or_to_the_shell(write, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = write('model = "./m"\n[data]\npath = "rows"')
    recipe = load_recipe(path)
    assert recipe.data.path == tmp_path / "rows"
    assert recipe.model == str(tmp_path / "m")
    recipe = load_recipe(path, ["data.path=rows", "model=../n"])
    assert recipe.data.path == elsewhere / "rows"
    assert recipe.model == str(tmp_path / "n")


numbers = st.floats(min_value=1e-12, max_value=1e12, allow_nan=False)


@given(
    model=st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1).filter(
        lambda text: not text.startswith(("./", "../", "~"))
    ),
    alpha=numbers,
    rank=st.integers(1, 2**40),
    epochs=numbers,
    targets=st.lists(st.from_regex(r"[a-z_.]+", fullmatch=True), min_size=1),
    path=st.sampled_from([None, Path("/rows"), Path('/a "b" \\ ü/rows.jsonl')]),
)
def test_what_is_written_loads_to_an_equal_recipe(
    tmp_path_factory, model, alpha, rank, epochs, targets, path
):
    recipe = Recipe(
        model=model,
        adapter=Adapter(alpha=alpha, rank=rank, targets=tuple(targets)),
        data=Data(path=path),
        train=Train(epochs=epochs),
    )
    file = tmp_path_factory.getbasetemp() / "round_trip.toml"
    file.write_text(dumps(recipe), encoding="utf-8")
    assert load_recipe(file) == recipe


def test_every_default_is_written_out():
    written = tomllib.loads(dumps(Recipe(model="m")))
    assert written["adapter"] == {
        "method": "lora",
        "rank": 16,
        "alpha": 32.0,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "dropout": 0.0,
        "targets": ["all-linear"],
        "layers": 0,
        "modules_to_save": [],
        "init": "default",
    }
    assert "path" not in written["data"]
    assert math.isclose(written["optimizer"]["learning_rate"], 2e-4)


def test_the_kind_decides_which_keys_there_are(write):
    pictures = write('kind = "diffusion"\nmodel = "m"\n[lora]\nrank = 4')
    recipe = load_any_recipe(pictures, ["batch.images=3", "diffusion.quantize=8"])
    assert recipe == DiffusionRecipe(
        model="m",
        lora=diffusion.Lora(rank=4),
        batch=diffusion.Batch(images=3),
        diffusion=diffusion.Diffusion(quantize=8),
    )
    assert 'kind: must be "language", not "diffusion"' in problems(pictures)
    assert load_any_recipe(write('model = "m"')) == Recipe(model="m")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind = "difusion"', 'kind: must be "language" or "diffusion", not "difusion"'),
        ("kind = 1", 'kind: must be "language" or "diffusion", not 1'),
    ],
)
def test_a_kind_there_is_not_is_the_one_problem(write, text, message):
    with pytest.raises(RecipeError) as caught:
        load_any_recipe(write(f"{text}\n[nothing]\nx = 1"))
    assert caught.value.message == f"mine.toml: {message}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[lora]\nrnk = 4", "did you mean 'rank'?"),
        ("[losss]\n", "did you mean 'loss'?"),
        ("[adapter]\nrank = 4", "unknown table 'adapter'"),
        ("[data]\nflip = 1", "data.flip: must be true or false, not 1"),
        ("[data]\ncaption_dropout = 1.5", "must be at least 0 and at most 1, not 1.5"),
        ("[diffusion]\nquantize = 2", "diffusion.quantize: must be 0 or 8 or 4, not 2"),
        ("[diffusion]\nquantize = false", "diffusion.quantize: must be 0 or 8 or 4, not false"),
        ('[sample]\nprompts = "x"', 'must be a list of prompts, not "x" (write ["a red apple"'),
        ("[batch]\nimages = 0", "batch.images: must be at least 1"),
    ],
)
def test_a_wrong_value_of_a_recipe_for_pictures_is_named(write, line, message):
    with pytest.raises(RecipeError) as caught:
        load_any_recipe(write(f'kind = "diffusion"\nmodel = "m"\n{line}'))
    error = caught.value
    assert message in (f"{error.message} ({error.hint})" if error.hint else error.message)


def test_the_paths_of_a_recipe_for_pictures_belong_to_its_folder(write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    lines = ['[data]\npath = "a"\nclass_path = "b"\nvalid_path = "/c"\nprompt = "./d"']
    path = write('kind = "diffusion"\nmodel = "./m"\n[diffusion]\nvae = "v"\n' + lines[0])
    recipe = load_any_recipe(path)
    assert recipe.model == str(tmp_path / "m")
    assert recipe.diffusion.vae == tmp_path / "v"
    assert recipe.data.path == tmp_path / "a"
    assert recipe.data.class_path == tmp_path / "b"
    assert recipe.data.valid_path == Path("/c")
    assert recipe.data.prompt == "./d"


def test_a_recipe_for_pictures_is_written_and_read_again(tmp_path):
    recipe = DiffusionRecipe(
        model="m",
        data=diffusion.Data(path=tmp_path, prompt='a "red" thing', flip=True),
        sample=diffusion.Sample(every=5, prompts=("a", "b")),
    )
    file = tmp_path / "r.toml"
    file.write_text(dumps(recipe), encoding="utf-8")
    assert load_any_recipe(file) == recipe
    changed = load_any_recipe(file, ["lora.rank=3", "data.path=x"])
    assert differences(recipe, changed) == ["lora.rank = 16 there, 3 here"]
