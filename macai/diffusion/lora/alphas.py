"""The alphas that stand in a PEFT configuration: beside the weights, or in their metadata."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macai.diffusion.lora.names import COMPONENTS, TEXT_MODEL, Layer
from macai.errors import AdapterError

METADATA_KEY = "lora_adapter_metadata"
PEFT_CONFIG = "adapter_config.json"
_BROKEN = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What a LoraConfig says of scales.

    Attributes:
        alpha: Of all layers but those in `patterns`.
        patterns: Alphas by the tail of a path, or by "^" and the whole of it.
        rank_stabilised: rsLoRA (arXiv:2312.03732): alpha / sqrt(rank) instead of alpha / rank.
    """

    alpha: float
    patterns: dict[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    def alpha_of(self, path: str, rank: int) -> float:
        """Return the alpha that, divided by `rank`, is the scale of the layer at `path`."""
        alpha = next((a for p, a in self.patterns.items() if _names(p, path)), self.alpha)
        return alpha * math.sqrt(rank) if self.rank_stabilised else alpha


@dataclass(frozen=True, slots=True)
class Alphas:
    """The configurations of a file: one for each component, or one for all."""

    of_component: dict[str, PeftConfig] = field(default_factory=dict)
    of_all: PeftConfig | None = None

    def of(self, layer: Layer, rank: int | None) -> float | None:
        """Return a layer's alpha; None where the file has none, and the scale is 1."""
        config = self.of_component.get(layer.component, self.of_all)
        if config is None or rank is None:
            return None
        return config.alpha_of(layer.path, rank)


def read_alphas(file: Path, metadata: Mapping[str, str]) -> Alphas:
    """Read what diffusers keeps in the metadata of `file`, or PEFT in adapter_config.json.

    Raises:
        AdapterError: it is no configuration, or one whose scales cannot be known.
    """
    if METADATA_KEY in metadata:
        value = _parse(metadata[METADATA_KEY], f"{file}: its {METADATA_KEY}")
        configs = {}
        for component in COMPONENTS:
            prefix = f"{component}."
            own = {k.removeprefix(prefix): v for k, v in value.items() if k.startswith(prefix)}
            if "lora_alpha" in own or "alpha" in own:
                configs[component] = _config(own, f"{file}: its {METADATA_KEY}")
        return Alphas(of_component=configs)
    config = file.with_name(PEFT_CONFIG)
    if file.name == "adapter_model.safetensors" and config.is_file():
        text = config.read_text(encoding="utf-8", errors="replace")
        return Alphas(of_all=_config(_parse(text, str(config)), str(config)))
    return Alphas()


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise AdapterError(f"{where} is not JSON ({e})") from e
    if not isinstance(value, dict):
        raise AdapterError(f"{where} is not a JSON object")
    return value


def _config(value: Mapping[str, Any], where: str) -> PeftConfig:
    try:
        alpha = float(value["lora_alpha"] if "lora_alpha" in value else value["alpha"])
        patterns = {str(k): float(a) for k, a in (value.get("alpha_pattern") or {}).items()}
    except (KeyError, *_BROKEN) as e:
        raise AdapterError(f"{where} is no LoRA configuration ({type(e).__name__}: {e})") from e
    if not all(map(math.isfinite, (alpha, *patterns.values()))):
        raise AdapterError(f"{where} has an alpha that is not finite")
    if regular := [p for p in patterns if re.search(r"[\\*+?()\[\]{}|$]", p)]:
        raise AdapterError(
            f"{where}: alpha_pattern {regular[0]!r} is a regular expression",
            hint="only layers' names are supported there",
        )
    return PeftConfig(alpha, patterns, bool(value.get("use_rslora")))


def _names(pattern: str, path: str) -> bool:
    own = (path, path.removeprefix(TEXT_MODEL))
    if pattern.startswith("^"):
        return pattern[1:] in own
    return any(p == pattern or p.endswith(f".{pattern}") for p in own)
