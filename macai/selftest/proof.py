"""What a proof is, and what it is made on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from macai.data.tokens import Example
from macai.models.load import LoadedModel, load_model
from macai.models.lora import ALL_LINEAR, add_lora, lora_layers, target_paths

RANK = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """What a proof found: whether its claim holds here, and by what measure.

    Attributes:
        held: None where the claim is about something that this machine does not do.
    """

    held: bool | None
    measure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A claim about training, and how to find out.

    Attributes:
        name: One word, for `--json`.
        claim: What must hold.
        find: Finds out, on a model.
        any_model: Whether it says something about a given model too, not only about the trainer.
    """

    name: str
    claim: str
    find: Callable[["Subject"], Finding]
    any_model: bool


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that proofs are made on.

    Attributes:
        folder: A Hugging Face model directory.
        scratch: An empty folder to write to.
    """

    folder: Path
    scratch: Path

    def load(self) -> LoadedModel:
        """Load the model anew."""
        return load_model(self.folder)

    def adapted(self, *, dropout: float = 0.0) -> LoadedModel:
        """Load the model, in training, with LoRA whose B is not zero: so A has a gradient too."""
        loaded = self.load()
        adapt(loaded, dropout=dropout)
        loaded.model.train()
        return loaded


def adapt(loaded: LoadedModel, *, dropout: float = 0.0) -> None:
    """Put LoRA on all linear layers that changes what they compute, the same each time."""
    paths = target_paths(loaded.model, [ALL_LINEAR])
    add_lora(loaded.model, paths, rank=RANK, alpha=2.0 * RANK, dropout=dropout)
    layers = lora_layers(loaded.model).values()
    for layer, key in zip(layers, mx.random.split(mx.random.key(7), len(layers)), strict=True):
        layer.lora_B = 0.02 * mx.random.normal(layer.lora_B.shape, key=key)
    mx.eval(loaded.model.parameters())


def random_examples(*sizes: tuple[int, int], vocabulary: int, begin: int = 0) -> list[Example]:
    """Return rows of random tokens, the same each time.

    Args:
        sizes: Of each row its tokens, and how many at its end are learnt.
        vocabulary: Ids are below it.
        begin: Of how many tokens all rows begin alike.
    """
    rng = np.random.default_rng(0)
    beginning = rng.integers(3, vocabulary, begin)
    examples = []
    for number, (length, learnt) in enumerate(sizes):
        ids = rng.integers(3, vocabulary, length).astype(np.int32)
        ids[:begin] = beginning
        examples.append(Example(ids, np.arange(length) >= length - learnt, f"row {number + 1}"))
    return examples


def largest_difference(actual: mx.array, expected: mx.array) -> float:
    """Return the largest difference of two arrays as a part of the largest expected value."""
    a, b = (np.asarray(x.astype(mx.float32), np.float64) for x in (actual, expected))
    return float(np.abs(a - b).max() / np.abs(b).max())


def within(allowed: float, **differences: float) -> Finding:
    """Return a finding that holds if no difference is above what is allowed; nan is."""
    text = ", ".join(f"{name} {value:.1e} off" for name, value in differences.items())
    held = all(value <= allowed for value in differences.values())
    return Finding(held, f"{text} (allowed {allowed:.0e})")


def unequal_bits(actual: Sequence[mx.array], expected: Sequence[mx.array]) -> int:
    """Return how many numbers of two lists of arrays are not the same to the last bit."""

    def bits(array: mx.array) -> NDArray[np.uint8]:
        return np.asarray(mx.view(array.reshape(-1), mx.uint8))

    return sum(int((bits(a) != bits(b)).sum()) for a, b in zip(actual, expected, strict=True))
