"""What a bundle is made of: a checkpoint, LoRAs fused into it, ControlNets beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.nn as nn

from macai.coreml.sd.component import Component
from macai.coreml.sd.components import components
from macai.coreml.sd.form import Form
from macai.coreml.sd.palettes import apply_palettes
from macai.diffusion.fingerprint import fingerprint
from macai.diffusion.image_settings import UsedFile
from macai.diffusion.loading import Checkpoint
from macai.diffusion.lora.apply import fuse
from macai.diffusion.lora.formats import LoraFile
from macai.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA that is fused: what is in its file, how strongly, and which file it is."""

    content: LoraFile
    scale: float
    file: UsedFile

    def described(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {"name": self.file.name, "sha256": self.file.sha256, "scale": self.scale}


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlNet:
    """A ControlNet: what its package is called, and the checkpoint it is in."""

    name: str
    checkpoint: Checkpoint

    def described(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {"name": self.name, "fingerprint": fingerprint(self.checkpoint)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a bundle is made of.

    Attributes:
        checkpoint: The model, opened in float32.
        loras: Fused in this order.
        controlnets: In the order in which an app names them.
        adapters: LoRAs that are not fused but functions of the packages, by their names.
        palettes: Bits of weights by path, once LoRAs are fused, by `module_of` of a component: see
            palettes.py.
    """

    checkpoint: Checkpoint
    loras: Sequence[Lora] = ()
    controlnets: Sequence[ControlNet] = ()
    adapters: Mapping[str, Lora] = field(default_factory=dict)
    palettes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def components(self, form: Form) -> list[Component]:
        """Return the packages; see components.components."""
        nets = {one.name: one.checkpoint.configs["controlnet"] for one in self.controlnets}
        return components(self.checkpoint.configs, form, nets)

    def load(self, component: Component) -> nn.Module:
        """Return the module that a component is made of, in float32, LoRAs and palettes in it."""
        module = self._unrounded(component)
        apply_palettes(module, self.palettes.get(module_of(component), {}))
        return module

    def _unrounded(self, component: Component) -> nn.Module:
        for net in self.controlnets:
            if component.name == f"controlnet/{net.name}":
                return net.checkpoint.load("controlnet", dtype="float32")
        part = component.part
        module = self.checkpoint.load(part, dtype="float32")
        if self.loras and part != "vae":
            fuse({part: module}, [(lora.content, lora.scale) for lora in self.loras])
        return module


def module_of(component: Component) -> str:
    """Return what a component's module is called: what diffusers calls it, or "controlnet/NAME"."""
    return component.name if component.part == "controlnet" else component.part


def swift_name(name: str) -> str:
    """Return what Apple's package calls the ControlNet of a model id or a file.

    As torch2coreml.py does: words between _ and -, each with a capital.

    Raises:
        UsageError: nothing is left of it.
    """
    words = name.replace("/", "_").replace("-", "_").split("_")
    found = "".join(c for word in words for c in word.title() if c.isalnum())
    if not found:
        raise UsageError(f"'{name}' is no name for a ControlNet", hint="give NAME=PATH")
    return found
