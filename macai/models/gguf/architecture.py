"""Check a GGUF file against its architecture's table and write its config.json.

The tables themselves are in `converters/gguf.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from macai.errors import FormatError, ModelError
from macai.models.gguf import rope
from macai.models.gguf.metadata import LARGEST, Metadata
from macai.models.gguf.reader import GGUFFile

MAX_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor goes.

    Attributes:
        name: Its Hugging Face name; below `model.layers.N.` for a layer's tensor.
        shape: Its dimensions by name: hidden, ffn, vocab, q, kv (all heads together), head (one).
        heads: `q` or `kv` when llama.cpp stores a head's two halves of rows interleaved.
    """

    name: str
    shape: tuple[str, ...]
    heads: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture: what GGUF calls things and what Hugging Face calls them.

    Attributes:
        model_type: config.json's `model_type`.
        class_name: config.json's only architecture.
        config: Further entries of config.json.
        tensors: Those outside the layers, by GGUF name.
        layer_tensors: Those of every layer, by GGUF name without `blk.N.`.
        optional: Groups of layer tensors that a model has all or none of, by the config.json flag
            that says so.
        ignored: Metadata keys below the architecture's name that change nothing.
        pre_tokenizers: The only ones it can have, where transformers leaves no choice; else empty.
    """

    model_type: str
    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Slot]
    layer_tensors: Mapping[str, Slot]
    optional: Mapping[str, Mapping[str, Slot]] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    pre_tokenizers: frozenset[str] = frozenset()


UNDERSTOOD = frozenset(
    (
        *rope.KEYS,
        "attention.causal",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "expert_count",
        "expert_used_count",
        "feed_forward_length",
        "vocab_size",
    )
)


def choose(gguf: GGUFFile, architectures: Mapping[str, Architecture]) -> Architecture:
    """Return the table of the file's architecture; ModelError when it has none."""
    metadata = Metadata(gguf)
    kind = metadata.text("general.type", "model")
    if kind != "model":
        raise ModelError(f"{gguf.path}: holds {kind!r}, not a model")
    name = metadata.text("general.architecture")
    if name not in architectures:
        raise ModelError(
            f"{gguf.path}: architecture {name!r} is not supported",
            hint=f"{', '.join(architectures)} are; converters/gguf.py holds their tables",
        )
    architecture = architectures[name]
    pre = Metadata(gguf).text("tokenizer.ggml.pre", "none")
    if architecture.pre_tokenizers and pre not in architecture.pre_tokenizers:
        raise ModelError(
            f"{gguf.path}: pre-tokenizer {pre!r} in a model of architecture {name!r}",
            hint=f"transformers cuts the words of {name} models as {name} does, whatever they say",
        )
    return architecture


