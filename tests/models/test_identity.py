import json
import shutil
from dataclasses import asdict

import mlx.core as mx
import pytest

from macai.errors import FormatError
from macai.models.identity import SAMPLE_BYTES, Identity, identify
from macai.models.load import load_model

TEMPLATE = "{{ messages }}"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny_dir, tmp_path):
    return shutil.copytree(tiny_dir, tmp_path / "model")


def weights_of(folder):
    weights = mx.load(str(folder / WEIGHTS))
    mx.eval(weights)
    return weights


def differing(a, b):
    return [name for name, value in asdict(a).items() if getattr(b, name) != value]


def test_the_same_model_has_the_same_identity_wherever_it_lies(tiny_dir, folder):
    first = identify(tiny_dir, chat_template=TEMPLATE)
    assert identify(folder, chat_template=TEMPLATE) == first
    assert Identity(**json.loads(json.dumps(first.to_json()))) == first
    assert all(len(value) == 32 for value in first.to_json().values())


def test_a_sharded_copy_is_the_same_model(folder):
    before = identify(folder, chat_template=TEMPLATE)
    weights = weights_of(folder)
    (folder / WEIGHTS).unlink()
    names = sorted(weights, reverse=True)  # another order, too
    for number, part in enumerate((names[:5], names[5:]), 1):
        shard = {name: weights[name] for name in part}
        file = folder / f"model-{number:05}-of-00002.safetensors"
        mx.save_safetensors(str(file), shard, metadata={"another": "header"})
    assert load_model(folder).model is not None
    assert identify(folder, chat_template=TEMPLATE) == before


@pytest.mark.parametrize("place", [(0, 0), (-1, -1)])
def test_another_value_in_any_tensor_changes_the_weights_hash_only(folder, place):
    before = identify(folder, chat_template=TEMPLATE)
    original = weights_of(folder)
    for name in original:
        weights = dict(original)
        flat = mx.array(weights[name]).reshape(-1)
        flat[place[0]] = flat[place[0]] + 1
        weights[name] = flat.reshape(weights[name].shape)
        mx.save_safetensors(str(folder / WEIGHTS), weights)
        assert differing(before, identify(folder, chat_template=TEMPLATE)) == ["weights"], name


def test_name_type_and_shape_of_a_tensor_count(folder):
    before = identify(folder, chat_template=TEMPLATE)
    original = weights_of(folder)
    norm = "model.norm.weight"
    rest = {k: v for k, v in original.items() if k != norm}
    for changed in (
        {"model.other.weight": original[norm]},
        {norm: original[norm].view(mx.int32)},
        {norm: original[norm].reshape(1, -1)},
        {},
    ):
        mx.save_safetensors(str(folder / WEIGHTS), rest | changed)
        assert differing(before, identify(folder, chat_template=TEMPLATE)) == ["weights"]


def test_the_ends_of_a_large_tensor_are_read_and_small_ones_wholly(tmp_path):
    count = 3 * SAMPLE_BYTES  # float32: 12 times what is sampled at either end
    hashes = set()
    for index in (None, 0, SAMPLE_BYTES // 4 - 1, count - SAMPLE_BYTES // 4, count - 1):
        array = mx.zeros(count)
        if index is not None:
            array[index] = 1
        mx.save_safetensors(str(tmp_path / WEIGHTS), {"a": array})
        hashes.add(identify(tmp_path, chat_template=None).weights)
    assert len(hashes) == 5


def test_another_tokenizer_changes_the_tokenizer_hash_only(folder):
    before = identify(folder, chat_template=TEMPLATE)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    assert differing(before, identify(folder, chat_template=TEMPLATE)) == ["tokenizer"]
    (folder / "tokenizer.model").write_bytes(b"more")
    second = identify(folder, chat_template=TEMPLATE)
    (folder / "tokenizer.model").write_bytes(b"other")
    assert differing(second, identify(folder, chat_template=TEMPLATE)) == ["tokenizer"]


def test_another_template_changes_its_hash_only(folder):
    before = identify(folder, chat_template=TEMPLATE)
    for other in (TEMPLATE + " ", None):
        assert differing(before, identify(folder, chat_template=other)) == ["chat_template"]


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, b"\x03\0\0\0\0\0\0\0{]}"])
def test_a_file_that_is_no_safetensors_is_refused(folder, content):
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(FormatError, match=r"model\.safetensors: (not a saf|its header|it ends)"):
        identify(folder, chat_template=None)
