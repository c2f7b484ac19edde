"""Rules about single operations that are computed wrongly somewhere, or not at all."""

from collections.abc import Iterator

import numpy as np

from macai.mil.lint.rule import Finding, rule
from macai.mil.lint.subject import Subject
from macai.mil.lint.view import View
from macai.mil.program import Operation

FIRST_VERSION = {
    7: (
        "constexpr_affine_dequantize", "constexpr_cast", "constexpr_lut_to_dense",
        "constexpr_sparse_to_dense", "fill_like", "pixel_unshuffle", "reshape_like",
    ),
    8: ("dequantize", "quantize", "resize"),
    9: (
        "constexpr_blockwise_shift_scale", "constexpr_lut_to_sparse",
        "constexpr_sparse_blockwise_shift_scale", "coreml_update_state", "read_state",
        "scaled_dot_product_attention", "slice_update", "write_state",
    ),
}  # fmt: skip
"""The operations that came with a specification version: 7 is iOS 16, 8 iOS 17, 9 iOS 18."""
SYSTEMS = {6: "iOS 15", 7: "iOS 16", 8: "iOS 17", 9: "iOS 18", 10: "iOS 26"}
_OPSETS = {"CoreML5": 6, "CoreML6": 7, "CoreML7": 8, "CoreML8": 9, "CoreML9": 10}
_NARROW = {"int8": 2**7, "uint8": 2**8, "int16": 2**15, "uint16": 2**16}
_WIDE = 32768


@rule(
    "specification-too-old",
    "error",
    "Something newer than the specification version the package declares",
    why="Core ML refuses it, or an older system tries to load what it does not know.",
    fix="Convert with the minimum_deployment_target that the operations need.",
)
def specification_too_old(subject: Subject) -> Iterator[Finding]:
    declared = subject.package.specification_version
    needed = {name: version for version, names in FIRST_VERSION.items() for name in names}
    for view in subject.views:
        opset = view.function.body.opset
        if _OPSETS.get(opset, 0) > declared:
            yield Finding(f"opset {opset} in specification {declared}", view.name)
        late = sorted({o.type for o in view.operations if needed.get(o.type, 0) > declared})
        for name in late:
            yield Finding(
                f"{name} needs specification {needed[name]} ({SYSTEMS[needed[name]]}), the package "
                f"declares {declared}",
                view.name,
            )
    if len(subject.views) > 1 and declared < 9:
        yield Finding(f"{len(subject.views)} functions need specification 9 (iOS 18)")


