"""What a run trains and leaves: an adapter beside the model, or the model itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn

from macai.errors import UsageError
from macai.files import atomic_directory
from macai.models.adapter import (
    AdapterConfig,
    adapter_weights,
    save_adapter_config,
    save_adapter_weights,
)
from macai.models.converter import FloatType
from macai.models.fuse import write_model
from macai.models.load import LoadedModel, dequantise, load_network
from macai.models.lora import add_lora

MODEL = "model"
"""The folder of a whole model in that of its run."""


class Method(Protocol):
    """Decides which arrays of a model are trained, and how they are kept."""

    def prepare(self, model: nn.Module) -> None:
        """Make `model` ready to be trained, in place: the same in every process."""
        ...

    def begin(self, loaded: LoadedModel, out: Path) -> None:
        """Write what describes the result before there is one."""
        ...

    def keep(self, loaded: LoadedModel, out: Path) -> None:
        """Write what is trained so far in place of what was kept before, atomically."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMethod:
    """LoRA and its kin: `adapter_config.json` and `adapter_model.safetensors`.

    Attributes:
        config: Of the adapter.
        paths: Of the layers that get one.
        seed: Decides where it starts.
        init: See `macai.models.lora.add_lora`.
        original: The folder of the model that the base was quantised from, for "loftq".
    """

    config: AdapterConfig
    paths: Sequence[str]
    seed: int
    init: str = "default"
    original: Path | None = None

    def prepare(self, model: nn.Module) -> None:
        """See Method."""
        options = self.config.options() | {"init": self.init}
        if self.original is not None:
            options["original"] = load_network(self.original, as_stored=True)
        add_lora(model, self.paths, dropout=self.config.dropout, seed=self.seed, **options)

    def begin(self, loaded: LoadedModel, out: Path) -> None:
        """See Method."""
        save_adapter_config(loaded, out, self.config)

    def keep(self, loaded: LoadedModel, out: Path) -> None:
        """See Method."""
        save_adapter_weights(out, adapter_weights(loaded))


@dataclass(frozen=True, slots=True, kw_only=True)
class FullMethod:
    """All weights of the model, which is written whole, as a Hugging Face folder.

    Attributes:
        last_blocks: Train those of so many blocks only, counted from the last; 0 for all weights.
    """

    last_blocks: int

    def prepare(self, model: nn.Module) -> None:
        """See Method; a quantised model is dequantised: there is no gradient of 4 bits."""
        dequantise(model)
        model.freeze()
        blocks = model.layers
        if self.last_blocks > len(blocks):
            raise UsageError(
                f"{self.last_blocks} layers to train, and the model has {len(blocks)}",
                hint="0 trains all weights",
            )
        for part in blocks[-self.last_blocks :] if self.last_blocks else [model]:
            part.unfreeze()
        mx.eval(model.parameters())

    def begin(self, loaded: LoadedModel, out: Path) -> None:
        """See Method: there is nothing to write."""

    def keep(self, loaded: LoadedModel, out: Path) -> None:
        """See Method."""
        with atomic_directory(out / MODEL, force=True) as temporary:
            write_model(loaded, temporary, dtype=_stored_type(loaded))


def _stored_type(loaded: LoadedModel) -> FloatType:
    """Return the type of the model's own weights, so that the result is no larger."""
    name = loaded.config.get("dtype") or loaded.config.get("torch_dtype")
    types: dict[object, FloatType] = {"float16": "float16", "bfloat16": "bfloat16"}
    return types.get(name, "float32")
