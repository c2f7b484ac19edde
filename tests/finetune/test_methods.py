"""Every method and rule through a whole run: trained, stopped, resumed, opened, fused."""

import json
import shutil
from dataclasses import asdict, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.errors import UsageError
from macai.finetune import finetune
from macai.models.adapter import load_adapter
from macai.models.arrays import named_arrays
from macai.models.fuse import fuse
from macai.models.load import load_model
from macai.recipe import Adapter, Batch, Loss, Optimizer, Recipe, Schedule, Train
from macai.train.checkpoint import load_checkpoint
from macai.train.events import Stopped, Summary
from macai.train.loop import Report
from macai.train.losses import LOSSES

IDS = mx.array([[5, 80, 33, 7, 260, 9]])
TARGETS = ("q_proj", "down_proj")
CASES = {
    "dora": {"adapter": {"method": "dora", "targets": TARGETS, "rank": 4}},
    "rslora": {"adapter": {"use_rslora": True, "targets": TARGETS, "rank": 4}},
    "patterns": {
        "adapter": {
            "targets": TARGETS,
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"layers.0.mlp.down_proj": 3.0},
        }
    },
    "pissa": {"adapter": {"init": "pissa"}},
    "dora, pissa, rslora": {"adapter": {"init": "pissa", "method": "dora", "use_rslora": True}},
    "whole modules": {
        "adapter": {"targets": TARGETS, "modules_to_save": ("embed_tokens", "lm_head")}
    },
    "full": {"adapter": {"method": "full"}},
    "full, one block": {"adapter": {"method": "full", "layers": 1}},
    "lora+": {"optimizer": {"loraplus_lr_ratio": 4.0}},
    "8 bit": {"optimizer": {"name": "adamw8bit"}},
    "adafactor": {"optimizer": {"name": "adafactor"}},
    "lion": {"optimizer": {"name": "lion"}},
    "muon": {"adapter": {"method": "full"}, "optimizer": {"name": "muon"}},
    "wsd": {"schedule": {"name": "wsd", "floor": 0.1, "decay": 0.5}},
    "dpo": {"loss": {"name": "dpo", "beta": 0.5}},
    "dora, dpo": {"adapter": {"method": "dora"}, "loss": {"name": "dpo", "beta": 0.5}},
    "orpo": {"loss": {"name": "orpo"}},
    "orpo, full": {"adapter": {"method": "full"}, "loss": {"name": "orpo"}},
    "simpo": {"loss": {"name": "simpo", "beta": 2.0}},
    "kto": {"loss": {"name": "kto", "beta": 0.5}},
    "label smoothing": {"loss": {"label_smoothing": 0.1}},
}


