"""What other programs call the layers of a model, made from the model's own paths.

Underscores and dots cannot be told apart in kohya's names, so no name is ever taken apart: every
spelling of every layer is written down, and a name in a file is looked up among them. Spellings are
those of diffusers 0.42 (new and old), PEFT, kohya-ss/sd-scripts, LyCORIS and ComfyUI.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from macai.diffusion.loading.ldm_names import denoiser_names
from macai.errors import AdapterError

UNET = "unet"
TEXT_ENCODER = "text_encoder"
TEXT_ENCODER_2 = "text_encoder_2"
COMPONENTS = (UNET, TEXT_ENCODER, TEXT_ENCODER_2)

Shape = tuple[int, ...]
# Of each component, the weights' shapes by path, as torch has them: [out, in(, height, width)].
Layers = Mapping[str, Mapping[str, Shape]]
TargetSet = Literal["attention", "linear", "conv"]

TEXT_MODEL = "text_model."
TEXT_PROJECTION = "text_projection"
_KOHYA_PREFIXES = {
    UNET: ("lora_unet_",),
    TEXT_ENCODER: ("lora_te_", "lora_te1_"),
    TEXT_ENCODER_2: ("lora_te2_",),
}
_SGM_PREFIX = "diffusion_model."  # ComfyUI's
_PEFT_PREFIX = "base_model.model."
# The old attention processors held the layers under these names.
_OLD_UNET = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
_OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


@dataclass(frozen=True, slots=True, order=True)
class Layer:
    """A layer of a pipeline: its component and its path in it."""

    component: str
    path: str


class NameTable:
    """All spellings of a model's layers.

    Raises:
        AdapterError: two layers have the same name in one of the spellings.
    """

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self._names: dict[str, Layer] = {}
        self._bare: dict[str, list[Layer]] = {}
        for component, shapes in layers.items():
            sgm = sgm_paths(shapes) if component == UNET else {}
            for path in shapes:
                layer = Layer(component, path)
                for name in _spellings(component, path, sgm.get(path)):
                    self._add(name, layer)
                for name in _paths(component, path):
                    self._bare.setdefault(name, []).append(layer)

    def find(self, name: str) -> Layer | str:
        """Return the layer that a file calls `name`, or why there is none."""
        if layer := self._names.get(name):
            return layer
        bare = name.removeprefix(_PEFT_PREFIX)
        found = self._names.get(bare) or self._bare.get(bare, [])
        if isinstance(found, Layer):
            return found
        if len(found) == 1:
            return found[0]
        if found:
            return f"may be of {' or '.join(layer.component for layer in found)}"
        component = component_of(bare)
        if component is not None and component not in self.layers:
            return f"the model has no {component}"
        return "the model has no such layer"

    def _add(self, name: str, layer: Layer) -> None:
        other = self._names.setdefault(name, layer)
        if other != layer:
            raise AdapterError(
                f"{layer.component}.{layer.path} and {other.component}.{other.path} are both "
                f"called {name} in LoRA files",
                hint="no LoRA can be read for this model: its layers have unusual names",
            )


def component_of(name: str) -> str | None:
    """Return the component a name's beginning names, or None."""
    for component in COMPONENTS:
        if name.startswith((*_KOHYA_PREFIXES[component], f"{component}.")):
            return component
    return UNET if name.startswith(_SGM_PREFIX) else None


def kohya_name(layer: Layer, *, sgm: str | None = None, several_text_encoders: bool) -> str:
    """Return what kohya's scripts call a layer.

    Args:
        layer: The layer.
        sgm: Its path in the original implementation, which kohya's names for SDXL come from.
        several_text_encoders: Whether the first is called te1, not te.
    """
    prefixes = _KOHYA_PREFIXES[layer.component]
    path = sgm or layer.path
    if layer.component != UNET and layer.path != TEXT_PROJECTION:
        path = with_text_model(layer.path)
    return prefixes[-1 if several_text_encoders else 0] + path.replace(".", "_")


def with_text_model(path: str) -> str:
    """Return a text encoder's path as it was before transformers 5."""
    return path if path.startswith((TEXT_MODEL, TEXT_PROJECTION)) else TEXT_MODEL + path


def sgm_paths(paths: Iterable[str]) -> dict[str, str]:
    """Return the U-Net's paths in Stability's original implementation, by those of diffusers.

    Layers it does not have are left out.
    """
    kind = ".weight"
    names = denoiser_names(path + kind for path in paths)
    return {ours.removesuffix(kind): theirs.removesuffix(kind) for ours, theirs in names.items()}


def target_paths(layers: Mapping[str, Shape], targets: TargetSet) -> list[str]:
    """Return the paths that a kind of LoRA is trained for, in the model's order.

    "attention" is the default of diffusers' scripts (to_q, to_k, to_v, to_out.0 or the text
    encoder's), "linear" that of kohya's (all of the transformers, 1x1 convolutions included, and
    the text encoder's MLP), "conv" adds the residual blocks and what changes the size.
    """
    return [path for path, shape in layers.items() if _is_target(path, shape, targets)]


def _is_target(path: str, shape: Shape, targets: TargetSet) -> bool:
    if path.endswith(tuple(f".{tail}" for tail in (*_OLD_UNET, *_OLD_TEXT))):
        return True
    if targets == "attention":
        return False
    if ".attentions." in path or path.endswith((".mlp.fc1", ".mlp.fc2")):
        return shape[2:] in ((), (1, 1))
    convolutions = (".resnets.", ".downsamplers.", ".upsamplers.")
    return targets == "conv" and any(part in path for part in convolutions)


def _paths(component: str, path: str) -> list[str]:
    """What a layer has been called inside its component: the order is from new to old."""
    old = _OLD_UNET if component == UNET else _OLD_TEXT
    variants = [path]
    if component != UNET and path != TEXT_PROJECTION:
        variants = [path.removeprefix(TEXT_MODEL), with_text_model(path)]
    names = list(variants)
    for variant in variants:
        for tail, old_tail in old.items():
            if variant.endswith(f".{tail}"):
                parent = variant.removesuffix(f".{tail}")
                names += [f"{parent}.processor.{old_tail}", f"{parent}.{old_tail}"]
    return list(dict.fromkeys(names))


def _spellings(component: str, path: str, sgm: str | None) -> Iterator[str]:
    """Yield every name of a layer that says which component it is of."""
    for name in _paths(component, path):
        yield f"{component}.{name}"
        for prefix in _KOHYA_PREFIXES[component]:
            yield prefix + name.replace(".", "_")
    if sgm is not None:
        yield f"lora_unet_{sgm.replace('.', '_')}"
        yield _SGM_PREFIX + sgm
