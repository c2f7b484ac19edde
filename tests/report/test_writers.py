"""Other programs that show a run: without them, and as they read what was written for them."""

import builtins
import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from macai.errors import RecipeError, UsageError
from macai.finetune_diffusion.events import Sampled
from macai.recipe import load_any_recipe
from macai.report import writers
from macai.report.writers import logged, require_writers
from macai.report.writers.writer import Opening
from macai.train.events import Started, Stopped, Validated
from macai.train.loop import Report
from tests.report.runs import TEXTS

BLOCK = 1 << 15
RECIPE = {"model": "m", "adapter": {"rank": 4}}


def started(first_step=0):
    return Started(**TEXTS | {"first_step": first_step})


def step(number):
    return Report(
        step=number,
        loss=4.0 / number,
        learning_rate=1e-3,
        grad_norm=0.5,
        learnt_tokens=10,
        real_tokens=100,
        processed_tokens=120,
        seconds=0.5,
        peak_memory_bytes=1000,
    )


def run(out, name, *events):
    return list(logged(iter(events), [name], out=out, recipe=RECIPE, unit="tokens"))


class Kept:
    """Keeps what it is told, in a list of all of them."""

    opened: list["Kept"]

    def __init__(self, run: Opening) -> None:
        self.run, self.told = run, []
        Kept.opened.append(self)

    def numbers(self, step, values):
        self.told.append((step, dict(values)))

    def picture(self, step, name, file):
        self.told.append((step, name, file))

    def close(self):
        self.told.append("closed")


@pytest.fixture
def kept(monkeypatch):
    Kept.opened = []
    monkeypatch.setattr(writers, "WRITERS", {"kept": Kept})
    return Kept.opened


def test_a_writer_is_told_of_steps_validations_and_pictures_and_closed(kept, tmp_path):
    picture = Sampled(step=1, file="x.png")
    events = (started(3), step(4), Validated(step=4, loss=2.5, best=True), picture)
    assert run(tmp_path, "kept", *events) == list(events)
    assert kept[0].run == Opening(tmp_path, RECIPE, 3)
    first, *rest = kept[0].told
    assert first == (
        4,
        {
            "train/loss": 1.0,
            "train/learning_rate": 1e-3,
            "train/grad_norm": 0.5,
            "speed/tokens_per_second": 200.0,
            "speed/computed_tokens_per_second": 240.0,
            "memory/peak_bytes": 1000,
        },
    )
    assert rest == [(4, {"valid/loss": 2.5}), (1, "samples", Path("x.png")), "closed"]


def test_a_writer_is_closed_where_a_run_fails(kept, tmp_path):
    def failing():
        yield started()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        list(logged(failing(), ["kept"], out=tmp_path, recipe=RECIPE, unit="tokens"))
    assert kept[0].told == ["closed"]


def test_missing_packages_are_all_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"train\.log needs tensorboardX and wandb, not") as e:
        require_writers(["tensorboard", "wandb"])
    assert "pip install 'macai[tensorboard,wandb]'" in e.value.hint
    require_writers([])


def test_every_writer_of_a_recipe_is_there_and_no_other_word_is_one(tmp_path):
    file = tmp_path / "r.toml"
    for kind in ("language", "diffusion"):
        file.write_text(
            f'model = "m"\nkind = "{kind}"\n[train]\nlog = {json.dumps(list(writers.WRITERS))}'
        )
        assert load_any_recipe(file).train.log == tuple(writers.WRITERS)
        with pytest.raises(RecipeError, match='not "tensorbord"') as e:
            load_any_recipe(file, ['train.log=["tensorbord"]'])
        assert e.value.hint == "did you mean 'tensorboard'?"
    assert writers.PACKAGES.keys() == writers.WRITERS.keys()


def test_without_writers_their_packages_are_not_imported(tmp_path, monkeypatch):
    real = builtins.__import__

    def guarded(name, *rest):
        assert name not in writers.PACKAGES.values()
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", guarded)
    assert len(list(logged([started()], [], out=tmp_path, recipe=RECIPE, unit="tokens"))) == 1


@pytest.mark.oracle
def test_tensorboard_reads_what_was_written_and_no_step_twice(tmp_path):
    pytest.importorskip("tensorboardX")
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    file = tmp_path / "samples.png"
    pixels = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    valid = Validated(step=3, loss=2.5, best=True)
    run(tmp_path, "tensorboard", started(), *map(step, (1, 2, 3, 4)), Stopped(step=4))
    again = (step(3), valid, step(4), step(5), Sampled(step=5, file=str(file)))
    run(tmp_path, "tensorboard", started(2), *again)
    read = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    losses = [(e.step, e.value) for e in read.Scalars("train/loss")]
    assert losses == [(n, pytest.approx(4.0 / n)) for n in (1, 2, 3, 4, 5)]
    assert [(e.step, e.value) for e in read.Scalars("valid/loss")] == [(3, 2.5)]
    (image,) = read.Images("samples")
    assert (image.step, image.width, image.height) == (5, 9, 6)
    run(tmp_path, "tensorboard", started(), step(1))  # anew
    read = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [e.step for e in read.Scalars("train/loss")] == [1]


@pytest.mark.oracle
def test_wandb_has_all_of_a_run_offline_under_one_name(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("ERROR_REPORTING", "false"), ("SILENT", "true")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.chdir(tmp_path)
    run(tmp_path, "wandb", started(), step(1), Validated(step=1, loss=2.5, best=True))
    run(tmp_path, "wandb", started(1), step(2))
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    first, second = map(history, files)
    assert [(h["step"], h["train/loss"]) for h in first if "train/loss" in h] == [(1, 4.0)]
    assert [(h["step"], h["valid/loss"]) for h in first if "valid/loss" in h] == [(1, 2.5)]
    assert [(h["step"], h["train/loss"]) for h in second] == [(2, 2.0)]
    assert len({file.stem for file in files}) == 1  # run-<id>


def history(file):
    """Return the lines of a run; its file is a log of LevelDB's form, of wandb's own messages.

    A header of 7 bytes, then blocks of 32 KiB, in which a piece is a checksum (4 bytes), a length
    (2), a kind (1: whole, 2: begins, 3: goes on, 4: ends), and its bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, held, lines = file.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if (room := BLOCK - at % BLOCK) < 7:
            at += room
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        held += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = Record.FromString(held)
            held = b""
            items = record.history.item
            lines.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return [line for line in lines if line]
