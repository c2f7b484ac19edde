"""Whether a file has exactly the tensors that a model needs, and which of its others may be left.

All that is wrong with a component is said at once: missing, unexpected and wrong shapes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.nn as nn

from macai.diffusion.loading.sources import Source, Table
from macai.errors import ModelError
from macai.models.arrays import named_arrays
from macai.models.shown import shown
from macai.models.stored import StoredTensor

SHOWN = 3
Shape = tuple[int, ...]

# Of the noise schedule, which is computed, not read.
_SCHEDULE = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    "scale_factor",
    "denoiser.sigmas",
    "denoiser.log_sigmas",
}
_MARKS = {"v_pred", "ztsnr"}  # empty tensors whose names say what the model predicts
_VISUAL = ("vision_model.", "visual_projection.", "visual.")


def left_over(name: str) -> str | None:
    """Return why a tensor by this name, of the whole file, is not needed; None if it may be."""
    if name in _SCHEDULE:
        return "schedule"
    if name in _MARKS:
        return "marks"
    if name.startswith("model_ema."):
        return "averaged weights"
    if name.endswith("position_ids"):
        return "positions"
    if name.endswith("logit_scale") or any(name.startswith(v) or f".{v}" in name for v in _VISUAL):
        return "the image side of CLIP"
    if name.endswith(".attn_mask"):
        return "masks"
    return "training" if name.startswith("first_stage_model.loss.") else None


@dataclass(frozen=True, slots=True)
class Coverage:
    """What matching found: the tensor of each parameter, and what is wrong.

    Attributes:
        found: By parameter, in torch's shape.
        missing: Parameters that no tensor is for.
        unexpected: Names of tensors that no parameter is for.
        wrong_shapes: By name of the tensor, its shape and the one that is needed.
        left_over: How many tensors may be left, by reason.
    """

    found: dict[str, StoredTensor]
    missing: list[str]
    unexpected: list[str]
    wrong_shapes: dict[str, tuple[Shape, Shape]]
    left_over: dict[str, int]

    def check(self, path: Path, component: str) -> dict[str, StoredTensor]:
        """Return `found`, or raise ModelError with everything that is wrong."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} weights are missing ({named(self.missing)})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} are not the model's ({named(self.unexpected)})")
        if self.wrong_shapes:
            shapes = [
                f"{name}: {list(has)}, not {list(needed)}"
                for name, (has, needed) in self.wrong_shapes.items()
            ]
            parts.append(f"{len(shapes)} have another shape ({named(shapes, '; ')})")
        if parts:
            raise ModelError(
                f"{path}: {component}: {', '.join(parts)}",
                hint="is it whole, and of the version and architecture its config says?",
            )
        return self.found


def torch_shapes(model: nn.Module) -> dict[str, Shape]:
    """Return the shape that each parameter of a model has in torch's layout."""
    parameters = named_arrays(model.parameters())
    return {name: _torch_shape(tuple(value.shape)) for name, value in parameters.items()}


def match(
    shapes: Mapping[str, Shape],
    table: Table,
    tensors: Mapping[str, StoredTensor],
    may_be_left: Callable[[str], str | None] = left_over,
) -> Coverage:
    """Find the tensor of each parameter.

    Args:
        shapes: Of each parameter, in torch's layout.
        table: Where each may come from.
        tensors: The component's, by name.
        may_be_left: Why a tensor by a name is not needed; None for one that must be.
    """
    found: dict[str, StoredTensor] = {}
    missing: list[str] = []
    wrong: dict[str, tuple[Shape, Shape]] = {}
    used: set[str] = set()
    for parameter, shape in shapes.items():
        source = next((s for s in table.get(parameter, ()) if s.name in tensors), None)
        if source is None:
            missing.append(parameter)
            continue
        used.add(source.name)
        tensor, needed = tensors[source.name], _whole_shape(shape, source)
        if _squeezed(tensor.shape) == _squeezed(needed):
            found[parameter] = _taken(tensor.reshaped(needed), source).reshaped(shape)
        else:
            wrong[source.name] = tensor.shape, needed
    reasons = {name: may_be_left(name) for name in tensors if name not in used}
    return Coverage(
        found,
        missing,
        [name for name, reason in reasons.items() if reason is None],
        wrong,
        _counted(reasons.values()),
    )


def named(values: Sequence[str], separator: str = ", ") -> str:
    """Return the first few of many, and how many more there are."""
    text = separator.join(shown(value, 120) for value in values[:SHOWN])
    return text if len(values) <= SHOWN else f"{text}{separator}and {len(values) - SHOWN} more"


def _counted(reasons: Iterable[str | None]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in reasons:
        if reason is not None:
            counts[reason] = counts.get(reason, 0) + 1
    return counts


def _torch_shape(shape: Shape) -> Shape:
    return (shape[0], shape[3], *shape[1:3]) if len(shape) == 4 else shape


def _whole_shape(shape: Shape, source: Source) -> Shape:
    """Return the shape of the tensor that a parameter of `shape` is taken from."""
    if source.transposed:
        shape = shape[::-1]
    return shape if source.third is None else (3 * shape[0], *shape[1:])


def _taken(tensor: StoredTensor, source: Source) -> StoredTensor:
    if source.third is not None:
        rows = tensor.shape[0] // 3
        tensor = tensor.rows(source.third * rows, (source.third + 1) * rows)
    return tensor.transposed() if source.transposed else tensor


def _squeezed(shape: Shape) -> Shape:
    """Return a shape without the ends of size 1: a linear layer may be a 1x1 convolution."""
    end = len(shape)
    while end > 2 and shape[end - 1] == 1:
        end -= 1
    return shape[:end]
