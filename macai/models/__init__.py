"""Models from any source; importing this package loads the fast BLAS, before MLX is imported.

It also has malloc keep what is freed. So a process that computes on Linux imports `macai.models`
first, and `macai.cli.app` does so for every command.
"""

from macai.models.blas import load_fast_blas
from macai.models.heap import keep_freed_memory

load_fast_blas()
keep_freed_memory()