def config_of(gguf: GGUFFile, architecture: Architecture) -> dict[str, Any]:
    """Return config.json without token ids and the weights' type."""
    metadata = Metadata(gguf, Metadata(gguf).text("general.architecture") + ".")
    _refuse_unknown(gguf, metadata, architecture)
    heads = metadata.count("attention.head_count")
    hidden = metadata.count("embedding_length")
    if not metadata.has("attention.key_length") and hidden % heads:
        raise metadata.wrong("embedding_length", f"a multiple of {heads} heads")
    head_dim = metadata.count("attention.key_length", hidden // heads)
    if metadata.count("attention.value_length", head_dim) != head_dim:
        raise metadata.wrong("attention.value_length", f"the key length, {head_dim}")
    if head_dim % 2 or metadata.count("rope.dimension_count", head_dim) != head_dim:
        raise metadata.wrong("rope.dimension_count", f"the even head size, {head_dim}")
    kv_heads = metadata.count("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise metadata.wrong("attention.head_count_kv", f"a divisor of {heads} heads")
    base = metadata.number("rope.freq_base", 10000.0)
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "hidden_size": hidden,
        "intermediate_size": metadata.count("feed_forward_length"),
        "num_hidden_layers": metadata.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": _vocabulary_size(gguf),
        "max_position_embeddings": metadata.count("context_length"),
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": base,
        "rope_scaling": rope.rope_scaling(gguf, metadata, base=base, head_dim=head_dim),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        **architecture.config,
        **{flag: _has_any(gguf, group) for flag, group in architecture.optional.items()},
    }


def slots_of(
    gguf: GGUFFile, architecture: Architecture, config: Mapping[str, Any]
) -> dict[str, Slot]:
    """Return where each tensor of the file goes, by its GGUF name, in the order of the model.

    Raises:
        FormatError: tensors are missing, of another shape, or not of this architecture; each kind
            is reported whole.
    """
    if config["num_hidden_layers"] > len(gguf.tensors):
        raise FormatError(
            f"{gguf.path}: {config['num_hidden_layers']} layers, "
            f"but only {len(gguf.tensors)} tensors"
        )
    per_layer = dict(architecture.layer_tensors)
    for flag, group in architecture.optional.items():
        if config[flag]:
            per_layer.update(group)
    slots = dict(architecture.tensors)
    if config["tie_word_embeddings"]:
        del slots["output.weight"]
    for layer in range(config["num_hidden_layers"]):
        for name, slot in per_layer.items():
            path = f"model.layers.{layer}.{slot.name}"
            slots[f"blk.{layer}.{name}"] = Slot(path, slot.shape, slot.heads)
    _check_names(gguf, slots)
    _check_shapes(gguf, slots, config)
    return slots


def _refuse_unknown(gguf: GGUFFile, metadata: Metadata, architecture: Architecture) -> None:
    if metadata.has("expert_count") and metadata.index("expert_count", LARGEST) > 0:
        raise ModelError(
            f"{gguf.path}: a mixture of experts ({metadata.count('expert_count')} of them)",
            hint="only dense models are supported",
        )
    unknown = [k for k in metadata.below() if k not in UNDERSTOOD | architecture.ignored]
    if unknown:
        raise ModelError(
            f"{gguf.path}: metadata not understood: {_listed(sorted(unknown))}",
            hint="it may change what the model computes, so it cannot be left out",
        )
    if not metadata.flag("attention.causal", default=True):
        raise ModelError(f"{gguf.path}: its attention is not causal: not a language model")
    context = metadata.count("context_length")
    if metadata.count("attention.sliding_window", context) < context:
        raise ModelError(
            f"{gguf.path}: attention over a sliding window of "
            f"{metadata.count('attention.sliding_window')} tokens is not supported"
        )


def _vocabulary_size(gguf: GGUFFile) -> int:
    tokens = len(Metadata(gguf).texts("tokenizer.ggml.tokens"))
    if tokens < 1:
        raise FormatError(f"{gguf.path}: its tokenizer holds no tokens")
    return tokens


def _has_any(gguf: GGUFFile, group: Mapping[str, Slot]) -> bool:
    return any(f"blk.0.{name}" in gguf.tensors for name in group)


def _check_names(gguf: GGUFFile, slots: Mapping[str, Slot]) -> None:
    present = gguf.tensors.keys() - {rope.FACTORS}
    missing = [name for name in slots if name not in present]
    unexpected = sorted(present - slots.keys())
    if any("_exps." in name or "ffn_gate_inp" in name for name in unexpected):
        raise ModelError(
            f"{gguf.path}: a mixture of experts: {_listed(unexpected)}",
            hint="only dense models are supported",
        )
    problems = []
    if missing:
        problems.append(f"missing tensors: {_listed(missing)}")
    if unexpected:
        problems.append(f"tensors with no place in the model: {_listed(unexpected)}")
    if problems:
        raise FormatError(
            f"{gguf.path}: {'; '.join(problems)}",
            hint="is the file complete, and of the architecture it names?",
        )


def _check_shapes(gguf: GGUFFile, slots: Mapping[str, Slot], config: Mapping[str, Any]) -> None:
    sizes = {
        "hidden": config["hidden_size"],
        "ffn": config["intermediate_size"],
        "vocab": config["vocab_size"],
        "head": config["head_dim"],
        "q": config["num_attention_heads"] * config["head_dim"],
        "kv": config["num_key_value_heads"] * config["head_dim"],
    }
    wrong = []
    for name, slot in slots.items():
        wanted = tuple(sizes[dimension] for dimension in slot.shape)
        shape = gguf.tensors[name].shape
        if shape != wanted:
            wrong.append(f"{name} is {list(shape)}, not {list(wanted)}")
    if wrong:
        raise FormatError(
            f"{gguf.path}: shapes that do not fit the metadata: {_listed(wrong)}",
            hint="the file is damaged, or its metadata was edited",
        )


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - MAX_SHOWN} more" if len(items) > MAX_SHOWN else ""
    return ", ".join(items[:MAX_SHOWN]) + more
