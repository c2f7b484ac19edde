import gc

import mlx.core as mx
import mlx.nn as nn
from coremltools.converters.mil.mil import Function

from macai.coreml.api import export


def test_a_program_that_was_written_is_let_go(tmp_path):
    gc.collect()
    before = sum(isinstance(one, Function) for one in gc.get_objects())
    model = nn.Sequential(nn.Linear(4, 4), lambda x: x.reshape(2, 2).astype(mx.float32))
    export(model, {"x": mx.zeros((1, 4))}, tmp_path / "m.mlpackage", weights=model)
    gc.collect()
    assert sum(isinstance(one, Function) for one in gc.get_objects()) == before
