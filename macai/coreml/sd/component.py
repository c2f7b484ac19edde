"""One package of a bundle: its features, and the function that it is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai.coreml.api import ExportFunction
from macai.coreml.description import Metadata
from macai.coreml.graph import Pass
from macai.coreml.lower import Settings
from macai.coreml.passes import PASSES

Call = Callable[..., Sequence[mx.array]]


@dataclass(frozen=True, slots=True)
class Feature:
    """An input: its shape, its type, and what it is in words."""

    shape: tuple[int, ...]
    dtype: mx.Dtype
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One package of a bundle.

    Attributes:
        name: What Swift calls it.
        part: What diffusers calls the module it is made of.
        inputs: In the order of the function's arguments.
        outputs: What each is in words, by name.
        call: Takes the module, gives the function.
        precision: "fp16" or "fp32".
        about: What it is, in a sentence.
        passes: What rewrites its graph.
    """

    name: str
    part: str
    inputs: Mapping[str, Feature]
    outputs: Mapping[str, str]
    call: Callable[[Any], Call]
    precision: str
    about: str
    passes: Sequence[Pass] = PASSES

    def function(self, module: nn.Module) -> ExportFunction:
        """Return the function to export, of a module whose weights are in `precision`."""
        return ExportFunction(
            fn=self.call(module),
            inputs={name: mx.zeros(f.shape, f.dtype) for name, f in self.inputs.items()},
            outputs=list(self.outputs),
            weights=module,
            settings=Settings(precision=self.precision, fused_attention=False, palettes=True),
            passes=self.passes,
        )

    def metadata(self, **own: Any) -> Metadata:
        """Return what the package says of itself; `own` are other fields of Metadata."""
        return Metadata(
            description=self.about,
            inputs={name: f.text for name, f in self.inputs.items()},
            outputs=dict(self.outputs),
            **own,
        )


def to_last(x: mx.array) -> mx.array:
    """[B, C, H, W] -> [B, H, W, C]."""
    return x.transpose(0, 2, 3, 1)


def to_first(x: mx.array) -> mx.array:
    """[B, H, W, C] -> [B, C, H, W]."""
    return x.transpose(0, 3, 1, 2)


def wide(x: mx.array) -> mx.array:
    """To float32, as which all outputs are given."""
    return x.astype(mx.float32)
