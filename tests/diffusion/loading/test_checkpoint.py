"""Loading a component: types, bits, memory, and weights that cannot be used."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macai.diffusion.loading import Models, open_checkpoint
from macai.diffusion.loading.contents import kind_of
from macai.diffusion.loading.known_configs import UNETS
from macai.diffusion.models.quantised import QuantizedLinear
from macai.errors import ModelError, UsageError
from macai.models.arrays import load_arrays, named_arrays
from tests.diffusion.loading.cases import (
    assert_same_weights,
    random_model,
    torch_weights,
    write_safetensors,
)

UNET_FILE = Path("unet/diffusion_pytorch_model.safetensors")


def change(file: Path, **values: float) -> None:
    """Set the second number of some tensors; "__" stands for a dot."""
    arrays, _ = load_arrays(file)
    found = {name: np.array(value) for name, value in arrays.items()}
    for name, value in values.items():
        found[name.replace("__", ".")].reshape(-1)[1] = value
    write_safetensors(file, found)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_weights_are_of_the_type_that_was_asked_for(
    folder: Path, models: Models, component: str, dtype: str
) -> None:
    checkpoint = open_checkpoint(folder, dtype=dtype)
    model = checkpoint.load(component)
    wanted = getattr(mx, dtype)
    found = named_arrays(model.parameters())
    assert {value.dtype for value in found.values()} == {wanted}
    for name, value in named_arrays(models.load(component).parameters()).items():
        assert mx.array_equal(found[name], value.astype(wanted)), name
    assert checkpoint.bytes(component) == sum(v.nbytes for v in found.values())
    assert not model.training


def test_a_type_of_its_own_is_for_one_component(folder: Path, models: Models) -> None:
    checkpoint = open_checkpoint(folder, dtype="float16", quantize=8)
    assert checkpoint.load("vae", dtype="float32").encoder.conv_in.weight.dtype == mx.float32
    assert checkpoint.load("unet").conv_in.weight.dtype == mx.float16


@pytest.mark.parametrize("bits", [8, 4])
def test_linear_layers_are_quantised_and_what_must_not_be_is_not(
    folder: Path, models: Models, bits: int
) -> None:
    checkpoint = open_checkpoint(folder, quantize=bits)
    model = checkpoint.load("unet")
    plain = models.load("unet")
    kinds = {path: type(module) for path, module in model.named_modules()}
    linears = [p for p, m in plain.named_modules() if isinstance(m, nn.Linear)]
    quantised = [path for path in linears if kinds[path] is QuantizedLinear]
    left = {path for path in linears if kinds[path] is nn.Linear}
    # 16 inputs of the text are too few for a scale.
    assert left == {
        "time_embedding.linear_1",
        "time_embedding.linear_2",
        *(p for p in linears if ".attn2.to_k" in p or ".attn2.to_v" in p),
    }
    assert len(quantised) > 20
    modules = dict(plain.named_modules())
    for path in quantised:
        layer = dict(model.named_modules())[path]
        packed, scales, biases = mx.quantize(
            modules[path].weight, group_size=layer.group_size, bits=bits
        )
        assert mx.array_equal(layer.weight, packed)
        assert mx.array_equal(layer.scales, scales)
        assert mx.array_equal(layer.biases, biases)
        assert layer.bits == bits
        assert layer.group_size == (64 if modules[path].weight.shape[1] % 64 == 0 else 32)
    assert checkpoint.bytes("unet") == sum(
        value.nbytes for value in named_arrays(model.parameters()).values()
    )
    assert_same_weights(checkpoint.load("vae"), models.load("vae"))


def test_a_quantised_component_computes_nearly_the_same(folder: Path, models: Models) -> None:
    x, text = mx.random.normal((1, 8, 8, 4)), mx.random.normal((1, 5, 16))
    exact = models.load("unet")(x, 500, text)
    rounded = open_checkpoint(folder, quantize=8).load("unet")(x, 500, text)
    error = mx.abs(rounded - exact).max() / mx.abs(exact).max()
    assert 0 < error.item() < 0.02


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_an_unpacked_weight_gives_what_the_packed_one_does(dtype: mx.Dtype) -> None:
    layer = QuantizedLinear.from_linear(nn.Linear(64, 96), 32, 4)
    layer.set_dtype(dtype)
    x = mx.random.normal((2, 5, 64)).astype(dtype)
    ours, packed = layer(x), nn.QuantizedLinear.__call__(layer, x)
    assert ours.dtype == packed.dtype == dtype
    assert mx.allclose(ours, packed, rtol=0, atol=1e-2 if dtype == mx.float16 else 1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, models: Models, value: float) -> None:
    change(folder / UNET_FILE, conv_out__bias=value, mid_block__resnets__0__norm1__weight=value)
    with pytest.raises(ModelError) as caught:
        open_checkpoint(folder).load("unet")
    assert "2 tensors have NaN or infinity in them" in caught.value.message
    assert "conv_out.bias" in caught.value.message
    assert "mid_block.resnets.0.norm1.weight" in caught.value.message
    assert caught.value.hint is not None
    open_checkpoint(folder).load("vae")


def test_weights_that_float16_cannot_hold_are_named(folder: Path, models: Models) -> None:
    change(folder / UNET_FILE, conv_out__bias=1e5, conv_in__bias=65504)
    with pytest.raises(ModelError, match=r"1 tensors have numbers too large.*\(conv_out\.bias\)"):
        open_checkpoint(folder, dtype="float16").load("unet")
    for dtype in ("float32", "bfloat16"):
        open_checkpoint(folder, dtype=dtype).load("unet")


def test_weights_of_another_config_are_refused(folder: Path, models: Models) -> None:
    wide = random_model(models.configs["unet"] | {"cross_attention_dim": 24})
    write_safetensors(folder / UNET_FILE, torch_weights(wide))
    with pytest.raises(ModelError, match=r"unet: \d+ have another shape .*\[\d+, 24\], not"):
        open_checkpoint(folder).load("unet")


def test_a_component_that_is_not_there_is_named(folder: Path, models: Models) -> None:
    with pytest.raises(ModelError, match="no text_encoder_2 in it"):
        open_checkpoint(folder).load("text_encoder_2")


def test_a_config_that_is_not_supported_names_its_file(folder: Path, models: Models) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace('"DownBlock2D"', '"AttnDownBlock2D"'))
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model\.safetensors: .*AttnDown"):
        open_checkpoint(folder).load("unet")


@pytest.mark.parametrize(
    ("component", "changes", "said"),
    [
        ("text_encoder", {"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
        ("unet", {"layers_per_block": 10**9}, "layers_per_block = 1000000000"),
        ("unet", {"transformer_layers_per_block": [1, 10**9]}, "transformer_layers_per_block"),
        ("vae", {"block_out_channels": [2**40, 32]}, "block_out_channels"),
        ("vae", {"latent_channels": -1}, "no model can be built of its config"),
        ("text_encoder", {"intermediate_size": 0}, "no model can be built of its config"),
    ],
)
def test_a_config_of_absurd_sizes_builds_nothing(
    folder: Path, models: Models, component: str, changes: dict[str, Any], said: str
) -> None:
    config = folder / component / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ModelError, match=said):
        open_checkpoint(folder).load(component)


def test_wishes_that_cannot_be_are_refused(folder: Path, models: Models) -> None:
    with pytest.raises(UsageError, match="'float8' is no type"):
        open_checkpoint(folder, dtype="float8")
    with pytest.raises(UsageError, match="3 bits cannot be had"):
        open_checkpoint(folder, quantize=3)
    with pytest.raises(UsageError, match="'sd9' is no version"):
        open_checkpoint(folder, kind="sd9")


def test_the_folders_own_tokenizer_is_taken(folder: Path, models: Models) -> None:
    checkpoint = open_checkpoint(folder)
    own = checkpoint.tokenizer("text_encoder")
    assert own.encode("a red apple") == models.tokenizer("text_encoder").encode("a red apple")
    assert own.pad_id == own.end_id
    (folder / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(ModelError):
        checkpoint.tokenizer("text_encoder")


@pytest.mark.parametrize("kind", UNETS)
def test_a_folder_of_a_published_model_is_of_its_version(kind: str) -> None:
    assert kind_of({"unet": UNETS[kind]}) == kind
    told = dict(UNETS[kind])
    told.setdefault("transformer_layers_per_block", 1)
    assert kind_of({"unet": told}) == kind
    assert kind_of({"unet": told | {"cross_attention_dim": 999}}) == "custom"
    assert kind_of({"controlnet": told}) == kind
    assert kind_of({"vae": {}}) == "custom"


def test_a_tokenizer_with_more_tokens_than_its_encoder_is_refused(folder: Path, tmp_path: Path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "text_encoder" / "config.json").read_text())
    shrunk = config | {"vocab_size": 300}
    (other / "text_encoder" / "config.json").write_text(json.dumps(shrunk))
    with pytest.raises(ModelError, match="its text_encoder knows 300"):
        open_checkpoint(other).tokenizer("text_encoder")
