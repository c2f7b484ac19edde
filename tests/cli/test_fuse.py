import errno
import json
import os
import signal
import subprocess
import sys
import time

import mlx.core as mx
import pytest

from macai.models import fuse as fuse_module
from macai.models.adapter import CONFIG
from macai.models.load import load_model
from tests.adapters import adapt, save
from tests.tiny import tiny_model_dir

IDS = mx.array([[5, 80, 33, 7, 260, 9]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    return save(adapt(load_model(folder)), tmp_path_factory.mktemp("adapter"), name="the-tiny-one")


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_a_fused_model_replies_as_the_adapter_does(macai, folder, adapter, tmp_path):
    out = tmp_path / "new" / "fused"
    result = macai("fuse", "--model", folder, "--adapter", adapter, "--out", out)
    assert (result.code, result.out) == (0, f"model: {out}\n")
    assert result.err == "writing weights: 0 of 1\nwriting weights: 1 of 1\n"
    assert names(out.parent) == ["fused"]
    options = ("Hello", "--max-tokens", 12)
    tuned = macai("generate", *options, "--model", folder, "--adapter", adapter).out
    assert macai("generate", *options, "--model", out).out == tuned
    assert macai("generate", *options, "--model", folder).out != tuned


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_json_is_one_line_with_type_and_size(macai, folder, adapter, tmp_path, dtype):
    out = tmp_path / "fused"
    result = macai(
        "fuse", "--model", folder, "--adapter", adapter, "--out", out, "--dtype", dtype, "--json"
    )
    assert result.code == 0
    assert result.out.count("\n") == 1
    size = sum(file.stat().st_size for file in out.iterdir())
    assert json.loads(result.out) == {"model": str(out), "dtype": dtype, "bytes": size}
    stored = mx.load(str(out / "model.safetensors"))
    assert {value.dtype for value in stored.values()} == {getattr(mx, dtype)}


def test_an_existing_output_is_refused_before_anything_is_opened_and_replaced_with_force(
    macai, folder, adapter, tmp_path
):
    out = tmp_path / "fused"
    out.mkdir()
    (out / "mine").write_text("old")
    result = macai("fuse", "--model", "no-such-model", "--adapter", adapter, "--out", out)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"error: {out} exists already\nhint: choose another --out")
    command = ("fuse", "--model", folder, "--adapter", adapter, "--out", out, "--force")
    assert "neither a model nor a package" in macai(*command).err
    assert names(out) == ["mine"]
    (out / "config.json").write_text("old")
    assert macai(*command).code == 0
    assert "mine" not in names(out)
    assert load_model(out).model(IDS).shape[-1] == load_model(folder).config["vocab_size"]


def test_the_adapter_of_another_base_is_refused(macai, adapter, tmp_path):
    other, out = tiny_model_dir(tmp_path / "other", seed=5), tmp_path / "fused"
    result = macai("fuse", "--model", other, "--adapter", adapter, "--out", out)
    assert (result.code, result.out) == (1, "")
    assert f"error: {adapter}: trained on another base: its weights differ" in result.err
    assert "hint: it belongs to 'the-tiny-one'" in result.err
    assert names(tmp_path) == ["other"]


def test_a_weight_float16_cannot_hold_leaves_nothing_behind(macai, tmp_path):
    model = tiny_model_dir(tmp_path / "model")
    loaded = adapt(load_model(model), ("layers.0.mlp.up_proj",), alpha=1e7)
    adapter, out = save(loaded, tmp_path / "adapter"), tmp_path / "fused"
    command = ("fuse", "--model", model, "--adapter", adapter, "--out", out)
    result = macai(*command)
    assert (result.code, result.out) == (1, "")
    assert "error: model.layers.0.mlp.up_proj.weight is not finite in float16" in result.err
    assert names(tmp_path) == ["adapter", "model"]
    assert macai(*command, "--dtype", "bfloat16").code == 0


def test_a_full_disk_leaves_the_old_model_and_nothing_else(
    macai, folder, adapter, tmp_path, monkeypatch
):
    out = tmp_path / "fused"
    out.mkdir()
    (out / "config.json").write_text("old")

    def full(file, arrays, metadata):
        with open(file, "wb") as f:  # noqa: PTH123
            f.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(mx, "save_safetensors", full)
    result = macai("fuse", "--model", folder, "--adapter", adapter, "--out", out, "--force")
    assert (result.code, result.out) == (1, "")
    message = f"error: {out / 'model.safetensors'}: cannot be written: No space left on device\n"
    assert message in result.err
    assert names(tmp_path) == ["fused"]
    assert (out / "config.json").read_text() == "old"
    assert names(out) == ["config.json"]


def test_an_adapter_is_not_replaced_by_what_is_made_of_it(macai, folder, adapter):
    before = names(adapter)
    command = ("fuse", "--model", folder, "--adapter", adapter, "--out", adapter, "--force")
    assert macai(*command).code == 1
    assert names(adapter) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_fuse_that_is_stopped_leaves_nothing(
    macai, folder, adapter, tmp_path, monkeypatch, number, code
):
    write = fuse_module.write_model

    def stopped(loaded, place, **options):
        write(loaded, place, **options)
        assert names(tmp_path) != []
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(fuse_module, "write_model", stopped)
    result = macai("fuse", "--model", folder, "--adapter", adapter, "--out", tmp_path / "fused")
    assert (result.code, result.out) == (code, "")
    assert names(tmp_path) == []


def test_a_folder_without_an_adapter_is_named(macai, folder, tmp_path):
    result = macai("fuse", "--model", folder, "--adapter", folder, "--out", tmp_path / "fused")
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        f"error: {folder}: no {CONFIG} in it\nhint: --adapter takes the folder macai train wrote\n"
    )
    assert names(tmp_path) == []


@pytest.mark.slow
def test_a_real_process_killed_while_it_writes_leaves_no_output(smollm2_dir, tmp_path):
    adapter = save(adapt(load_model(smollm2_dir), rank=1), tmp_path / "adapter")
    place = tmp_path / "place"
    place.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "macai", "fuse", "--model", smollm2_dir,
         "--adapter", adapter, "--out", place / "fused"],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not names(place):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in err
    assert names(place) == []


def test_bits_are_measured_on_rows_and_what_is_needed_is_given(macai, folder, adapter, tmp_path):
    rows = tmp_path / "held.jsonl"
    texts = ({"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(9))
    rows.write_text("".join(json.dumps(row) + "\n" for row in texts))
    command = ("fuse", "--model", folder, "--adapter", adapter, "--out", tmp_path / "out")
    refused = macai(*command, "--bits", 2, "--data", rows)
    assert (refused.code, refused.out) == (1, "")
    assert "more bits are needed by" in refused.err
    assert not (tmp_path / "out").exists()
    result = macai(*command, "--bits", 2, "--data", rows, "--raise-bits", "--json")
    assert result.code == 0
    facts = json.loads(result.out)
    assert facts["bits"] == 2
    assert facts["agreement"] >= 0.99
    assert facts["raised"]


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--bits", 4), "--bits and --data belong together"), (("--bits", 7), "--bits 7")],
)
def test_bits_that_cannot_be_measured_or_are_none_are_refused(
    macai, folder, adapter, tmp_path, options, message
):
    command = ("fuse", "--model", folder, "--adapter", adapter, "--out", tmp_path / "out")
    result = macai(*command, *options)
    assert result.code == 1
    assert message in result.err
