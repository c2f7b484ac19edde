"""Rules about states: what a package keeps from call to call."""

from collections.abc import Iterator

from macai.mil.lint.rule import Finding, rule
from macai.mil.lint.subject import Subject
from macai.mil.lint.view import View
from macai.mil.program import Operation

_MULTIPLE = 32
_PARAMETERS = {"read_state": "input", "write_state": "input", "coreml_update_state": "state"}
_VIEWS = ("reshape", "transpose", "squeeze", "expand_dims")


def _touches(view: View, name: str, *types: str) -> list[Operation]:
    """Return the operations of these types that are about one state."""
    return [o for o in view.of(*types) if view.argument(o, _PARAMETERS[o.type]) == name]


@rule(
    "state-not-fp16",
    "error",
    "A state that is not float16",
    why="Core ML keeps states in float16 only; coremltools refuses to write any other.",
    fix="Declare the state float16 and cast what is read from it.",
)
def state_not_fp16(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for name, spec in view.function.states.items():
            if spec.dtype != "fp16":
                yield Finding(f"state {name} is {spec}", view.name)


@rule(
    "flexible-state",
    "error",
    "A state without one fixed shape",
    why="Core ML has no flexible states: loading fails (coremltools#2537).",
    fix="Give the state its largest shape and pass how much of it is used.",
)
def flexible_state(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for name, spec in view.function.states.items():
            fixed = spec.shape is not None and all(isinstance(d, int) for d in spec.shape)
            if spec.enumerated is not None or not fixed:
                yield Finding(f"state {name} is {spec}", view.name)


@rule(
    "unused-state",
    "warning",
    "A state that no operation reads or writes",
    why="coremltools 9.0 fails on it when it converts (coremltools#2661), and it takes memory.",
    fix="Leave the state out of that function.",
)
def unused_state(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for name in view.states:
            if not _touches(view, name, *_PARAMETERS):
                yield Finding(f"state {name}", view.name)


@rule(
    "state-never-read",
    "warning",
    "A state that is written and never read",
    why="What is kept changes nothing: a read was lost, or merged into an earlier one.",
    fix="Read the state after writing it, or drop it.",
)
def state_never_read(subject: Subject) -> Iterator[Finding]:
    names = {n for view in subject.views for n in view.states}
    for name in sorted(names):
        reads = [o for v in subject.views for o in _touches(v, name, "read_state")]
        writes = [o for v in subject.views for o in _touches(v, name, "write_state")]
        updates = [
            o
            for view in subject.views
            for o in _touches(view, name, "coreml_update_state")
            if not view.users.get(view.result(o))
        ]
        if not reads and (writes or updates):
            yield Finding(f"state {name} is written {len(writes) + len(updates)} times")


@rule(
    "stale-state",
    "warning",
    "A value read from a state before it was written is used after that",
    why="coremltools' pass common::remove_redundant_ops (9.0, 9.1.dev1) merges a read after a "
    "write into the read before it: what follows then computes with the old state. The saved "
    "program cannot tell that from an old value that is meant; it is reported only where the new "
    "one is never read.",
    fix="Use what coreml_update_state returns, and convert without that pass.",
)
def stale_state(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        order = {id(o): n for n, o in enumerate(view.operations)}
        for name in view.states:
            writes = [order[id(o)] for o in _touches(view, name, "write_state")]
            reads = _touches(view, name, "read_state")
            last = writes[-1] if writes else -1
            if any(order[id(o)] > last for o in reads):
                continue
            for read in reads:
                late = [o for o in view.users.get(view.result(read), ()) if order[id(o)] > last]
                if late:
                    yield Finding(
                        f"{late[0].type} {late[0].name} uses {read.name}, which state {name} held "
                        "before its last write, and nothing reads it after",
                        view.name,
                        late[0].name,
                    )


@rule(
    "states-differ",
    "warning",
    "Functions have a state of one name in several shapes",
    why="A state made for one function cannot be given to another whose shape differs, so a "
    "prefill cannot hand its cache to a decode (seen as ANEMLL#54).",
    fix="Export all functions with one context length.",
)
def states_differ(subject: Subject) -> Iterator[Finding]:
    shapes: dict[str, dict[str, list[str]]] = {}
    for view in subject.views:
        for name, spec in view.function.states.items():
            shapes.setdefault(name, {}).setdefault(str(spec), []).append(view.name)
    for name, found in shapes.items():
        if len(found) > 1:
            each = "; ".join(f"{spec} in {', '.join(users)}" for spec, users in found.items())
            yield Finding(f"state {name}: {each}")


@rule(
    "state-reshaped",
    "note",
    "A state is reshaped or transposed as a whole, directly after reading or before writing",
    why="Some such programs convert and then fail to load with 'MIL program input not found in "
    "Core ML model inputs' (coremltools#2275, #2278). Which ones is not known.",
    fix="Keep the state in the layout it is used in, and reshape the slice that is written.",
)
def state_reshaped(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for name in view.states:
            for read in _touches(view, name, "read_state"):
                for user in view.users.get(view.result(read), ()):
                    if user.type in _VIEWS:
                        yield Finding(f"{user.type} of state {name}", view.name, user.name)
            for write in _touches(view, name, "write_state"):
                maker = view.made_by(view.argument(write, "data"), *_VIEWS)
                if maker:
                    yield Finding(f"state {name} is set to a {maker.type}", view.name, maker.name)


@rule(
    "state-width",
    "note",
    "A state whose last dimensions are not multiples of 32",
    why="Such a model fails on the Neural Engine: 270 wide does, 256 does not (coremltools#2631).",
    fix="Round the context and the width of the state up to a multiple of 32.",
    neural_engine=True,
)
def state_width(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        for name, spec in view.function.states.items():
            last = [d for d in (spec.shape or ())[-2:] if isinstance(d, int)]
            if any(d % _MULTIPLE for d in last):
                yield Finding(f"state {name} is {spec}", view.name)


@rule(
    "many-states",
    "note",
    "More than one state",
    why="Models with two or three states were seen to fail on the Neural Engine (status 0x1d), "
    "though all of them was placed there; one packed state works (CoreML-LLM).",
    fix="For the Neural Engine pack keys and values into one state.",
    neural_engine=True,
)
def many_states(subject: Subject) -> Iterator[Finding]:
    for view in subject.views:
        if len(view.states) > 1:
            yield Finding(f"{len(view.states)} states: {', '.join(view.states)}", view.name)
