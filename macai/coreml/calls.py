"""How the functions of a package are called: which one takes the next tokens, and with what."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from macai.coreml.manifest import Manifest

DECODE_AT_MOST = 4
"""Fewer tokens than this go one by one: a padded prefill computes all its rows."""


class Calls(Protocol):
    """One way to call them."""

    def room(self, manifest: "Manifest") -> int:
        """Return how many tokens a conversation can have."""
        ...

    def next(self, manifest: "Manifest", position: int, left: int) -> tuple[str, int]:
        """Return the plain model's function for the next tokens, and how many it takes of them."""
        ...

    def inputs(self, tokens: int, ids: Sequence[int], position: int) -> Mapping[str, np.ndarray]:
        """Return the inputs of a function that takes so many tokens, for `ids` at a position."""
        ...


class FixedCalls:
    """Prompts in chunks of the functions' sizes, their rest padded; then token by token."""

    def room(self, manifest: "Manifest") -> int:
        return manifest.context

    def next(self, manifest: "Manifest", position: int, left: int) -> tuple[str, int]:
        """The shortest function that takes them all, else the longest."""
        functions = manifest.functions
        fitting = [
            n for n in manifest.prefills if position + functions[n].tokens <= manifest.context
        ]
        if left <= DECODE_AT_MOST or not fitting:
            return "decode", 1
        enough = [n for n in fitting if functions[n].tokens >= left]
        name = enough[-1] if enough else fitting[0]
        return name, min(left, functions[name].tokens)

    def inputs(self, tokens: int, ids: Sequence[int], position: int) -> Mapping[str, np.ndarray]:
        padded = np.zeros((1, tokens), np.int32)
        padded[0, : len(ids)] = ids
        inputs = {"inputIds": padded, "position": np.array([position], np.int32)}
        if tokens > 1:
            inputs["last"] = np.array([len(ids) - 1], np.int32)
        return inputs


class MaskCalls:
    """All tokens at once, and where they begin by the width of a mask: as swift-transformers does.

    LanguageModelWithStatefulKVCache (1.3.3) gives a mask of zeros, float16 [1, 1, 1, n + 1], for n
    tokens in all: it leaves the first place of the state empty.
    """

    def __init__(self, function: str) -> None:
        self._function = function

    def room(self, manifest: "Manifest") -> int:
        return manifest.context - 1

    def next(self, manifest: "Manifest", position: int, left: int) -> tuple[str, int]:
        return self._function, left

    def inputs(self, tokens: int, ids: Sequence[int], position: int) -> Mapping[str, np.ndarray]:
        mask = np.zeros((1, 1, 1, position + len(ids) + 1), np.float16)
        return {"inputIds": np.array([ids], np.int32), "causalMask": mask}
