"""A LoRA file of any program, read for one model.

The layer a tensor is for and what it is of that layer are decided apart: `names` finds the layer,
`parts` reads the end of the name. So any mixture of spellings is read, such as diffusers writes.
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from macai.diffusion.loading.weights import open_weights
from macai.diffusion.lora import version
from macai.diffusion.lora.names import Layer, Layers, NameTable, Shape
from macai.diffusion.lora.parts import BrokenLayerError, make_update, sort_tensors
from macai.diffusion.lora.scales import Scales, read_scales
from macai.diffusion.lora.updates import Update, fits
from macai.errors import AdapterError
from macai.models.stored import StoredTensor

FILE_STEMS = ("pytorch_lora_weights", "adapter_model")  # diffusers' and PEFT's
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Unmatched:
    """What of a file has no place in the model: a layer's or tensor's name, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFile:
    """A LoRA as a model can take it.

    Attributes:
        modules: Of each component, the updates by path; every one fits its weight.
        metadata: The file's.
        format: "kohya", "kohya-sgm", "diffusers", "diffusers-old" or "peft": how it names layers.
        unmatched: What has no place in the model.
        name: Of the file, for messages.
    """

    modules: dict[str, dict[str, Update]]
    metadata: dict[str, str]
    format: str
    unmatched: tuple[Unmatched, ...] = ()
    name: str = ""

    @property
    def matched(self) -> dict[str, int]:
        """The number of layers by component."""
        return {component: len(updates) for component, updates in self.modules.items()}

    def summary(self) -> str:
        """Say in one line how many layers have an update, and why others do not."""
        matched = ", ".join(f"{n} of {c}" for c, n in self.matched.items())
        text = f"{self.name}: {self.format}, {matched} matched"
        if not self.unmatched:
            return text
        return f"{text}; {len(self.unmatched)} not: {_reasons(self.unmatched)}"


def read_lora(path: Path, layers: Layers) -> LoraFile:
    """Read a LoRA for a model with `layers` (`macai.diffusion.lora.layers.layers_of`).

    Args:
        path: A file of diffusers, PEFT, kohya's scripts, LyCORIS or ComfyUI, safetensors or
            torch's; or a folder with diffusers' or PEFT's.
        layers: The shapes of the model's weights.

    Raises:
        FormatError: it cannot be read: see `macai.diffusion.loading.weights.open_weights`.
        AdapterError: it is no LoRA or a broken one, was made for another version of Stable
            Diffusion, or nothing in it has a place in the model.
    """
    file = lora_file(path)
    weights = open_weights(file)
    if not weights.tensors:
        raise AdapterError(f"{file}: holds no tensors")
    try:
        tensors, others = sort_tensors(weights.tensors)
    except BrokenLayerError as e:
        raise AdapterError(f"{file}: {e}") from e
    unmatched = [Unmatched(name, "not a LoRA's tensor") for name in others]
    for name in [n for n, parts in tensors.items() if set(parts) == {"diff_b"}]:
        unmatched.append(Unmatched(name, "a bias without its weight"))
        del tensors[name]
    table, scales = NameTable(layers), read_scales(file, weights.metadata)
    found = {name: table.find(name) for name in tensors}
    updates = _updates(file, weights.tensors, tensors, found, scales)
    _require_version(file, {n: u.factors.shape for n, u in updates.items()}, layers)
    modules, homeless = _place(file, updates, found, layers)
    unmatched += homeless
    if not modules:
        raise _nothing_matched(file, unmatched)
    style = _format([n for parts in tensors.values() for n in parts.values()])
    return LoraFile(
        modules=modules,
        metadata=weights.metadata,
        format=style,
        unmatched=tuple(unmatched),
        name=file.name,
    )


def lora_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / f"{stem}{suffix}" for stem in FILE_STEMS for suffix in (".safetensors", ".bin")]
    found = [file for file in found if file.is_file()]
    if len({file.stem for file in found}) == 1:
        return found[0]
    raise AdapterError(
        f"{path}: it holds {'both' if found else 'none'} of "
        f"{' and '.join(f'{stem}.safetensors' for stem in FILE_STEMS)}",
        hint="name the file",
    )