@rule(
    "pow-of-two",
    "error",
    "pow with a constant base of 2",
    why="Core ML computes y² instead of 2^y, so 2^0 is 0 (coremltools#2628; the converter avoids "
    "it since #2742, after 9.0).",
    fix="Write exp(y · log 2).",
)
def pow_of_two(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for operation in view.of("pow"):
            if view.number(view.argument(operation, "x")) == 2:
                exponent = view.argument(operation, "y")
                if view.value(exponent) is None:
                    yield Finding(f"2^{exponent}", view.name, operation.name)


@rule(
    "floor-div-by-one",
    "note",
    "floor_div of a float by 1",
    why="coremltools' noop_elimination (up to 9.0) takes it for no operation, and the floor is "
    "gone after any run of its passes (coremltools#2762).",
    fix="Write floor.",
)
def floor_div_by_one(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for operation in view.of("floor_div"):
            is_float = view.dtype(view.result(operation)).startswith("fp")
            if is_float and view.number(view.argument(operation, "y")) == 1:
                yield Finding(operation.type, view.name, operation.name)


@rule(
    "index-too-narrow",
    "error",
    "Indices of 16 bits or less into a longer axis",
    why="int16 reaches 32768 rows and uint16 65536; the cast pass narrows indices without knowing "
    "the vocabulary (coremltools#2626, #2222).",
    fix="Convert without common::add_int16_cast, or keep indices int32.",
)
def index_too_narrow(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for operation, name in _indices(view):
            size = _axis_size(view, operation)
            limit = _NARROW.get(view.dtype(name))
            if limit is not None and size is not None and size > limit:
                yield Finding(
                    f"{operation.type}: {view.dtype(name)} indices into {size}",
                    view.name,
                    operation.name,
                )


def _indices(view: View) -> Iterator[tuple[Operation, str]]:
    """Yield each operation that takes or makes indices of an axis, with the name of those."""
    for operation in view.of("gather", "gather_along_axis"):
        indices = view.argument(operation, "indices")
        # Constant indices are what they are.
        if isinstance(indices, str) and view.value(indices) is None:
            yield operation, indices
    for operation in view.of("reduce_argmax", "reduce_argmin", "argsort"):
        yield operation, view.result(operation)
    for operation in view.of("topk"):
        for name in list(operation.outputs)[1:]:
            yield operation, name


def _axis_size(view: View, operation: Operation) -> int | None:
    shape = view.shape(view.argument(operation, "x"))
    axis = view.number(view.argument(operation, "axis"))
    axis = (0 if operation.type.startswith("gather") else -1) if axis is None else int(axis)
    return shape[axis] if -len(shape) <= axis < len(shape) else None


@rule(
    "choice-in-fp16",
    "note",
    "argmax or topk over a large float16 axis within the model",
    why="On the Neural Engine scores of a large vocabulary tie in float16 and the first wins: "
    "replies that repeat themselves on an A18, and topk that was wrong (CoreML-LLM).",
    fix="Return all scores and choose in float32 in the app.",
    neural_engine=True,
)
def choice_in_fp16(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for operation in view.of("reduce_argmax", "topk"):
            size = _axis_size(view, operation)
            half = view.dtype(view.argument(operation, "x")) == "fp16"
            if half and size is not None and size >= _WIDE:
                yield Finding(f"{operation.type} over {size}", view.name, operation.name)


@rule(
    "attention-batch",
    "warning",
    "Fused attention with a batch of 10 or more",
    why="The GPU computes it wrongly (macOS 26.2; coremltools#2650); CPU and Neural Engine do not.",
    fix="Split the batch, or write attention as matmul, softmax, matmul.",
)
def attention_batch(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for operation in view.of("scaled_dot_product_attention"):
            shape = view.shape(view.argument(operation, "query"))
            batch = shape[0] if shape else None
            if batch is not None and batch >= 10:
                yield Finding(f"query {list(shape)}", view.name, operation.name)


@rule(
    "attention-on-neural-engine",
    "note",
    "Fused attention",
    why="On iOS 26 the Neural Engine returned garbage for it (executorch#15833); on the GPU it is "
    "the fast form.",
    fix="For the Neural Engine write attention as matmul, softmax, matmul, a head at a time.",
    neural_engine=True,
)
def attention_on_neural_engine(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        found = list(view.of("scaled_dot_product_attention"))
        if found:
            yield Finding(f"{len(found)} times", view.name, found[0].name)


@rule(
    "masked-row",
    "error",
    "A constant attention mask with a row that lets nothing through",
    why="softmax over nothing is NaN where the mask is -inf or false.",
    fix="Let each row attend at least to itself.",
)
def masked_row(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for operation in view.of("scaled_dot_product_attention"):
            value = view.value(view.argument(operation, "attn_mask"))
            mask = value.read() if value else None
            if isinstance(mask, np.ndarray) and mask.ndim:
                closed = ~mask if mask.dtype == np.bool_ else np.isneginf(mask)
                rows = int(closed.all(axis=-1).sum())
                if rows:
                    yield Finding(
                        f"{rows} rows of {value and value.type}", view.name, operation.name
                    )


@rule(
    "repeated-keys",
    "note",
    "Keys or values are tiled before attention",
    why="Every repeated head is written and read again; taking repeats out gave 10 to 15% "
    "(executorch#16144).",
    fix="Fold the heads of a group into the query's rows instead.",
)
def repeated_keys(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for operation in view.of("scaled_dot_product_attention"):
            for parameter in ("key", "value"):
                tile = _tile(view, operation, parameter)
                if tile:
                    yield Finding(f"{parameter} is {tile.name}", view.name, operation.name)


def _tile(view: View, operation: Operation, parameter: str) -> Operation | None:
    maker = view.maker(view.argument(operation, parameter))
    while maker and maker.type in ("reshape", "transpose", "squeeze", "expand_dims"):
        maker = view.maker(view.argument(maker, "x"))
    return maker if maker and maker.type == "tile" else None
