"""What a model has computed of a prompt, kept from one reply to the next."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class PromptCache:
    """Keys and values of every layer, and the ids they stand for.

    Attributes:
        ids: The ids that were fed; behind `layers` by what was fed without its value being known.
        layers: mlx-lm's caches, one a layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        from mlx_lm.models.cache import make_prompt_cache

        self.ids: list[int] = []
        self.layers: list[Any] = make_prompt_cache(self._model)
        self._length = 0
        self._whole = True

    def feed(self, ids: mx.array) -> mx.array:
        """Run the model on the next ids: int32 [L] -> logits [1, L, V], not evaluated."""
        self._whole = False
        logits: mx.array = self._model(ids[None], cache=self.layers)
        self._length += ids.size
        self._whole = True
        return logits

    def keep_prefix(self, prompt_ids: Sequence[int]) -> int:
        """Forget all that does not begin `prompt_ids`; return how many ids are left.

        They are fewer than the prompt's: its last id must be fed to have logits.
        """
        from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

        pairs = zip(self.ids, prompt_ids[:-1], strict=False)
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        surplus = self._length - kept
        # An interrupt inside the model leaves some layers longer than others.
        if not self._whole or (surplus and not can_trim_prompt_cache(self.layers)):
            self.clear()
            return 0
        if surplus:
            trim_prompt_cache(self.layers, surplus)
        self._length = kept
        del self.ids[kept:]
        return kept
