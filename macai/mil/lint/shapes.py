"""Rules about shapes, fixed and flexible."""

from collections.abc import Iterator

from macai.mil.features import Range, TensorSpec
from macai.mil.lint.rule import Finding, rule
from macai.mil.lint.subject import Subject
from macai.mil.types import TensorType

_MAX_RANK = 5
_MAX_SHAPES = 128
_ENGINE_LIMIT = 16384


def _ranges(spec: TensorSpec) -> list[Range]:
    return [d for d in spec.shape or () if isinstance(d, Range)]


@rule(
    "rank-over-5",
    "error",
    "A tensor of more than 5 dimensions",
    why="Core ML supports tensors of rank 5 at most and refuses the model.",
    fix="Merge dimensions before the operation: a repeat needs no rank 6.",
)
def rank_over_5(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for name, spec in {**view.function.inputs, **view.function.states}.items():
            if len(spec.shape or ()) > _MAX_RANK:
                yield Finding(f"{name} is {spec}", view.name)
        for operation in view.operations:
            if operation.type.startswith("constexpr_"):  # the palettes of a convolution have 6
                continue
            for name, type_ in operation.outputs.items():
                if isinstance(type_, TensorType) and len(type_.shape or ()) > _MAX_RANK:
                    yield Finding(f"{name} is {type_}", view.name, operation.name)


@rule(
    "rank-0-input",
    "error",
    "An input without dimensions",
    why="Core ML has no scalar inputs: a multi-array has at least one dimension.",
    fix="Make it [1] and squeeze it in the model.",
)
def rank_0_input(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for name, spec in view.function.inputs.items():
            if spec.shape == () and spec.dtype not in ("dictionary", "string"):
                yield Finding(f"input {name} is {spec}", view.name)


@rule(
    "range-and-functions",
    "error",
    "Flexible shapes in a package of several functions",
    why="Two functions with ranges, merged, load neither on macOS 15 nor on 26 "
    "(gemma-coreml-chat's benchmarks).",
    fix="Give each function fixed shapes, or ship one flexible function.",
)
def range_and_functions(subject: Subject) -> Iterator[Finding]:
    if len(subject.views) > 1:
        for view in subject.views:
            for name, spec in view.function.inputs.items():
                if _ranges(spec):
                    yield Finding(f"input {name} is {spec}", view.name)


@rule(
    "mixed-flexibility",
    "error",
    "One function has ranges and enumerated shapes",
    why="Core ML throws EnumeratedWithRangeInputsException (coremltools#2548).",
    fix="Use one kind for all inputs.",
)
def mixed_flexibility(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        specs = view.function.inputs
        enumerated = [n for n, s in specs.items() if s.enumerated is not None]
        ranged = [n for n, s in specs.items() if _ranges(s)]
        if enumerated and ranged:
            message = f"enumerated: {', '.join(enumerated)}; ranges: {', '.join(ranged)}"
            yield Finding(message, view.name)


@rule(
    "flexible-input",
    "note",
    "An input with a range of sizes",
    why="The Neural Engine takes the default size only: 'not currently supported for models with "
    "range shape inputs' (coremltools#2370).",
    fix="For the Neural Engine use fixed or enumerated shapes.",
    neural_engine=True,
)
def flexible_input(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for name, spec in view.function.inputs.items():
            if _ranges(spec):
                yield Finding(f"input {name} is {spec}", view.name)


@rule(
    "unbounded-input",
    "warning",
    "An input with a size that has no upper limit",
    why="Core ML plans memory for the largest shape; an ML Program without one fails or takes too "
    "much.",
    fix="Give RangeDim an upper_bound.",
)
def unbounded_input(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for name, spec in view.function.inputs.items():
            if any(r.upper is None for r in _ranges(spec)):
                yield Finding(f"input {name} is {spec}", view.name)


@rule(
    "too-many-shapes",
    "warning",
    "More than 128 enumerated shapes",
    why="Core ML takes 128 at most (coremltools' guide to flexible inputs).",
    fix="Enumerate fewer, further apart.",
)
def too_many_shapes(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for name, spec in view.function.inputs.items():
            count = len(spec.enumerated or ())
            if count > _MAX_SHAPES:
                yield Finding(f"input {name} has {count}", view.name)


@rule(
    "wide-layer",
    "note",
    "A layer wider than 16384",
    why="The Neural Engine has no convolution beyond 16384 in a dimension, or 65536 in others: the "
    "layer runs elsewhere (executorch#15936 saw wrong numbers at 8192 on iOS 26).",
    fix="Split it: a vocabulary into 8 or 16 heads.",
    neural_engine=True,
)
def wide_layer(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for operation in view.of("linear", "conv", "conv_transpose"):
            shape = view.shape(view.argument(operation, "weight"))
            if any(d is not None and d > _ENGINE_LIMIT for d in shape):
                yield Finding(f"{operation.type} {list(shape)}", view.name, operation.name)
