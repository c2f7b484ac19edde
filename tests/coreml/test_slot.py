"""A package with a slot: zeros are the plain model to the last bit, an adapter is the tuned one."""

import json
import shutil
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import qwen2

from macai.bench.architectures import config_of
from macai.coreml import export_functions
from macai.coreml.adapter_file import write_adapter_file
from macai.coreml.bundle import write_bundle
from macai.coreml.hot_swap import (
    chosen_adapter,
    load_adapter_file,
    open_adapter,
    put_layers,
    random_layers,
)
from macai.coreml.llm import llm_functions
from macai.coreml.manifest import FILE, read_manifest
from macai.coreml.session import ReferenceRunner, Session, open_bundle
from macai.coreml.slot import STATE, SlotOptions, lay_out
from macai.coreml.slot_model import add_slot
from macai.coreml.verify import verify_package
from macai.errors import AdapterError, PackageError, UsageError
from macai.mil import open_package
from macai.models.load import load_model
from tests.adapters import adapt, save
from tests.tiny import tiny_model_dir

OPTIONS = {"name": "Tiny", "source": {"model": "tiny"}, "context": 64, "prefill": [8]}
IDS = [5, 80, 33, 7, 260, 9, 41, 17, 300, 77, 120, 8, 55, 401, 3]


def write(tiny_dir, folder, **options):
    folder.mkdir(parents=True)
    write_bundle(load_model(tiny_dir, as_stored=True), folder, **(OPTIONS | options))
    return folder


@pytest.fixture(scope="module")
def plain(tiny_dir, tmp_path_factory):
    return write(tiny_dir, tmp_path_factory.mktemp("plain") / "b")


@pytest.fixture(scope="module")
def bundle(tiny_dir, tmp_path_factory):
    """A bundle with room for rank 6."""
    return write(tiny_dir, tmp_path_factory.mktemp("slot") / "b", slot=SlotOptions(rank=6))


