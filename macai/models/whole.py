"""Modules that are trained whole, beside an adapter: PEFT's `modules_to_save`.

Embeddings, the head or norms, as a rule. They are plain modules of the model that are not frozen; a
quantised one is dequantised first.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macai.errors import UsageError
from macai.models.arrays import named_arrays
from macai.models.load import dequantise


def train_whole(model: nn.Module, names: Sequence[str]) -> None:
    """Unfreeze the modules whose paths end in `names`, in place.

    Raises:
        UsageError: a name that means no module, or one with layers of an adapter in it.
    """
    paths = whole_paths_for(model, names)
    modules = dict(model.named_modules())
    holder = nn.Module()
    for path in paths:
        holder.layer = modules[path]
        dequantise(holder)
        kind = getattr(modules[path], "scales", mx.zeros(0)).dtype
        if holder.layer is not modules[path]:  # in the type the model computes in
            holder.layer.set_dtype(kind if mx.issubdtype(kind, mx.floating) else mx.float32)
            model.update_modules(tree_unflatten([(path, holder.layer)]))
        holder.layer.unfreeze()


def whole_paths_for(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the paths of the modules that `names` mean: each the end of a path."""
    modules = {p: m for p, m in model.named_modules() if p and named_arrays(m.parameters())}
    found = {n: [p for p in modules if p == n or p.endswith("." + n)] for n in names}
    if unknown := [n for n, paths in found.items() if not paths]:
        known = sorted(
            {p.rpartition(".")[2] for p in modules if not p.rpartition(".")[2].isdigit()}
        )
        raise UsageError(
            f"no module is called {', '.join(map(repr, unknown))}",
            hint=f"this model has {', '.join(known)}",
        )
    paths = list(dict.fromkeys(p for n in names for p in found[n]))
    if mixed := [p for p in paths if "lora_" in " ".join(named_arrays(modules[p].parameters()))]:
        raise UsageError(
            f"{mixed[0]} has an adapter and cannot be trained whole as well",
            hint="leave it out of adapter.targets or of adapter.modules_to_save",
        )
    return paths


def whole_arrays(model: nn.Module) -> dict[str, mx.array]:
    """Return the trained arrays that belong to no adapter, by path."""
    arrays = named_arrays(model.trainable_parameters())
    return {k: v for k, v in arrays.items() if not k.rpartition(".")[2].startswith("lora_")}
