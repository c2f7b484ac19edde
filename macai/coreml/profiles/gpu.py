"""The default: functions of fixed shapes, prefill and decode, and code for an app."""

from collections.abc import Sequence
from typing import Any

import mlx.nn as nn

from macai.coreml.api import ExportFunction
from macai.coreml.calls import FixedCalls
from macai.coreml.llm import llm_functions
from macai.coreml.profiles.profile import Profile

INPUTS = {
    "inputIds": "Token ids",
    "position": "Position of the first of them",
    "last": "Row whose logits are wanted: the last token's",
}
USAGE = """\
## What the functions do

Each writes keys and values at `position` and after, into the states, and attends to all positions
up to its own. A prefill takes up to its number of tokens; what is behind `last` is padding and is
written over later. `position` plus the tokens of the function must not exceed the context.
"""


def _functions(
    model: nn.Module, chunks: Sequence[range], **options: Any
) -> dict[str, ExportFunction]:
    return llm_functions(model, **options)


GPU = Profile(
    name="gpu",
    compute_units="cpuAndGPU",
    functions=_functions,
    default="decode",
    calls=FixedCalls(),
    prefill=(64,),
    adapters=True,
    slot=True,
    inputs=INPUTS,
    swift=True,
    usage=USAGE,
)
