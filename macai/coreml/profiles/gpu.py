"""The default: functions of fixed shapes, prefill and decode, and code for an app."""

from macai.coreml.calls import FixedCalls
from macai.coreml.llm import llm_functions
from macai.coreml.profiles.profile import Profile

_USAGE = """\
In an app: `Swift/` is a package with a typed, streaming `generate`; see its README.

## What the functions do

Each writes keys and values at `position` and after, into the states, and attends to all positions
up to its own. A prefill takes up to its number of tokens; what is behind `last` is padding and is
written over later. `position` plus the tokens of the function must not exceed the context.
"""

GPU = Profile(
    name="gpu",
    compute_units="cpuAndGPU",
    functions=llm_functions,
    default="decode",
    calls=FixedCalls(),
    prefill=(64,),
    adapters=True,
    inputs={
        "inputIds": "Token ids",
        "position": "Position of the first of them",
        "last": "Row whose logits are wanted: the last token's",
    },
    swift=True,
    usage=_USAGE,
)
