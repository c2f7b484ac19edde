"""Rules about numbers: what float16 cannot hold, and forms that lose it."""

from collections.abc import Iterator

from macai.mil.lint.rule import Finding, rule
from macai.mil.lint.subject import Subject
from macai.mil.lint.view import View, counted
from macai.mil.program import Argument, Operation

_CHAIN = 3
"""How many operations a norm has between its mean and its root."""
_BOUNDED = ("sigmoid", "tanh", "softmax", "sin", "cos", "relu6", "clip", "softsign", "l2_norm")
_ROOTS = ("rsqrt", "sqrt", "pow")


@rule(
    "fp32-operations",
    "note",
    "Operations in float32 within a function in float16",
    why="They do not run on the Neural Engine, and each border costs a cast. Norms and angles are "
    "often kept so on purpose: float16 overflows in them.",
    fix="Nothing, if they are meant; else look for the constant or the cast that keeps them.",
)
def fp32_operations(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        islands = view.float_operations["fp32"]
        if view.mostly_half and islands:
            yield Finding(f"{len(islands)} operations: {counted(islands)}", view.name)


@rule(
    "fp32-program",
    "note",
    "A function that computes in float32",
    why="It never runs on the Neural Engine, and takes twice the memory and bandwidth on the GPU.",
    fix="Export it in float16, unless float16 was seen to be too coarse.",
)
def fp32_program(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        operations = view.float_operations["fp32"]
        if operations and not view.mostly_half:
            yield Finding(f"{len(operations)} operations: {counted(operations)}", view.name)


@rule(
    "norm-in-fp16",
    "warning",
    "A sum of squares in float16",
    why="Squares beyond 65504 become infinite and the norm zero: SmolLM2-135M reaches a mean "
    "square of 1.1e6 (measured), OpenELM and Gemma 3 more (swift-transformers#95). "
    "ct.convert's default FLOAT16 takes float32 islands away without a word.",
    fix="Keep the norm in float32, divide by the largest value first, or use layer_norm of "
    "concat(x, -x); convert with compute_precision=FLOAT32.",
)
def norm_in_fp16(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for operation in view.of("reduce_mean", "reduce_sum"):
            if view.is_half(operation):
                squared = _squared(view, view.argument(operation, "x"))
                roots = [o for o in view.descendants(operation, _CHAIN) if o.type in _ROOTS]
                if squared and roots and not _is_bounded(view, squared):
                    yield Finding(
                        f"{operation.type} of the square of {squared}", view.name, operation.name
                    )
        for operation in view.of("reduce_sum_square", "reduce_l2_norm", "l2_norm"):
            given = view.argument(operation, "x")
            if view.is_half(operation) and not _is_bounded(view, given):
                yield Finding(f"{operation.type} of {given}", view.name, operation.name)


def _squared(view: View, argument: Argument | None) -> str | None:
    """Return the name of what an argument is the float16 square of."""
    maker = view.made_by(argument, "square", "mul", "pow")
    if maker is None or not view.is_half(maker):
        return None
    x, y = view.argument(maker, "x"), view.argument(maker, "y")
    is_square = (
        maker.type == "square"
        or (maker.type == "mul" and x == y)
        or (maker.type == "pow" and view.number(y) == 2)
    )
    return x if is_square and isinstance(x, str) else None


def _is_bounded(view: View, argument: Argument | None) -> bool:
    """Whether a value was divided by its largest, or comes from a function that is small."""
    maker = view.maker(argument)
    if maker is None or maker.type in _BOUNDED:
        return maker is not None
    if maker.type not in ("real_div", "mul"):
        return False
    divisors = [a for p in ("x", "y") for a in maker.inputs.get(p, ())]
    return any(o.type == "reduce_max" for a in divisors for o in view.ancestors(a, _CHAIN))


@rule(
    "angle-in-fp16",
    "warning",
    "sin or cos of a float16 angle",
    why="Angles grow with the position: at 500 float16 is off by 0.02 (measured on a U-Net's time "
    "embedding), and beyond 2048 it skips whole numbers.",
    fix="Compute the angle in float32, or take sin and cos from a table.",
)
def angle_in_fp16(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for operation in view.of("sin", "cos"):
            x = view.argument(operation, "x")
            if view.dtype(x) == "fp16" and view.value(x) is None:
                yield Finding(f"{operation.type} of {x}", view.name, operation.name)


@rule(
    "softplus-overflow",
    "note",
    "softplus in float16",
    why="On the Neural Engine it drops to 0 above 10.4: it computes log(1 + exp(x)) "
    "(coremltools#2687, #2747).",
    fix="Write max(x, 0) + log(1 + exp(-|x|)).",
    neural_engine=True,
)
def softplus_overflow(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for operation in view.of("softplus", "softplus_parametric"):
            if view.is_half(operation):
                yield Finding(operation.type, view.name, operation.name)
        for log, inner in _logs(view, "add"):
            terms = [view.argument(inner, p) for p in ("x", "y")]
            if any(_is_wild_exp(view, t) for t in terms):
                yield Finding("log(1 + exp(x))", view.name, log.name)


@rule(
    "logsumexp-overflow",
    "note",
    "The logarithm of a sum of exponentials in float16, without taking the largest away first",
    why="The sum overflows on the Neural Engine, reduce_log_sum_exp's too: 32 channels at 7.63 "
    "give 0 (coremltools#2690, #2729).",
    fix="Write max + log(sum(exp(x - max))) in operations of its own.",
    neural_engine=True,
)
def logsumexp_overflow(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for operation in view.of("reduce_log_sum_exp"):
            if view.is_half(operation):
                yield Finding(operation.type, view.name, operation.name)
        for log, inner in _logs(view, "reduce_sum", "cumsum"):
            if _is_wild_exp(view, view.argument(inner, "x")):
                yield Finding(f"log({inner.type}(exp(x)))", view.name, log.name)


@rule(
    "log-softmax-underflow",
    "note",
    "The logarithm of a softmax in float16",
    why="Small probabilities become 0 and their logarithm -inf (coremltools#2728).",
    fix="Write x - max - log(sum(exp(x - max))).",
    neural_engine=True,
)
def log_softmax_underflow(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for log, inner in _logs(view, "softmax"):
            yield Finding(f"log of {inner.name}", view.name, log.name)


def _logs(view: View, *types: str) -> Iterator[tuple[Operation, Operation]]:
    """Yield each float16 log of the result of an operation of these types, with that operation."""
    for log in view.of("log"):
        inner = view.made_by(view.argument(log, "x"), *types)
        if inner and view.is_half(inner):
            yield log, inner


def _is_wild_exp(view: View, argument: Argument | None) -> bool:
    """Whether a value is exp of something that nothing keeps at or below 0."""
    exp = view.made_by(argument, "exp")
    if exp is None or not view.is_half(exp):
        return False
    maker = view.made_by(view.argument(exp, "x"), "sub", "mul")
    if maker is None:
        return True
    if maker.type == "sub":
        return all(o.type != "reduce_max" for o in view.ancestors(view.argument(maker, "y"), 2))
    factors = [view.number(view.argument(maker, p)) for p in ("x", "y")]
    return not any(f is not None and f < 0 for f in factors) or not any(
        view.made_by(view.argument(maker, p), "abs", "square") for p in ("x", "y")
    )
