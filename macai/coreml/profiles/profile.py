"""What a profile decides."""

from collections.abc import Mapping, Sequence
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
        *,
        context: int,
        prefill: Sequence[int],
        precision: str,
        adapter: str = "",
        compress: Compress | None = None,
    ) -> dict[str, ExportFunction]:
        """Return the functions of a model by name."""
        ...


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
        inputs: What a package says of its functions' inputs.
        repository_key: Where the metadata of a package has the model's repository; nowhere if "".
        swift: Whether code for an app comes with it.
        usage: For the model's card, in Markdown: how an app runs it, and what its functions do.
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
    repository_key: str = ""
    swift: bool = False
    unverified: Sequence[str] = ()
