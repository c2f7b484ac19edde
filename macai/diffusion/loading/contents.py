"""What a checkpoint holds, as far as its configs and headers tell."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macai.diffusion.loading import known_configs
from macai.diffusion.loading.coverage import left_over
from macai.diffusion.loading.sources import MakeTable, diffusers_table
from macai.models.stored import StoredTensor

CUSTOM = "custom"
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2", "controlnet")
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}

# What a U-Net or ControlNet of a version cannot have otherwise.
_MARKS = ("block_out_channels", "cross_attention_dim", "transformer_layers_per_block")


@dataclass(frozen=True, slots=True)
class Part:
    """One component: its config, its tensors, and which of them is what.

    Attributes:
        config: In diffusers' or transformers' form.
        tensors: Its own, by their names in the file or files.
        table: Makes the table of sources for the model's parameters.
        may_be_left: Why a tensor by a name is not needed, or None.
        file: To name in errors.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    file: Path
    table: MakeTable = diffusers_table
    may_be_left: Callable[[str], str | None] = left_over


@dataclass(frozen=True, slots=True)
class Contents:
    """A checkpoint.

    Attributes:
        kind: One of known_configs.KINDS, or CUSTOM.
        parts: By component, a name of COMPONENTS.
        scheduler_config: As in scheduler_config.json; empty for a component alone.
        pipeline_config: Its class and options, as in model_index.json.
        tokenizers: The folder of each tokenizer; None for one that is known but not there.
        ignored: How many tensors, or which folders (each 1), are none of the parts'.
    """

    kind: str
    parts: Mapping[str, Part]
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    pipeline_config: Mapping[str, Any] = field(default_factory=dict)
    tokenizers: Mapping[str, Path | None] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)


def kind_of(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the version that a folder's configs are of: its U-Net's or ControlNet's decides."""
    config = configs.get("unet") or configs.get("controlnet")
    if config is None:
        return CUSTOM
    for kind, known in known_configs.UNETS.items():
        if all(_equal(config.get(key), known.get(key)) for key in _MARKS):
            return kind
    return CUSTOM


def _equal(value: Any, known: Any) -> bool:
    """Compare values of which one may be a number for all blocks, and 1 may not be said."""
    values = list(value) if isinstance(value, list | tuple) else [1 if value is None else value]
    others = known if isinstance(known, list) else [1 if known is None else known]
    length = max(len(values), len(others))
    widen = [v * length if len(v) == 1 else v for v in (values, others)]
    return bool(widen[0] == widen[1])
