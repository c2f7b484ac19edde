"""States: what is read is what was written last, in fp16."""

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb

from tests.mil.packages import build, run, state, tensor


def stale_state(cache, x):
    """read → add → update → read → mul: the second read must see the update."""
    updated = mb.add(x=mb.read_state(input=cache), y=x)
    mb.coreml_update_state(state=cache, value=updated)
    return mb.mul(x=mb.read_state(input=cache), y=np.float16(2))


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [(ct.PassPipeline.EMPTY, [[2, 4], [4, 8]]), (ct.PassPipeline.DEFAULT, [[0, 0], [2, 4]])],
    ids=["empty", "default"],
)
def test_the_default_passes_of_coremltools_read_a_stale_state(tmp_path, pipeline, expected):
    package = build(
        stale_state, state(2), tensor(2, dtype="fp16"), path=tmp_path / "p.mlpackage",
        pipeline=pipeline,
    )  # fmt: skip
    memory = package.make_state()
    x = np.array([1, 2], np.float16)
    outputs = [run(package, x, state=memory)[0].tolist() for _ in range(2)]
    assert outputs == expected
    assert memory["x0"].tolist() == [2, 4]
