"""Models from any source; importing this package loads the fast BLAS, before MLX is imported.

So a process that computes on Linux imports `macai.models` first, and `macai.cli.app` does so for
every command.
"""

from macai.models.blas import load_fast_blas

load_fast_blas()