def recipe(case):
    values = CASES[case]
    adapter = {"targets": TARGETS, "rank": 4} | values.get("adapter", {})
    if adapter.get("method") == "full":
        adapter = values["adapter"]
    return Recipe(
        model="tiny",
        adapter=Adapter(**adapter),
        loss=Loss(**values.get("loss", {})),
        optimizer=Optimizer(**{"learning_rate": 3e-3} | values.get("optimizer", {})),
        schedule=Schedule(**{"warmup_steps": 1} | values.get("schedule", {})),
        batch=Batch(tokens=256),
        train=Train(epochs=2, eval_every=3, save_every=2),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    numbers = range(24)
    rows = [{"prompt": f"What is {i} and {i}?", "completion": f"It is {2 * i}."} for i in numbers]
    for row in rows:
        n = int(row["prompt"].split()[2])
        row |= {"label": n % 3 != 0, "chosen": row["completion"], "rejected": f"No, {n}, no."}
    for form, keys in FORMS.items():
        write(file.with_name(f"{form}.jsonl"), [{k: row[k] for k in keys} for row in rows])
    return file


FORMS = {
    "sft": ("prompt", "completion"),
    "pairs": ("prompt", "chosen", "rejected"),
    "labels": ("prompt", "completion", "label"),
}


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_for(case, data):
    name = recipe(case).loss.name
    form = "sft" if name == "sft" else LOSSES[name].form
    return data.with_name(f"{form}.jsonl")


def run(case, tiny_dir, data, out, *, stop_at=None, **options):
    loaded, done, events = load_model(tiny_dir), [0], []
    stop = {"should_stop": lambda: done[0] == stop_at}
    for event in finetune(
        recipe(case), loaded, data=rows_for(case, data), out=out, **stop, **options
    ):
        done[0] = event.step if isinstance(event, Report) else done[0]
        events.append(event)
    return loaded, events


def result(case, tiny_dir, out):
    """The model that the run has left."""
    if recipe(case).adapter.method == "full":
        assert not (out / "adapter_config.json").exists()
        return load_model(out / "model")
    loaded = load_model(tiny_dir)
    load_adapter(loaded, out)
    return loaded


@pytest.mark.parametrize("case", CASES)
def test_a_run_learns_and_what_it_leaves_opens_and_fuses(case, tiny_dir, data, tmp_path):
    out = tmp_path / "run"
    trained, events = run(case, tiny_dir, data, out)
    losses = [e.loss for e in events if isinstance(e, Report)]
    summary = events[-1]
    assert isinstance(summary, Summary)
    assert losses[-1] < losses[0] - 0.02
    assert (summary.adapter, summary.model) == (
        (None, str(out / "model"))
        if "full" in str(recipe(case).adapter.method)
        else (str(out), None)
    )
    opened = result(case, tiny_dir, out)
    if summary.valid_loss == summary.best_valid_loss:
        assert mx.abs(opened.model(IDS) - trained.model(IDS)).max().item() < 1e-5
    if summary.adapter:
        logits = opened.model(IDS)
        fuse(opened)
        assert mx.abs(opened.model(IDS) - logits).max().item() < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(case, tiny_dir, data, tmp_path):
    run(case, tiny_dir, data, tmp_path / "whole")
    assert run(case, tiny_dir, data, tmp_path / "cut", stop_at=3)[1][-1] == Stopped(step=3)
    run(case, tiny_dir, data, tmp_path / "cut", resume=True)
    one, other = (load_checkpoint(tmp_path / name) for name in ("whole", "cut"))
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert np.array_equal(np.array(array), np.array(other.arrays[name])), name
    logits = [result(case, tiny_dir, tmp_path / name).model(IDS) for name in ("whole", "cut")]
    assert mx.array_equal(*logits).item()


def test_an_adapter_can_begin_with_what_3_bits_took_away(tiny_dir, data, tmp_path):
    base = shutil.copytree(tiny_dir, tmp_path / "base")
    model = load_model(base).model
    nn.quantize(model, group_size=32, bits=3)
    mx.save_safetensors(str(base / "model.safetensors"), named_arrays(model.parameters()))
    config = json.loads((base / "config.json").read_text())
    config["quantization"] = {"group_size": 32, "bits": 3}
    (base / "config.json").write_text(json.dumps(config))
    difference = {}
    for init, original in (("default", None), ("loftq", tiny_dir)):
        adapter = Adapter(init=init, original=original, rank=16)
        start = replace(recipe("lora+"), adapter=adapter, optimizer=Optimizer(learning_rate=1e-9))
        rows = rows_for("lora+", data)
        *_, summary = finetune(start, load_model(base), data=rows, out=tmp_path / init)
        loaded = load_model(base)
        load_adapter(loaded, tmp_path / init)
        exact = load_model(tiny_dir).model(IDS)
        difference[init] = mx.abs(loaded.model(IDS) - exact).mean().item()
        assert summary.steps > 1
    assert difference["loftq"] < 0.8 * difference["default"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": Adapter(init="loftq")}, "adapter.original belong together"),
        ({"adapter": Adapter(method="full"), "loss": Loss(name="dpo")}, "without its adapter"),
        (
            {"adapter": Adapter(modules_to_save=("lm_head",)), "loss": Loss(name="kto")},
            "without its adapter",
        ),
        ({"adapter": Adapter(rank_pattern={"wq": 3})}, "no adapted layer is called 'wq'"),
        ({"adapter": Adapter(method="full", layers=3)}, "3 layers to train, and the model has 2"),
    ],
)
def test_what_does_not_go_together_is_refused_and_leaves_nothing(
    tiny_dir, data, tmp_path, changes, message
):
    wanted = replace(recipe("lora+"), optimizer=Optimizer(), **changes)
    form = LOSSES[wanted.loss.name].form if "loss" in changes else "sft"
    rows = data.with_name(f"{form}.jsonl")
    with pytest.raises(UsageError, match=message):
        list(finetune(wanted, load_model(tiny_dir), data=rows, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_of_one_block_no_other_array_changes(tiny_dir, data, tmp_path):
    trained, _ = run("full, one block", tiny_dir, data, tmp_path / "run")
    before = named_arrays(load_model(tiny_dir).model.parameters())
    changed = {
        name
        for name, array in named_arrays(trained.model.parameters()).items()
        if not mx.array_equal(array, before[name]).item()
    }
    assert changed == {name for name in before if name.startswith("model.layers.1.")}


def test_a_method_and_its_numbers_go_through_recipe_toml(tiny_dir, data, tmp_path):
    from macai.recipe import load_recipe

    for case in ("patterns", "dora", "full", "wsd", "lora+"):
        out = tmp_path / case
        run(case, tiny_dir, data, out, stop_at=1)
        assert asdict(load_recipe(out / "recipe.toml")) == asdict(recipe(case))
