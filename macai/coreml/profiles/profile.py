"""What a profile decides."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.nn as nn

from macai.coreml.api import ExportFunction
from macai.coreml.calls import Calls
from macai.coreml.lower import Compress


class MakeFunctions(Protocol):
    """llm.llm_functions, or what a profile has instead."""

    def __call__(
        self,
        model: nn.Module,
        chunks: Sequence[range],
        *,
        context: int,
        prefill: Sequence[int],
        precision: str,
        adapter: str = "",
        compress: Compress | None = None,
    ) -> dict[str, ExportFunction]:
        """Return the functions of a model by name, its layers divided among packages so."""
        ...


def _any_weights(weights: str, bits_per_weight: float | None) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How a language model is exported, and called.

    Attributes:
        name: As the command line has it.
        compute_units: Where it is meant to run, as Core ML's configuration calls it.
        functions: What makes its functions.
        default: The one that runs where none is named.
        calls: How they are called.
        prefill: Tokens of each prefill function, unless others are asked for; none where a function
            takes any number of tokens.
        adapters: Whether adapters can have functions of their own.
        slot: Whether there can be room for an adapter at run time.
        inputs: What a package says of its functions' inputs.
        repository_key: Where the metadata of a package has the model's repository; nowhere if "".
        swift: Whether code for an app comes with it.
        usage: For the model's card, in Markdown: what its functions do, or how an app calls them.
        weights: How weights are stored where nothing is said: see export_llm.Export.weights.
        check: Called with the weights and bits per weight asked for; raises UsageError where the
            profile has no such weights.
        plain_tables: Whether what rows are read from is stored in full, even if it is compressed.
        chunk_bytes: The most weights one package has; None: all are in one package.
        float32: Whether values may be float32 where it runs.
        unverified: What nobody has tried on a device, a sentence each.
    """

    name: str
    compute_units: str
    functions: MakeFunctions
    default: str
    calls: Calls
    inputs: Mapping[str, str]
    usage: str
    prefill: Sequence[int] = ()
    adapters: bool = False
    slot: bool = False
    repository_key: str = ""
    swift: bool = False
    weights: str = "full"
    check: Callable[[str, float | None], None] = _any_weights
    plain_tables: bool = False
    chunk_bytes: int | None = None
    float32: bool = True
    unverified: Sequence[str] = ()
