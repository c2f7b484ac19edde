"""Scales that stand in a PEFT configuration: beside the weights, or in diffusers' metadata."""

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
CONFIG_FILE = "adapter_config.json"
# What changes the layers in a way that their tensors do not show.
_UNSUPPORTED = (
    "fan_in_fan_out",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
)
# Those of int() and float(), and what a value of another type lacks.
_WRONG = (ValueError, TypeError, AttributeError, OverflowError, KeyError)


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What a LoraConfig, LoHaConfig or LoKrConfig says of scales.

    Attributes:
        rank: Of all layers but those in `ranks`; their factors may have none.
        alpha: Of all layers but those in `alphas`.
        ranks: By the tail of a path, or by "^" and the whole of it.
        alphas: Likewise.
        rank_stabilised: rsLoRA (arXiv:2312.03732): alpha / sqrt(rank) instead of alpha / rank.
    """

    rank: int
    alpha: float
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    def scale(self, path: str, rank: int | None) -> float:
        """Return the scale of the layer at `path`, whose factors are of `rank`."""
        if rank is None:
            rank = next((r for p, r in self.ranks.items() if _names(p, path)), self.rank)
        alpha = next((a for p, a in self.alphas.items() if _names(p, path)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


@dataclass(frozen=True, slots=True)
class Scales:
    """The configurations of a file: one for each component, or one for all."""

    by_component: dict[str, PeftConfig] = field(default_factory=dict)
    of_all: PeftConfig | None = None

    def of(self, layer: Layer, rank: int | None) -> float:
        """Return a layer's scale; 1 where the file says nothing."""
        config = self.by_component.get(layer.component, self.of_all)
        return 1.0 if config is None else config.scale(layer.path, rank)


def read_scales(file: Path, metadata: Mapping[str, str]) -> Scales:
    """Read what diffusers keeps in the metadata of `file`, or PEFT in adapter_config.json.

    Raises:
        AdapterError: it is no configuration, or of a kind whose layers would come out wrong.
    """
    if METADATA_KEY in metadata:
        where = f"{file}: its {METADATA_KEY}"
        value, configs = _parse(metadata[METADATA_KEY], where), {}
        for component in COMPONENTS:
            prefix = f"{component}."
            own = {k.removeprefix(prefix): v for k, v in value.items() if k.startswith(prefix)}
            if own:
                configs[component] = _config(own, where)
        return Scales(by_component=configs)
    config = file.with_name(CONFIG_FILE)
    if file.stem == "adapter_model" and config.is_file():
        text = config.read_text(encoding="utf-8", errors="replace")
        return Scales(of_all=_config(_parse(text, str(config)), str(config)))
    return Scales()


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise AdapterError(f"{where} is not JSON ({e})") from e
    if not isinstance(value, dict):
        raise AdapterError(f"{where} is not a JSON object")
    return value


def _config(value: Mapping[str, Any], where: str) -> PeftConfig:
    if unsupported := [key for key in _UNSUPPORTED if value.get(key)]:
        raise AdapterError(f"{where}: {', '.join(unsupported)}: not supported by this version")
    try:
        alpha = float(value["lora_alpha"] if "lora_alpha" in value else value["alpha"])
        ranks = {str(k): int(r) for k, r in (value.get("rank_pattern") or {}).items()}
        alphas = {str(k): float(a) for k, a in (value.get("alpha_pattern") or {}).items()}
        rank = int(value["r"])
    except _WRONG as e:
        raise AdapterError(f"{where} is no LoRA configuration ({type(e).__name__}: {e})") from e
    if min(rank, *ranks.values(), 1) < 1 or not all(map(math.isfinite, (alpha, *alphas.values()))):
        raise AdapterError(f"{where} has a rank below 1, or an alpha that is not finite")
    if regular := [p for p in (*ranks, *alphas) if re.search(r"[\\*+?()\[\]{}|$]", p)]:
        raise AdapterError(
            f"{where}: {regular[0]!r} in a pattern is a regular expression",
            hint="only names of layers are supported there",
        )
    return PeftConfig(rank, alpha, ranks, alphas, bool(value.get("use_rslora")))


def _names(pattern: str, path: str) -> bool:
    own = (path, path.removeprefix(TEXT_MODEL))
    if pattern.startswith("^"):
        return pattern[1:] in own
    return any(p == pattern or p.endswith(f".{pattern}") for p in own)
