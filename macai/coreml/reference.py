"""`docs/ops.md`: what can be exported, from the op table and the passes themselves.

Run `python -m macai.coreml.reference > docs/ops.md` after changing an op.
"""

import inspect
from types import ModuleType

from macai.coreml.ops import FAMILIES, OPS, Entry
from macai.coreml.passes import PASSES
from macai.coreml.passes.channels_first import channels_first
from macai.coreml.passes.constants import COMPUTE
from macai.coreml.passes.wide_norms import wide_norms

_HEAD = """\
# What can be exported

Written by `python -m macai.coreml.reference > docs/ops.md` from the op table.

Any MLX function of arrays becomes a Core ML package if each primitive it uses is here. Shapes are
static, or some axes of inputs have a range of sizes (`macai/coreml/flexible.py`). What has more
than 5 dimensions is rewritten where that is possible, and refused otherwise. An error names
everything that is missing at once, with the weight it comes after.
"""


def reference() -> str:
    """Return the page in Markdown: a table a family, then what is computed before exporting."""
    sections = [_HEAD, *(_family(module) for module in FAMILIES), _passes(), _computed()]
    return "\n".join(sections)


def _family(module: ModuleType) -> str:
    own = {op: entry for op, entry in OPS.items() if entry.lower.__module__ == module.__name__}
    rows = [f"| `{op}` | {_first_line(own[op])} | {_restriction(own[op])} |" for op in sorted(own)]
    title = module.__name__.rpartition(".")[2]
    table = ["| MLX | becomes | only |", "|---|---|---|", *rows]
    return f"## {title}\n\n{_summary(module)}\n\n" + "\n".join(table) + "\n"


def _passes() -> str:
    # The last two for U-Nets on a GPU, and for the profile ane.
    passes = (*PASSES, wide_norms, channels_first)
    modules = list(dict.fromkeys(inspect.getmodule(rewrite) for rewrite in passes))
    rows = [f"| `{m.__name__.rpartition('.')[2]}` | {_summary(m)} |" for m in modules if m]
    return "## Passes\n\n" + "\n".join(["| pass | what it does |", "|---|---|", *rows]) + "\n"


def _computed() -> str:
    names = ", ".join(f"`{op}`" for op in sorted(COMPUTE))
    return f"## Computed before exporting\n\nOf constants alone: {names}.\n"


def _first_line(entry: Entry) -> str:
    return _escaped((inspect.getdoc(entry.lower) or "").split("\n\n")[0])


def _restriction(entry: Entry) -> str:
    if entry.accepts is None:
        return ""
    return _escaped(inspect.getdoc(entry.accepts) or "some variants: the error says which not")


def _summary(module: ModuleType) -> str:
    return _escaped((inspect.getdoc(module) or "").split("\n\n")[0])


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")  # noqa: T201