@pytest.fixture(scope="module")
def trained(tiny_dir, tmp_path_factory):
    """The folder of an adapter of rank 4 on all linear layers."""
    return save(adapt(load_model(tiny_dir)), tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture
def slot(bundle):
    return read_manifest(bundle).slot


def said(folder, precision="fp32", held=None):
    """What a bundle says token by token after a chunk, [tokens, V]."""
    manifest, package = open_bundle(folder)
    session = Session(manifest, ReferenceRunner(package, precision, held))
    rows = [session.feed(IDS[:8])]
    return np.array(rows + [session.feed([n]) for n in IDS[8:]])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_empty_slot_is_the_plain_model_to_the_last_bit(plain, bundle, precision):
    np.testing.assert_array_equal(said(bundle, precision), said(plain, precision))


def test_an_adapter_in_the_slot_is_the_tuned_model(bundle, slot, tiny, trained):
    held = slot.fill(open_adapter(trained, slot).layers)
    base = verify_package(tiny, *open_bundle(bundle), IDS, tokens=4, held=held)
    assert not base["passed"]
    adapt(tiny)
    report = verify_package(tiny, *open_bundle(bundle), IDS, tokens=4, held=held)
    assert report["passed"], report["problems"]
    assert report["functions"]["decode"]["kl"] < 1e-5


@pytest.mark.parametrize(
    "targets", [("q_proj", "v_proj"), ("down_proj",), ("layers.1.mlp.up_proj",)]
)
def test_layers_without_an_adapter_stay_plain(bundle, slot, tiny_dir, tmp_path, targets):
    tuned = adapt(load_model(tiny_dir), targets)
    adapter = open_adapter(save(tuned, tmp_path / "few"), slot)
    held = slot.fill(adapter.layers)
    assert len(adapter.layers) < len(slot.layers)
    report = verify_package(tuned, *open_bundle(bundle), IDS, tokens=4, held=held)
    assert report["passed"], report["problems"]


def test_the_file_holds_what_the_folder_does(bundle, slot, tiny, trained, tmp_path):
    write_adapter_file(tmp_path / "a.macaiadapter", open_adapter(trained, slot))
    again = open_adapter(tmp_path / "a.macaiadapter", slot)
    load_adapter_file(tiny, tmp_path / "a.macaiadapter")
    held = slot.fill(again.layers)
    np.testing.assert_array_equal(held[STATE], slot.fill(open_adapter(trained, slot).layers)[STATE])
    report = verify_package(tiny, *open_bundle(bundle), IDS, tokens=4, held=held)
    assert report["passed"], report["problems"]


def test_one_matrix_in_a_wrong_place_is_noticed(bundle, slot, tiny):
    layers = random_layers(slot)
    put_layers(tiny.model, layers)
    held = slot.fill(layers)
    assert verify_package(tiny, *open_bundle(bundle), IDS, tokens=4, held=held)["passed"]
    place = slot.layers["model.layers.1.self_attn.k_proj"]
    flat = held[STATE].reshape(-1)
    flat[place.b : place.b + 6 * 32] = np.roll(flat[place.b : place.b + 6 * 32], 32)
    assert not verify_package(tiny, *open_bundle(bundle), IDS, tokens=4, held=held)["passed"]


def test_a_float32_package_takes_an_adapter(tiny_dir, tmp_path, trained):
    folder = write(tiny_dir, tmp_path / "b", slot=SlotOptions(rank=4), precision="fp32")
    slot = read_manifest(folder).slot
    held = slot.fill(open_adapter(trained, slot).layers)
    tuned = adapt(load_model(tiny_dir))
    report = verify_package(tuned, *open_bundle(folder), IDS, tokens=4, held=held)
    assert report["passed"], report["problems"]
    assert report["functions"]["decode"]["kl"] < 1e-6


def with_biases(*, quantised):
    config = qwen2.ModelArgs.from_dict(config_of("qwen2", {}))
    model = qwen2.Model(config)
    for layer in model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            layer.self_attn[name].bias = mx.random.normal(layer.self_attn[name].bias.shape)
    if quantised:
        nn.quantize(model, group_size=32, bits=4)
    mx.eval(model.parameters())
    return model


@pytest.mark.parametrize("quantised", [False, True])
def test_a_model_with_biases_and_quantised_weights_takes_an_adapter(tmp_path, quantised):
    model, again = with_biases(quantised=quantised), with_biases(quantised=quantised)
    again.update(model.parameters())
    reader = add_slot(model, SlotOptions(rank=4), {})
    layers = random_layers(reader.slot)
    put_layers(again, layers)
    functions = llm_functions(model, context=32, prefill=[4], precision="fp32", slot=reader)
    export_functions(functions, tmp_path / "p.mlpackage", default="decode")
    package = open_package(tmp_path / "p.mlpackage")
    state = package.make_state("decode") | reader.slot.fill(layers)

    def logits(function, position, ids, **inputs):
        inputs |= {"inputIds": np.array([ids]), "position": np.array([position])}
        return package.functions[function].run(inputs, state=state).outputs["logits"][0, 0]

    ids = [3, 70, 41, 7, 22]
    got = [logits("prefill", 0, ids[:4], last=np.array([3])), logits("decode", 4, ids[4:])]
    wanted = np.array(again(mx.array([ids]))[0, 3:])
    np.testing.assert_allclose(got, wanted, atol=1e-3 * np.abs(wanted).max())


def test_layers_that_read_one_value_share_their_first_product(bundle, plain):
    def count(folder, kind):
        operations = open_bundle(folder)[1].functions["decode"].operations
        return sum(op.type == kind for op in operations)

    # Four first products a layer (q k v, o, gate up, down) and seven second ones, two layers.
    assert count(bundle, "matmul") - count(plain, "matmul") == 2 * (4 + 7)
    assert count(bundle, "transpose") == count(plain, "transpose")
    assert count(bundle, "write_state") == count(plain, "write_state")


def test_a_slot_costs_only_text_of_the_program(bundle, plain):
    def weights(folder):
        return next(folder.rglob("weight.bin")).stat().st_size

    assert weights(bundle) == weights(plain)


def test_a_slot_is_only_for_the_layers_that_are_asked_for(tiny_dir, tmp_path, trained):
    options = SlotOptions(rank=4, targets=("q_proj", "v_proj"))
    slot = read_manifest(write(tiny_dir, tmp_path / "b", slot=options)).slot
    assert {path.rpartition(".")[2] for path in slot.layers} == {"q_proj", "v_proj"}
    with pytest.raises(AdapterError, match=r"no room for model\.layers\.0\.mlp\.down_proj \(10"):
        open_adapter(trained, slot)
    own = save(adapt(load_model(tiny_dir), ("q_proj", "v_proj")), tmp_path / "own")
    assert len(open_adapter(own, slot).layers) == 4
    with pytest.raises(UsageError, match="no linear layer is called 'nowhere'"):
        write(tiny_dir, tmp_path / "c", slot=SlotOptions(rank=4, targets=("nowhere",)))


def test_a_higher_rank_is_refused_and_a_lower_one_is_the_same_model(
    tiny_dir, slot, tiny, bundle, tmp_path
):
    big = save(adapt(load_model(tiny_dir), rank=7), tmp_path / "big")
    with pytest.raises(AdapterError, match="rank 7, and the package has room for rank 6") as error:
        open_adapter(big, slot)
    assert error.value.hint == "export the model with --adapter-slot 7"
    small = save(adapt(tiny, rank=1), tmp_path / "small")
    held = slot.fill(open_adapter(small, slot).layers)
    report = verify_package(tiny, *open_bundle(bundle), IDS, tokens=4, held=held)
    assert report["passed"], report["problems"]


def test_the_adapter_of_another_base_is_refused(slot, tmp_path):
    other = load_model(tiny_model_dir(tmp_path / "other", seed=9))
    folder = save(adapt(other), tmp_path / "a")
    with pytest.raises(AdapterError, match="made for another model: its weights differ"):
        open_adapter(folder, slot)


def test_a_folder_that_names_no_base_is_taken_for_one_of_this(slot, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "a")
    config = json.loads((trained / "adapter_config.json").read_text())
    del config["macai"]
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config))
    assert open_adapter(tmp_path / "a", slot).base == slot.base


