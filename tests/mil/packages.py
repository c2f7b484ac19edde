"""Packages for tests, built with coremltools' MIL builder and saved."""

import gc
import warnings
from collections.abc import Callable
from pathlib import Path

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types

from macai.mil import Package, open_package

DTYPES = {"fp16": types.fp16, "fp32": types.fp32, "int32": types.int32, "bool": types.bool}


def tensor(*shape, dtype="fp32"):
    return mb.TensorSpec(shape, dtype=DTYPES[dtype])


def state(*shape):
    return mb.StateTensorSpec(shape, dtype=types.fp16)


def save(program, path: Path, *, target=ct.target.iOS18, pipeline=ct.PassPipeline.EMPTY) -> Path:
    return save_model(
        lambda: ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=target,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
            pass_pipeline=pipeline,
        ),
        path,
    )


def save_model(convert: Callable, path: Path) -> Path:
    """Save the model that `convert` makes; coremltools leaves its folders to the collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert().save(str(path))
        gc.collect()
    return path


def build(
    body: Callable,
    *specs,
    path: Path,
    target=ct.target.iOS18,
    pipeline=ct.PassPipeline.EMPTY,
) -> Package:
    """Save the program that `body` makes of inputs x0, x1, ... of these specs, and open it."""
    # The builder takes the inputs' names from the function's parameters.
    names = ", ".join(f"x{i}" for i in range(len(specs)))
    named = eval(f"lambda {names}: body({names})", {"body": body})
    program = mb.program(input_specs=list(specs), opset_version=target)(named)
    return open_package(save(program, path, target=target, pipeline=pipeline))


def run(package: Package, *arrays, precision="fp32", state=None, function=None) -> list[np.ndarray]:
    """Run a package's function and return its outputs in the order of the program."""
    fn = package.functions[function or package.default_function]
    inputs = dict(zip(fn.inputs, arrays, strict=True))
    return list(fn.run(inputs, state=state, precision=precision).outputs.values())
