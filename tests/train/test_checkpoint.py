import json

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

from macai.errors import TrainingError
from macai.models.arrays import named_arrays
from macai.models.lora import add_lora, target_paths
from macai.train import checkpoint
from macai.train.checkpoint import FILE, load_checkpoint, restore, save_checkpoint
from macai.train.optimizer import init, joined, update

STATE = {"progress": {"step": 7, "loss": 0.1 + 0.2, "best": None}, "run": {"data": "äöü"}}


@pytest.fixture
def optimizer():
    return optim.AdamW(learning_rate=1e-3, bias_correction=True)


def trained(model, optimizer):
    """Give the optimiser a state that is not the initial one."""
    init(optimizer, model)
    for _ in range(3):
        update(optimizer, model, joined(model.trainable_parameters()))
    mx.eval(model.parameters(), optimizer.state)
    return model


def state_of(model, optimizer):
    return {
        k: np.array(v)
        for part in (model.trainable_parameters(), optimizer.state)
        for k, v in named_arrays(part).items()
    }


def same(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and (a[k] == b[k]).all() for k in a
    )


def test_what_was_saved_comes_back_to_the_last_bit(adapted, optimizer, tmp_path):
    model = trained(adapted(), optimizer)
    save_checkpoint(tmp_path, model, optimizer, STATE)
    saved = state_of(model, optimizer)
    fresh = optim.AdamW(learning_rate=0.5, bias_correction=True)
    loaded = load_checkpoint(tmp_path)
    restore(loaded, adapted(), fresh)
    assert loaded.state == STATE
    assert same(state_of(model, fresh), saved)


def test_the_next_step_is_the_same_as_without_a_stop(adapted, optimizer, tmp_path):
    model = trained(adapted(), optimizer)
    save_checkpoint(tmp_path, model, optimizer, STATE)
    grads = {k: v * 0.5 for k, v in named_arrays(model.trainable_parameters()).items()}

    def step(optimizer):
        update(optimizer, model, joined(grads))
        mx.eval(model.parameters(), optimizer.state)
        return state_of(model, optimizer)

    expected = step(optimizer)
    fresh = optim.AdamW(learning_rate=0.5, bias_correction=True)
    restore(load_checkpoint(tmp_path), adapted(), fresh)
    assert same(step(fresh), expected)


def test_there_is_one_file_and_only_the_adapter_and_its_moments_are_in_it(
    adapted, optimizer, tmp_path
):
    model = trained(adapted(), optimizer)
    save_checkpoint(tmp_path, model, optimizer, STATE)
    assert [p.name for p in tmp_path.iterdir()] == [FILE]
    arrays = load_checkpoint(tmp_path).arrays
    learnt = len(named_arrays(model.trainable_parameters()))
    assert len(arrays) == learnt + 4  # with both moments, the step and the rate


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(TrainingError, match="no checkpoint to resume from") as caught:
        load_checkpoint(tmp_path / "nowhere")
    assert caught.value.hint == "start anew: leave out --resume"


def broken_files(good):
    header = int.from_bytes(good[:8], "little")
    yield "empty", b""
    yield "a few bytes", good[:5]
    yield "half a header", good[: 8 + header // 2]
    yield "a header alone", good[: 8 + header]
    yield "the last byte missing", good[:-1]
    yield "a byte changed", good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
    yield "an absurd length", b"\xff" * 8 + good[8:]
    yield "text", b"not a checkpoint at all, but long enough to have a length"
    for key, value in (("__metadata__", {}), ("__metadata__", {"macai": "{"})):
        parsed = json.loads(good[8 : 8 + header]) | {key: value}
        text = json.dumps(parsed).encode()
        yield f"metadata {value}", len(text).to_bytes(8, "little") + text + good[8 + header :]


def test_a_broken_checkpoint_is_refused(adapted, optimizer, tmp_path):
    save_checkpoint(tmp_path, trained(adapted(), optimizer), optimizer, STATE)
    file = tmp_path / FILE
    for what, content in broken_files(file.read_bytes()):
        file.write_bytes(content)
        with pytest.raises(TrainingError, match="not a checkpoint of macai train") as caught:
            pytest.fail(f"{what}: {load_checkpoint(tmp_path)}")
        assert "--force" in caught.value.hint


def test_a_checkpoint_of_another_shape_is_refused_and_named(adapted, tiny, optimizer, tmp_path):
    save_checkpoint(tmp_path, trained(adapted(), optimizer), optimizer, STATE)
    loaded = load_checkpoint(tmp_path)
    name = sorted(k for k in loaded.arrays if k.startswith("model."))[0]
    loaded.arrays[name] = loaded.arrays[name][:1]
    with pytest.raises(TrainingError, match=f"{name} differs") as caught:
        restore(loaded, tiny.model, optimizer)
    assert "the recipe it was started with" in caught.value.hint


@pytest.mark.parametrize("part", ["model.", "optimizer."])
@pytest.mark.parametrize("missing", [True, False])
def test_a_name_too_few_or_too_many_is_refused(adapted, optimizer, tmp_path, part, missing):
    model = trained(adapted(), optimizer)
    save_checkpoint(tmp_path, model, optimizer, STATE)
    loaded = load_checkpoint(tmp_path)
    name = sorted(k for k in loaded.arrays if k.startswith(part) and loaded.arrays[k].ndim)[0]
    if missing:
        del loaded.arrays[name]
    else:
        loaded.arrays[name + "x"] = mx.zeros(1)
    with pytest.raises(TrainingError, match=f"{name}x? differs"):
        restore(loaded, model, optimizer)


def test_layers_the_checkpoint_lacks_are_noticed(adapted, tiny, optimizer, tmp_path):
    save_checkpoint(tmp_path, trained(adapted(), optimizer), optimizer, STATE)
    add_lora(tiny.model, target_paths(tiny.model, ["v_proj"]), rank=4, alpha=8.0)
    with pytest.raises(TrainingError, match="the checkpoint does not fit the run"):
        restore(load_checkpoint(tmp_path), tiny.model, optimizer)


def test_a_write_that_fails_leaves_the_earlier_one(adapted, optimizer, tmp_path, monkeypatch):
    model = trained(adapted(), optimizer)
    save_checkpoint(tmp_path, model, optimizer, STATE)
    before = (tmp_path / FILE).read_bytes()
    real = mx.save_safetensors

    def cut_short(file, arrays, **options):
        real(file, dict(list(arrays.items())[:1]), **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.mx, "save_safetensors", cut_short)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, model, optimizer, {"step": 8})
    assert (tmp_path / FILE).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [FILE]