def test_an_incomplete_folder_is_refused(slot, tiny_dir, tmp_path):
    folder = save(adapt(load_model(tiny_dir)), tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    arrays = mx.load(str(file))
    kept = {k: v for k, v in arrays.items() if "layers.1.mlp.up_proj" not in k}
    mx.eval(kept)
    mx.save_safetensors(str(file), kept)
    with pytest.raises(AdapterError, match=r"names model\.layers\.1\.mlp\.up_proj.*nothing for it"):
        open_adapter(folder, slot)


def test_numbers_beyond_float16_are_named(slot, tiny_dir, tmp_path):
    tuned = adapt(load_model(tiny_dir))
    layer = tuned.model.layers[0].mlp.down_proj
    layer.lora_B = layer.lora_B * 1e6
    with pytest.raises(AdapterError, match=r"layers\.0\.mlp\.down_proj is not finite in float16"):
        open_adapter(save(tuned, tmp_path / "a"), slot)


def test_a_bundle_without_a_slot_says_so(plain, bundle, trained):
    with pytest.raises(PackageError, match="no room for an adapter at run time"):
        chosen_adapter(read_manifest(plain), str(trained))
    name, held = chosen_adapter(read_manifest(bundle), str(trained))
    assert name is None
    assert list(held) == [STATE]
    assert chosen_adapter(read_manifest(bundle), None) == (None, {})


def test_matrices_lie_one_behind_another():
    sizes = {"a": (8, 12), "b": (4, 12), "c": (12, 8)}
    slot = lay_out([["a", "b"], ["c"]], sizes, rank=3, base={})
    ends = sorted(
        (start, start + 3 * size)
        for p in slot.layers.values()
        for start, size in ((p.a, p.inputs), (p.b, p.outputs))
    )
    assert ends[0][0] == 0
    assert all(end == start for (_, end), (start, _) in pairwise(ends))
    rows, width = slot.shape
    assert rows % 32 == 0
    assert rows * width >= ends[-1][1]
    assert all(start % width == 0 for start, _ in ends)
    assert slot.layers["b"].a == slot.layers["a"].a + 3 * 12  # one matrix for both


def test_no_axis_of_the_state_is_longer_than_16384():
    sizes = {f"l{n}": (32768, 32768) for n in range(4)}
    slot = lay_out([[path] for path in sizes], sizes, rank=16, base={})
    assert slot.shape == (256, 16384)


def test_a_slot_for_nothing_is_refused():
    with pytest.raises(UsageError, match="needs a rank"):
        lay_out([], {}, rank=4, base={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "above 0"),
        ({"rank": 100}, "behind its state's end"),
        ({"shape": [64]}, "not a manifest"),
        ({"layers": {"x": {"inputs": 1}}}, "not a manifest"),
        ({"layers": []}, "not a manifest"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_slot_in_the_manifest_is_one_clear_error(bundle, tmp_path, change, message):
    value = json.loads((bundle / FILE).read_text())
    value["slot"] |= change
    (tmp_path / FILE).write_text(json.dumps(value))
    with pytest.raises(PackageError, match=message):
        read_manifest(tmp_path)


def test_a_slot_that_the_package_has_not_is_refused(bundle, plain, tmp_path):
    shutil.copytree(plain, tmp_path / "b")
    value = json.loads((tmp_path / "b" / FILE).read_text())
    value["slot"] = json.loads((bundle / FILE).read_text())["slot"]
    (tmp_path / "b" / FILE).write_text(json.dumps(value))
    with pytest.raises(PackageError, match="has no state adapter"):
        open_bundle(tmp_path / "b")
