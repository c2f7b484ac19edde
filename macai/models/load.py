"""Open a Hugging Face model directory with mlx-lm's model classes; nothing here downloads."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map, tree_map_with_path

from macai.errors import FormatError, ModelError


class Tokenized(Protocol):
    """What turns text into ids and back, and knows which ids end a reply: see LoadedModel."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def path(self) -> Path: ...
    @property
    def eos_token_ids(self) -> frozenset[int]: ...


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """The tokenizer of a folder without its model: an exported bundle's."""

    tokenizer: Any
    path: Path
    eos_token_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, with what belongs to it.

    Attributes:
        model: An mlx-lm model: int32 [B, L] and an optional list of caches -> logits [B, L, V].
        tokenizer: mlx-lm's TokenizerWrapper around the Hugging Face tokenizer.
        config: The parsed config.json.
        path: The directory it came from.
        eos_token_ids: Every id that ends a reply: of the config, the generation config, the
            tokenizer, and the end-of-turn mark of the chat template.
    """

    model: nn.Module
    tokenizer: Any
    config: dict[str, Any]
    path: Path
    eos_token_ids: frozenset[int]


def load_model(path: Path, *, as_stored: bool = False) -> LoadedModel:
    """Load the model and the tokenizer of a Hugging Face directory.

    On the CPU backend all weights become float32: MLX's half-precision and quantised matrix
    products are scalar there, some thirty times slower. On the GPU they stay as stored.

    Args:
        path: The directory.
        as_stored: Leave the weights as they are, and not yet read: to export, not to compute.

    Raises:
        ModelError: config, weights or tokenizer are missing or do not fit each other.
    """
    config = read_config(path)
    model = load_network(path, as_stored=as_stored)
    tokenizer = load_tokenizer(path)
    return LoadedModel(model, tokenizer, config, path, end_ids(path, config, tokenizer))


def load_network(path: Path, *, as_stored: bool = False) -> nn.Module:
    """Return the model alone, as `load_model` does; its config must have been read before."""
    from mlx_lm.utils import load_model as load_weights

    try:
        model, _ = load_weights(path, lazy=True)  # its config is ours with keys changed
        if not as_stored:
            if mx.default_device() == mx.cpu:
                dequantise(model)
                model.update(tree_map_with_path(_to_float32, model.parameters()))
            mx.eval(model.parameters())
    except FileNotFoundError as e:
        raise ModelError(
            f"{path}: no model*.safetensors in it", hint="is the copy complete?"
        ) from e
    except Exception as e:  # each of mlx-lm's models reads config and weights in its own way
        raise ModelError(
            f"{path}: the model cannot be built from its files: {_reason(e)}",
            hint="is the copy complete, and its architecture one that mlx-lm knows?",
        ) from e
    return model


def load_tokenized(path: Path) -> LoadedTokenizer:
    """Load the tokenizer of a folder, and the ids that end a reply by its configs."""
    tokenizer = load_tokenizer(path)
    return LoadedTokenizer(tokenizer, path, end_ids(path, read_config(path), tokenizer))


def read_config(path: Path) -> dict[str, Any]:
    """Return the parsed config.json of a model directory; ModelError if there is none."""
    file = path / "config.json"
    if not path.is_dir():
        raise ModelError(f"{path}: no such model directory")
    if not file.is_file():
        raise ModelError(
            f"{path}: no config.json in it", hint="a model directory holds config.json"
        )
    config = _read_json(file)
    if not isinstance(config.get("model_type"), str):
        raise FormatError(f"{file}: no model_type in it")
    if "model_file" in config:
        raise ModelError(
            f"{path}: brings code of its own ({config['model_file']})",
            hint="macai runs no code from a model's folder",
        )
    return config


def load_tokenizer(path: Path) -> Any:
    """Return mlx-lm's TokenizerWrapper for the tokenizer files in `path`."""
    from mlx_lm.tokenizer_utils import load

    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ModelError(f"{path}: neither tokenizer.json nor tokenizer.model in it")
    try:
        return load(path)
    except Exception as e:  # the tokenizers library raises bare Exception on a broken file
        raise FormatError(f"{path}: the tokenizer cannot be read: {_reason(e)}") from e


def end_ids(path: Path, config: dict[str, Any], tokenizer: Any) -> frozenset[int]:
    """Return every token id that ends a reply of this model."""
    ends = set(tokenizer.eos_token_ids)
    file = path / "generation_config.json"
    generation = _read_json(file) if file.is_file() else {}
    for value in (config.get("eos_token_id"), generation.get("eos_token_id")):
        ends.update([value] if isinstance(value, int) else value or [])
    ends.update(_end_of_turn(tokenizer))
    return frozenset(ends)


def dequantise(model: nn.Module) -> None:
    """Replace quantised linear and embedding layers by float32 ones, in place."""
    model.update_modules(tree_map(_plain, model.leaf_modules(), is_leaf=nn.Module.is_module))


def dense_weight(linear: nn.Module) -> mx.array:
    """Return the weight of a plain or quantised linear layer or embedding, float32 [out, in]."""
    holder = nn.Module()
    holder.layer = linear
    dequantise(holder)
    weight: mx.array = holder.layer.weight
    return weight.astype(mx.float32)


def _plain(module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
        return module
    scales, biases = module.scales, module.get("biases")
    if biases is not None:  # affine: float16 scales are exact numbers, products of them are not
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    weight = mx.dequantize(
        module.weight, scales, biases, module.group_size, module.bits, module.mode
    ).astype(mx.float32)
    plain: nn.Module
    if isinstance(module, nn.QuantizedEmbedding):
        plain = nn.Embedding(1, 1)
    else:
        plain = nn.Linear(1, 1, bias="bias" in module)
        if "bias" in module:
            plain.bias = module.bias
    plain.weight = weight
    return plain


def _to_float32(_: str, value: mx.array) -> mx.array:
    return value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value


def _end_of_turn(tokenizer: Any) -> set[int]:
    """The special token the template writes right after an assistant's text."""
    if not tokenizer.has_chat_template:
        return set()
    mark = "zq9"  # no template produces it
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # a template may refuse such a conversation; then it tells nothing
        return set()
    after = tokenizer.encode(text.rpartition(mark)[2].lstrip(), add_special_tokens=False)
    # Not `all_special_ids`: they are those with a role, which Gemma's <end_of_turn> has not.
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {after[0]} & special if after else set()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise FormatError(f"{file}: not valid JSON: {_reason(e)}") from e
    if not isinstance(value, dict):
        raise FormatError(f"{file}: not a JSON object")
    return value


def _reason(error: BaseException) -> str:
    """Return the beginning of its message: MLX puts what is missing on a second line."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    text = " ".join(lines[:2]).rstrip(",")[:300]
    return text if " " in text else f"{type(error).__name__}: {text}"  # a KeyError is but a key
