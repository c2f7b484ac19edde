"""From a model's folder to a bundle that agrees with it: load, compress, write, compare."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macai.coreml.bundle import WEIGHTS, write_bundle
from macai.coreml.compress import Compression, Scheme
from macai.coreml.fewer_bits import (
    calibration_text,
    compress_model,
    cost,
    perplexity,
    replace_weights,
)
from macai.coreml.hot_swap import load_adapter_file, put_layers, random_layers
from macai.coreml.llm import CONTEXT_MULTIPLE, check_lengths
from macai.coreml.manifest import Manifest
from macai.coreml.profiles import Profile
from macai.coreml.profiles.gpu import GPU
from macai.coreml.session import open_bundle
from macai.coreml.slot import SlotOptions
from macai.coreml.verify import sample_text, verify_package
from macai.errors import ExportError, UsageError
from macai.files import write_json
from macai.models.adapter import load_adapter
from macai.models.fuse import fuse
from macai.models.load import LoadedModel, load_model
from macai.models.lora import lora_layers

Progress = Callable[[str, int, int], None]
DEFAULT_CONTEXT = 1024
PERPLEXITY_TOKENS = 512
SLOT_POSITIONS = 24  # a matrix in a wrong place shows at any of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What is asked for.

    Attributes:
        path: The model's folder.
        name: What package and Swift module are called.
        source: Where the model came from, as the manifest tells.
        adapters: Folders by name. One is fused, unless weights are kept; several get functions.
        slot: Room for an adapter at run time; none is fused then.
        profile: What it is for: see profiles.
        context: The most positions, a multiple of 32; DEFAULT_CONTEXT if not given, or what the
            model knows.
        prefill: Lengths of the prefill functions; the profile's own if not given.
        precision: "fp16" or "fp32".
        chunks: In how many packages; None: as few as the profile allows.
        weights: "full", "keep", or a scheme: see compress.Scheme.parse.
        bits_per_weight: A mix of schemes with this mean instead.
        calibration: Text that says which inputs matter when bits are saved.
        largest_increase: Of the perplexity by saving bits, as a share; beyond it nothing is kept.
        positions: Tokens of text to compare; 0 does not compare.
        tokens: Tokens to continue it by.
    """

    path: Path
    name: str
    source: dict[str, str]
    adapters: Mapping[str, Path] = field(default_factory=dict)
    slot: SlotOptions | None = None
    profile: Profile = GPU
    context: int | None = None
    prefill: Sequence[int] = ()
    precision: str = "fp16"
    chunks: int | None = None
    weights: str = "full"
    bits_per_weight: float | None = None
    calibration: str | None = None
    largest_increase: float = 0.25
    positions: int = 48
    tokens: int = 16

    @property
    def fuses(self) -> bool:
        """Whether there is at most one adapter, and it is fused: kept weights take none."""
        return not self.adapters or (len(self.adapters) == 1 and self.weights != "keep")

    @property
    def saves_bits(self) -> bool:
        """Whether weights lose something."""
        return self.bits_per_weight is not None or self.weights not in WEIGHTS


def export_llm(
    export: Export, folder: Path, progress: Progress = lambda what, done, total: None
) -> tuple[Manifest, dict[str, dict[str, Any]]]:
    """Write a bundle into an empty folder; return its manifest and what verify.json holds.

    Raises:
        ExportError: the package does not agree with the model, or too much was saved.
    """
    _check(export)
    context = _context(export)
    check_lengths(context, export.prefill)
    compression, price = _compressed(export, progress)
    loaded = load_model(export.path, as_stored=True)
    if export.fuses:
        for adapter in export.adapters.values():
            load_adapter(loaded, adapter)
    bits = export.bits_per_weight
    manifest = write_bundle(
        loaded,
        folder,
        name=export.name,
        source=export.source,
        context=context,
        profile=export.profile,
        prefill=export.prefill,
        precision=export.precision,
        weights=export.weights if bits is None else f"{bits:g} bits",
        compression=compression,
        adapters={} if export.fuses else export.adapters,
        slot=export.slot,
        chunks=export.chunks,
        text=_measured_text(export, loaded),
        progress=progress,
    )
    del loaded
    reports = _reports(export, folder, compression, progress) if export.positions else {}
    if price:
        reports["compression"] = price | {"passed": True, "problems": []}
    write_json(folder / "verify.json", reports)
    if problems := [f"{n}: {p}" for n, r in reports.items() for p in r["problems"]]:
        raise ExportError(
            "the package does not agree with the model: " + "; ".join(problems),
            hint=_remedy(export, reports),
        )
    return manifest, reports


def _remedy(export: Export, reports: Mapping[str, dict[str, Any]]) -> str:
    overflows = any(r.get("float16", {}).get("overflows") for r in reports.values())
    if overflows and not export.profile.float32:
        return "--profile gpu keeps in float32 what float16 cannot hold"
    return "--precision fp32 tells whether float16 is the reason"


