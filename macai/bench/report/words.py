"""What a figure is called: the same in every form of a report."""

from collections.abc import Mapping
from typing import Any

from macai.page.words import plain

SECTIONS = {
    "generate": "Generation",
    "train": "Training",
    "image": "Images",
    "coreml": "Core ML packages",
}


def parameters(figure: Mapping[str, Any]) -> str:
    """Return what a figure was measured at: "context 128, batch 4"."""
    return ", ".join(f"{key} {plain(value)}" for key, value in figure["parameters"].items())


def title(figure: Mapping[str, Any]) -> str:
    """Return the name of a figure with what it was measured at."""
    at = parameters(figure)
    return f"{figure['name']} ({at})" if at else str(figure["name"])
