"""The Neural Engine, as far as its behaviour is documented or was reported; experimental.

1x1 convolutions with channels first, attention a head at a time, nothing in float32, palettes for
weights, keys and values in one state, packages of at most 1 GB. docs/coreml.md says which of these
Apple documents, and which others found.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.nn as nn

from macai.coreml.api import ExportFunction
from macai.coreml.calls import FixedCalls
from macai.coreml.compress import Scheme
from macai.coreml.llm import llm_functions
from macai.coreml.passes import PASSES
from macai.coreml.passes.channels_first import channels_first
from macai.coreml.profiles.gpu import INPUTS, USAGE
from macai.coreml.profiles.packed import PackedCaches
from macai.coreml.profiles.profile import Profile
from macai.errors import UsageError


def _functions(
    model: nn.Module, chunks: Sequence[range], **options: Any
) -> dict[str, ExportFunction]:
    made = llm_functions(model, caches=PackedCaches(chunks), **options)
    return {
        name: replace(
            function,
            passes=(*PASSES, channels_first),
            settings=replace(function.settings, fused_attention=False),
        )
        for name, function in made.items()
    }


def _check(weights: str, bits_per_weight: float | None) -> None:
    if bits_per_weight is not None:
        raise UsageError(
            "--bits-per-weight mixes schemes that the Neural Engine gets wrong",
            hint="--weights palette4-16, palette6-16 or palette8",
        )
    if weights == "keep" or (weights != "full" and Scheme.parse(weights).form != "palette"):
        raise UsageError(
            f"--weights {weights} is not for the Neural Engine: whole numbers with scales were "
            "seen to give wrong results there (coreai-models#279)",
            hint="--weights palette4-16, palette6-16, palette8 or full",
        )


ANE = Profile(
    name="ane",
    compute_units="cpuAndNeuralEngine",
    functions=_functions,
    default="decode",
    calls=FixedCalls(),
    prefill=(64,),
    adapters=True,
    inputs=INPUTS,
    swift=True,
    usage=USAGE,
    weights="palette6-16",
    check=_check,
    plain_tables=True,
    chunk_bytes=1_000_000_000,
    float32=False,
    unverified=(
        "that Core ML loads it, and places it on the Neural Engine: no device was at hand",
        "that the Neural Engine's float16 gives what was compared here, operation by operation",
        "that a state which is written at a computed position works there: reports contradict "
        "each other (coremltools#2553)",
        "how fast it is; the first load may take minutes while the system compiles it",
    ),
)