def reference(path: Path, adapter: Path | None) -> LoadedModel:
    """Return the model a package is compared with: its adapter fused, float32 on the CPU.

    The adapter is the folder of macai train, or the file of macai export adapter.
    """
    loaded = load_model(path)
    if adapter is not None and adapter.is_file():
        load_adapter_file(loaded, adapter)
    elif adapter is not None:
        load_adapter(loaded, adapter)
        if lora_layers(loaded.model):
            fuse(loaded)
    return loaded


def _context(export: Export) -> int:
    """Return how many positions there are to be; no more than the model's config knows."""
    config = json.loads((export.path / "config.json").read_text(encoding="utf-8"))
    known = config.get("text_config", config).get("max_position_embeddings")
    if known is None:
        return export.context or DEFAULT_CONTEXT
    most = known // CONTEXT_MULTIPLE * CONTEXT_MULTIPLE
    if export.context is None:
        return min(DEFAULT_CONTEXT, most)
    if export.context > known:
        raise UsageError(
            f"a context of {export.context}, and this model is made for {known} tokens",
            hint=f"--context {most}",
        )
    return export.context


def _check(export: Export) -> None:
    export.profile.check(export.weights, export.bits_per_weight)
    _check_profile(export)
    if export.slot is not None and export.adapters:
        raise UsageError(
            "a package with a slot takes adapters at run time, and none at its export",
            hint="leave out --adapter, then: macai export adapter --adapter DIR --for BUNDLE",
        )
    if export.bits_per_weight is not None and export.weights != "full":
        raise UsageError("--bits-per-weight chooses the weights itself: leave out --weights")
    if export.saves_bits:
        if export.bits_per_weight is None:
            Scheme.parse(export.weights)
        if not export.fuses:
            raise UsageError(
                "weights are compressed for one model, and several adapters make several",
                hint="export with one adapter, or with --weights full or keep",
            )


def _check_profile(export: Export) -> None:
    profile = export.profile
    if export.prefill and not profile.prefill:
        raise UsageError(
            f"a package for {profile.name} takes any number of tokens at once",
            hint="leave out --prefill",
        )
    if export.slot is not None and not profile.slot:
        raise UsageError(f"a package for {profile.name} has no room for an adapter at run time")
    if not profile.adapters and not export.fuses:
        raise UsageError(
            f"a package for {profile.name} has one function, and no room for adapters",
            hint="one --adapter, which is fused, without --weights keep",
        )


def _compressed(export: Export, progress: Progress) -> tuple[Compression | None, dict[str, Any]]:
    """Return how matrices are stored and what that costs; refuse what costs too much."""
    if not export.saves_bits:
        return None, {}
    loaded = reference(export.path, next(iter(export.adapters.values()), None))
    ids = loaded.tokenizer.encode(sample_text())[:PERPLEXITY_TOKENS]
    before = perplexity(loaded.model, ids)
    compression = compress_model(
        loaded,
        scheme=export.weights if export.bits_per_weight is None else None,
        bits_per_weight=export.bits_per_weight,
        text=export.calibration,
        plain_tables=export.profile.plain_tables,
        progress=progress,
    )
    price = cost(before, perplexity(loaded.model, ids), compression)
    increase = price["perplexity"]["delta"]
    if not increase <= export.largest_increase:
        raise ExportError(
            f"with {compression.bits_per_weight:.2f} bits per weight the perplexity of a text "
            f"rises by {increase:.1%}, and {export.largest_increase:.0%} is the limit",
            hint="more bits, --calibrate with text the model is for, or another limit",
        )
    return compression, price


def _measured_text(export: Export, loaded: LoadedModel) -> list[int]:
    """Return the text that tells how large values become; none if nothing is to be looked at."""
    if not export.positions:
        return []
    ids: list[int] = loaded.tokenizer.encode(export.calibration or calibration_text())
    return ids


def _reports(
    export: Export, folder: Path, compression: Compression | None, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Compare all functions of a bundle; by adapter, "model" for the plain or fused one.

    A slot is compared with an adapter of its full rank whose numbers are random.
    """
    models: dict[str, Path | None] = {"model": None}
    if export.fuses:
        models["model"] = next(iter(export.adapters.values()), None)
    else:
        models |= export.adapters
    reports = {}
    manifest, package = open_bundle(folder)
    for name, adapter in models.items():
        loaded = reference(export.path, adapter)
        if compression is not None:
            replace_weights(loaded.model, compression)
        reports[name] = verify_package(
            loaded,
            manifest,
            package,
            loaded.tokenizer.encode(sample_text())[: export.positions],
            tokens=export.tokens,
            adapter=None if name == "model" else name,
            progress=progress,
        )
    if manifest.slot is not None:  # there is one model then, the plain one
        layers = random_layers(manifest.slot)
        put_layers(loaded.model, layers)
        reports["slot"] = verify_package(
            loaded,
            manifest,
            package,
            loaded.tokenizer.encode(sample_text())[: min(export.positions, SLOT_POSITIONS)],
            tokens=export.tokens,
            held=manifest.slot.fill(layers),
            progress=progress,
        )
    return reports
