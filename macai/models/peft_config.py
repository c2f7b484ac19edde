"""What PEFT's configurations say of ranks and scales, for adapters of any kind of model."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from macai.errors import AdapterError
from macai.models.shown import shown

# What changes the layers in a way that their tensors do not show.
UNSUPPORTED = (
    "fan_in_fan_out",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
)
# Those of int() and float(), and what a value of another type lacks.
WRONG_VALUES = (ValueError, TypeError, AttributeError, OverflowError, KeyError)


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

    def scale(self, paths: Sequence[str] = (), rank: int | None = None) -> float:
        """Return the scale of the layer that has `paths`, whose factors are of `rank`."""
        if rank is None:
            rank = self.rank_of(paths)
        alpha = next((a for p, a in self.alphas.items() if names(p, paths)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def doubled(self) -> "PeftConfig":
        """Return what has twice the ranks and the same scales."""
        factor = math.sqrt(2) if self.rank_stabilised else 2
        ranks = {path: 2 * rank for path, rank in self.ranks.items()}
        alphas = {path: factor * alpha for path, alpha in self.alphas.items()}
        return replace(
            self, rank=2 * self.rank, alpha=factor * self.alpha, ranks=ranks, alphas=alphas
        )

    def rank_of(self, paths: Sequence[str]) -> int:
        """Return the rank of the layer that has `paths`."""
        return next((r for p, r in self.ranks.items() if names(p, paths)), self.rank)


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Return a JSON object; AdapterError says what `where` is instead."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise no_configuration(where, e) from e
    if not isinstance(value, dict):
        raise AdapterError(f"{where} is no LoRA configuration: not a JSON object")
    return value


def read_config(
    value: Mapping[str, Any], where: str, unsupported: Sequence[str] = UNSUPPORTED
) -> PeftConfig:
    """Read a configuration.

    Args:
        value: The JSON object.
        where: What to call it in errors.
        unsupported: Keys that must not be set.

    Raises:
        AdapterError: it is no configuration, or of a kind whose layers would come out wrong.
    """
    if present := [key for key in unsupported if value.get(key)]:
        raise not_supported(where, present)
    try:
        alpha = float(value["lora_alpha"] if "lora_alpha" in value else value["alpha"])
        ranks = {str(k): int(r) for k, r in (value.get("rank_pattern") or {}).items()}
        alphas = {str(k): float(a) for k, a in (value.get("alpha_pattern") or {}).items()}
        rank = int(value["r"])
    except WRONG_VALUES as e:
        raise no_configuration(where, e) from e
    if wrong := [f"r = {r}" for r in (rank, *ranks.values()) if r < 1]:
        raise not_supported(where, wrong)
    if wrong := [f"lora_alpha = {a}" for a in (alpha, *alphas.values()) if not math.isfinite(a)]:
        raise not_supported(where, wrong)
    if regular := [p for p in (*ranks, *alphas) if re.search(r"[\\*+?()\[\]{}|$]", p)]:
        raise AdapterError(
            f"{where}: {regular[0]!r} in a pattern is a regular expression",
            hint="only names of layers are supported there",
        )
    return PeftConfig(rank, alpha, ranks, alphas, bool(value.get("use_rslora")))


def no_configuration(where: str, problem: Exception) -> AdapterError:
    """Return the error for what cannot be read as a configuration."""
    return AdapterError(
        f"{where} is no LoRA configuration ({type(problem).__name__}: {shown(problem)})",
        hint="is the copy complete?",
    )


def not_supported(where: str, keys: Sequence[str]) -> AdapterError:
    """Return the error for what in a configuration would come out wrong."""
    return AdapterError(f"{where}: {', '.join(keys)}: not supported by this version")


def names(pattern: str, paths: Sequence[str]) -> bool:
    """Return whether a key of a pattern means the layer that has `paths`: see `PeftConfig`."""
    if pattern.startswith("^"):
        return pattern[1:] in paths
    return any(p == pattern or p.endswith(f".{pattern}") for p in paths)