def _read(stored: StoredTensor) -> mx.array:
    bits = stored.read()
    if not stored.is_finite(bits):
        raise AdapterError(
            f"{stored.file}: {stored.name} has numbers that are not finite",
            hint="its training went wrong, or the copy did",
        )
    return stored.to_mlx(bits)


def _updates(
    file: Path,
    stored: dict[str, StoredTensor],
    tensors: dict[str, dict[str, str]],
    found: dict[str, Layer | str],
    scales: Scales,
) -> dict[str, Update]:
    """Return the updates by the layers' names in the file, of unknown layers as well."""
    updates, broken = {}, []
    for name, parts in tensors.items():
        own = {part: _read(stored[tensor]) for part, tensor in parts.items()}
        try:
            update = make_update(own)
        except BrokenLayerError as e:
            broken.append(f"{name}: {e}")
            continue
        layer = found[name]
        if "alpha" not in own and isinstance(layer, Layer):
            scale = scales.of(layer, update.factors.rank)
            update = dataclasses.replace(update, scale=scale)
        updates[name] = update
    if broken:
        shown = "; ".join(broken[:_SHOWN])
        more = f" ({len(broken)} such layers)" if len(broken) > _SHOWN else ""
        raise AdapterError(f"{file}: {shown}{more}", hint="is the copy complete?")
    return updates


def _require_version(file: Path, shapes: dict[str, Shape], layers: Layers) -> None:
    own, model = version.file_width(shapes), version.model_width(layers)
    if own is not None and model is not None and own != model:
        raise AdapterError(
            f"{file}: made for {version.name_of(own)}, and the model is {version.name_of(model)}",
            hint=f"its cross-attention is {own} wide, the model's {model}: they never fit",
        )


def _place(
    file: Path, updates: dict[str, Update], found: dict[str, Layer | str], layers: Layers
) -> tuple[dict[str, dict[str, Update]], list[Unmatched]]:
    """Return the updates by component and path, and those that have no place or do not fit it."""
    modules: dict[str, dict[str, Update]] = {}
    placed: dict[Layer, str] = {}
    homeless = []
    for name, update in updates.items():
        layer = found[name]
        if isinstance(layer, Layer) and not fits(update, layers[layer.component][layer.path]):
            layer = _misfit(update, layers[layer.component][layer.path])
        if isinstance(layer, str):
            homeless.append(Unmatched(name, layer))
            continue
        if other := placed.get(layer):
            raise AdapterError(f"{file}: {name} and {other} are the same layer of the model")
        placed[layer] = name
        modules.setdefault(layer.component, {})[layer.path] = update
    return {component: modules[component] for component in layers if component in modules}, homeless


def _misfit(update: Update, shape: Shape) -> str:
    own = list(update.factors.shape)
    if own == list(shape) and update.magnitude is not None:
        return f"its DoRA vector has {update.magnitude.vector.size} numbers"
    return f"for a weight of {own}, the model's is {list(shape)}"


def _nothing_matched(file: Path, unmatched: list[Unmatched]) -> AdapterError:
    hint = f"the first is called {unmatched[0].name}"
    if version.is_for_transformer(u.name for u in unmatched):
        hint = "it looks like one for a model without U-Net (Flux, SD3)"
    return AdapterError(
        f"{file}: 0 of {len(unmatched)} layers have a place in the model: {_reasons(unmatched)}",
        hint=hint,
    )


def _reasons(unmatched: list[Unmatched] | tuple[Unmatched, ...]) -> str:
    counts = Counter(u.reason for u in unmatched).most_common()
    shown = "; ".join(f"{reason} ({n})" for reason, n in counts[:_SHOWN])
    return shown + ("; ..." if len(counts) > _SHOWN else "")


def _format(names: list[str]) -> str:
    """Return how most of the names are written."""
    return Counter(map(_style, names)).most_common(1)[0][0]


def _style(name: str) -> str:
    if name.startswith(("lora_unet_", "lora_te")):
        sgm = ("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")
        return "kohya-sgm" if name.startswith(sgm) else "kohya"
    if "_lora.down." in name or "_lora.up." in name:
        return "diffusers-old"
    return "peft" if ".lora_A" in name or ".lora_B" in name else "diffusers"
