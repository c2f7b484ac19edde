"""Which Stable Diffusion a LoRA was made for: its cross-attention's width says so."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from macai.diffusion.lora.names import UNET, Layers, Shape

VERSIONS = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "the SDXL refiner",
    2048: "Stable Diffusion XL",
}
_CROSS_ATTENTION = re.compile(r".*attn2[._](?:processor[._])?to_[kv]")
_TRANSFORMERS = ("transformer.", "lora_transformer_", "lora_unet_double_blocks_", "double_blocks.")


def file_width(shapes: Mapping[str, Shape]) -> int | None:
    """Return the cross-attention's width in a file, from its layers' names and shapes."""
    widths = [s[1] for n, s in shapes.items() if _CROSS_ATTENTION.fullmatch(n)]
    return Counter(widths).most_common(1)[0][0] if widths else None


def model_width(layers: Layers) -> int | None:
    """Return the cross-attention's width of a model's U-Net."""
    return file_width({p.replace(".", "_"): s for p, s in layers.get(UNET, {}).items()})


def name_of(width: int) -> str:
    """Return what a model of this cross-attention width is called."""
    return VERSIONS.get(width, f"a model with a cross-attention width of {width}")


def is_for_transformer(names: Iterable[str]) -> bool:
    """Return whether a LoRA is for a model without a U-Net: Flux, SD3 and such."""
    return any(n.removeprefix("base_model.model.").startswith(_TRANSFORMERS) for n in names)
