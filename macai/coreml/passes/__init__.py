"""Rewrites of a graph, one a file, each from MLX's primitives to fewer or better ones."""

from macai.coreml.graph import Graph, Pass
from macai.coreml.passes.activations import activations
from macai.coreml.passes.constants import fold_constants
from macai.coreml.passes.linear import linear
from macai.coreml.passes.low_rank import low_rank
from macai.coreml.passes.mean import mean
from macai.coreml.passes.ones import ones
from macai.coreml.passes.pick import pick
from macai.coreml.passes.pictures_first import pictures_first
from macai.coreml.passes.reshapes import merge_reshapes
from macai.coreml.passes.rotations import rotations
from macai.coreml.passes.rows_first import rows_first
from macai.coreml.passes.take import take
from macai.coreml.passes.thin import thin
from macai.coreml.passes.turned import turned

# These look for patterns as MLX traces them, so they come before reshapes are merged.
PASSES: tuple[Pass, ...] = (
    fold_constants,
    take,
    linear,
    activations,
    mean,
    low_rank,
    ones,
    merge_reshapes,
    rows_first,
    merge_reshapes,
    pick,
    thin,
    turned,
    rotations,
    pictures_first,
    merge_reshapes,
)

__all__ = ["PASSES", "Graph", "Pass"]
