"""Small models of each kind, and files of them as other programs write them."""

import io
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.diffusion.loading import Models, known_configs, save_folder
from macai.diffusion.loading.coverage import torch_shapes
from macai.diffusion.loading.sources import MakeTable
from macai.diffusion.models import from_config
from macai.diffusion.models.layout import to_torch
from macai.diffusion.tokenizer import ClipTokenizer
from macai.models.arrays import named_arrays
from macai.models.stored import StoredTensor

GOLDENS = Path(__file__).parents[2] / "goldens"

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "sample_size": 8,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 8,
}
TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "vocab_size": 49408,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 16,
    "max_position_embeddings": 77,
}
SCHEDULER = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "unet": UNET,
    "vae": VAE,
    "text_encoder": TEXT,
    "pipeline": {"_class_name": "StableDiffusionPipeline"},
}


def random_model(config: dict[str, Any], seed: int = 0) -> nn.Module:
    """Return a model all of whose numbers are random: MLX begins with biases of 0."""
    model, rng = from_config(config), np.random.default_rng(seed)
    values = {
        name: mx.array(rng.standard_normal(value.shape, np.float32) * 0.2)
        for name, value in named_arrays(model.parameters()).items()
    }
    model.load_weights(list(values.items()))
    return model


def random_models() -> Models:
    """A pipeline like SD1's, with weights no two of which are alike."""
    components = [name for name in CONFIGS if name != "pipeline"]
    models = {name: random_model(CONFIGS[name], seed) for seed, name in enumerate(components)}
    tokenizers = {"text_encoder": ClipTokenizer.shipped()}
    return Models(models, CONFIGS, SCHEDULER, tokenizers)


def saved(path: Path) -> Models:
    """Save the pipeline to `path` and return it."""
    models = random_models()
    save_folder(models, path)
    return models


def torch_weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Return a model's weights in torch's layout."""
    weights = to_torch(named_arrays(model.parameters()))
    return {name: np.array(value.astype(mx.float32)) for name, value in weights.items()}


def assert_same_weights(model: nn.Module, expected: nn.Module) -> None:
    ours, theirs = torch_weights(model), torch_weights(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def renamed(model: nn.Module, table: MakeTable, squeezed: bool = False) -> dict[str, np.ndarray]:
    """Return a model's weights under the names that a table says a file has them by.

    With `squeezed`, every linear layer of an autoencoder's attention is a 1x1 convolution, as in
    the original layout.
    """
    names = table(torch_shapes(model))
    found: dict[str, np.ndarray] = {}
    for parameter, value in torch_weights(model).items():
        source = names[parameter][0]
        if source.transposed:
            value = value.T
        if squeezed and ".attn_1." in source.name and value.ndim == 2:
            value = value[:, :, None, None]
        if source.third is None:
            found[source.name] = value
        else:
            whole = found.setdefault(source.name, np.zeros((3 * len(value), *value.shape[1:])))
            whole[source.third * len(value) : (source.third + 1) * len(value)] = value
    return {name: value.astype(np.float32) for name, value in found.items()}


def write_safetensors(
    path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> Path:
    made = {name: mx.array(np.ascontiguousarray(value)) for name, value in arrays.items()}
    mx.save_safetensors(str(path), made, metadata=metadata or {})
    return path


def write_archive(path: Path, pickle: bytes, members: dict[str, bytes] | None = None) -> Path:
    """Write an archive as torch does, with `pickle` as its data.pkl."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        for name, data in (members or {}).items():
            archive.writestr(name, data)
    return path


def torch_pickle(arrays: dict[str, np.ndarray]) -> tuple[bytes, dict[str, bytes]]:
    """Return the data.pkl and the storages of a state dict of float32 arrays, without torch."""
    out, members = io.BytesIO(), {}
    out.write(b"\x80\x02}(")
    for number, (name, value) in enumerate(arrays.items()):
        key = str(number)
        members[f"archive/data/{key}"] = np.ascontiguousarray(value, np.float32).tobytes()
        strides = [s // value.itemsize for s in np.ascontiguousarray(value).strides]
        out.write(_text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(")
        out.write(b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(key))
        out.write(_text("cpu") + _int(value.size) + b"tQ" + _int(0))
        out.write(b"(" + b"".join(map(_int, value.shape)) + b"t")
        out.write(b"(" + b"".join(map(_int, strides)) + b"t")
        out.write(b"\x89}tR")
    out.write(b"u.")
    return out.getvalue(), members


def _text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def _int(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def golden_file(kind: str) -> dict[str, StoredTensor]:
    """Return the names and shapes of a whole file, as tensors that are nowhere."""
    golden = np.load(GOLDENS / "ldm_names.npz")
    names = [name.decode() for name in golden[f"{kind}/names"]]
    shapes = [tuple(int(n) for n in row if n >= 0) for row in golden[f"{kind}/shapes"]]
    return {
        name: StoredTensor.contiguous(Path(f"{kind}.safetensors"), name, "F16", shape, 0)
        for name, shape in zip(names, shapes, strict=True)
    }


TINY_XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "use_linear_projection": True,
}
TINY_UNETS = {
    # Widths of the text are the real ones: by them a version is known.
    "sd1": UNET | {"cross_attention_dim": 768},
    "sd2": UNET | {"cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl": UNET
    | TINY_XL
    | {"cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 16 + 6 * 8},
    "sdxl-refiner": UNET
    | TINY_XL
    | {"cross_attention_dim": 1280, "projection_class_embeddings_input_dim": 16 + 5 * 8},
}
PROJECTED = TEXT | {"architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu"}
TINY_TEXTS = {
    "sd1": {"text_encoder": TEXT},
    "sd2": {"text_encoder": TEXT | {"hidden_act": "gelu"}},
    "sdxl": {"text_encoder": TEXT, "text_encoder_2": PROJECTED},
    "sdxl-refiner": {"text_encoder_2": PROJECTED},
}


def make_versions_tiny(monkeypatch: Any) -> None:
    """Put small configs in the place of the published ones."""
    for kind, config in TINY_UNETS.items():
        monkeypatch.setitem(known_configs.UNETS, kind, config)
        monkeypatch.setitem(known_configs.TEXT_ENCODERS, kind, TINY_TEXTS[kind])
    monkeypatch.setattr(
        known_configs,
        "vae",
        lambda kind: VAE | {"scaling_factor": 0.13025 if "xl" in kind else 0.18215},
    )
