"""What a device tries itself with: inputs, and what the model makes of them."""

from pathlib import Path

import mlx.core as mx
import numpy as np

from macai.coreml.sd.component import Component
from macai.coreml.sd.samples import Arrays

FILE = "golden.safetensors"
_TRIED = ("TextEncoder", "TextEncoder2", "Unet", "VAEDecoder")


def golden(component: Component, given: Arrays, results: Arrays) -> Arrays:
    """Return a sample of a component under the names that SelfTest.swift reads.

    "Unet.inputs.sample", "Unet.outputs.noise_pred" and so on, in the types of its features;
    outputs are float16, which is closer than any device comes. Nothing of other components.
    """
    if component.name not in _TRIED:
        return {}
    half = {name for name, f in component.inputs.items() if f.dtype == mx.float16}
    inputs = {
        f"{component.name}.inputs.{name}": array.astype(np.float16 if name in half else np.float32)
        for name, array in given.items()
    }
    outputs = {
        f"{component.name}.outputs.{name}": array.astype(np.float16)
        for name, array in results.items()
    }
    return inputs | outputs


def write_golden(arrays: Arrays, folder: Path) -> None:
    """Write the samples into a bundle."""
    mx.save_safetensors(str(folder / FILE), {name: mx.array(a) for name, a in arrays.items()})
