"""The functions of a bundle's packages: other sizes and other LoRAs, on the same weights.

All packages have all functions, for Apple's package loads each with one configuration, and so with
one `functionName`. A weight is stored once, whoever uses it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from macai.coreml.api import ExportFunction
from macai.coreml.sd.component import Component
from macai.coreml.sd.form import DTYPES, Form
from macai.coreml.sd.sources import Lora, Sources
from macai.diffusion.lora.apply import attach
from macai.diffusion.lora.layers import adapted
from macai.diffusion.models import from_config
from macai.errors import UsageError

MAIN = "main"
TARGET = "iOS18"  # the first with several functions in a package
MINIMUM_OS = {"iOS": "18.0", "macOS": "15.0"}
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One function: what it is called, for which size it is, and the LoRA it has."""

    function: str
    form: Form
    lora: Lora | None = None

    def module(self, sources: Sources, component: Component, module: nn.Module) -> nn.Module:
        """Return the module with this function's LoRA beside its weights, which it shares."""
        if self.lora is None or component.part not in self.lora.content.modules:
            return module
        made = from_config(sources.checkpoint.configs[component.part])
        made.update(module.parameters())
        made.eval()
        parts = {component.part: made}
        attach(parts, self.lora.content, name=self.function, strength=self.lora.scale)
        return made

    def changes(self, component: Component, main: Component) -> bool:
        """Return whether the function of a component computes anything else than main's."""
        tuned = self.lora is not None and component.part in self.lora.content.modules
        return tuned or component.inputs != main.inputs

    def export(self, sources: Sources, component: Component, module: nn.Module) -> ExportFunction:
        """Return the function to export, of a module in the component's precision."""
        own = self.module(sources, component, module)
        made = component.function(own)
        if own is module:
            return made
        dtype = DTYPES[component.precision]
        for layer in adapted(own).values():
            for branch in layer.branches:
                branch.update(tree_map(lambda x: x.astype(dtype), branch.parameters()))
        mx.eval(own.parameters())
        return replace(made, named=self.named(own))

    def named(self, module: nn.Module) -> Callable[[str], str]:
        """Return what gives a weight's name in the package, by its path in this function's module.

        That is the path in the plain module; a LoRA's has its function before it.
        """
        places = adapted(module)
        return lambda path: _shared_name(path, places, self.function)


def variants(
    form: Form, sizes: Sequence[tuple[int, int]], adapters: Mapping[str, Lora]
) -> list[Variant]:
    """Return all functions, main first: other sizes, then other LoRAs in main's size.

    Raises:
        UsageError: a name that no function can have, or two that are alike.
    """
    made = [Variant(function=MAIN, form=form)]
    for width, height in sizes:
        own = replace(form, width=width, height=height)
        made.append(Variant(function=f"w{width}h{height}", form=own))
    made += [Variant(function=name, form=form, lora=lora) for name, lora in adapters.items()]
    names = [one.function for one in made]
    if wrong := [name for name in names if not _WORD.fullmatch(name)]:
        raise UsageError(
            f"'{wrong[0]}' is no name for a function", hint="letters, digits and _: ink=FILE"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"there are two functions called {twice[0]}", hint="give it another name")
    return made


def _shared_name(path: str, places: Mapping[str, nn.Module], function: str) -> str:
    """Return a weight's path in the plain module; a LoRA's has its function before it."""
    for inner in (".linear.", ".conv."):
        before, found, after = path.rpartition(inner)
        if found and before in places:
            return f"{before}.{after}"
    return f"{function}.{path}" if ".branches." in path else path
