from pathlib import Path

from macai.coreml.ops import OPS
from macai.coreml.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "ops.md"


def test_the_page_is_what_the_table_says_of_itself():
    current = PAGE.read_text(encoding="utf-8")
    assert current == reference(), "run: python -m macai.coreml.reference > docs/ops.md"


def test_every_op_and_every_restriction_is_described():
    lines = [line for line in reference().splitlines() if line.startswith("| `")]
    described = {line.split("`")[1]: line.split(" | ") for line in lines}
    assert set(OPS) <= set(described)
    for op, entry in OPS.items():
        _, what, only = described[op]
        assert what, op
        assert bool(only.strip(" |")) == (entry.accepts is not None), op
