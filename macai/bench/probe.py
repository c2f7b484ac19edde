"""How fast the machine is just now: a matrix product, and a read of more than its caches hold."""

import time
from typing import NamedTuple

import mlx.core as mx

_PRODUCT = {"cpu": 1024, "gpu": 4096}  # rows of a square product: some 20 ms on either
_READ_ROWS = {"cpu": 8192, "gpu": 32768}  # 134 MB and 268 MB
_COLUMNS = 4096


class Speed(NamedTuple):
    """Of the machine, at one moment."""

    flops_per_second: float
    bytes_per_second: float


class Probe:
    """Measures both in about 50 ms, with MLX: the kernels that models are computed with.

    float32 on the CPU backend, float16 on a GPU, which models have there. The read is a product of
    a matrix and a vector: each weight is used once, as in decoding.
    """

    def __init__(self) -> None:
        device = "cpu" if mx.default_device() == mx.cpu else "gpu"
        dtype = mx.float32 if device == "cpu" else mx.float16
        side = _PRODUCT[device]
        self._square = mx.random.normal((side, side)).astype(dtype)
        self._matrix = mx.random.normal((_READ_ROWS[device], _COLUMNS)).astype(dtype)
        self._vector = mx.random.normal((_COLUMNS, 1)).astype(dtype)
        mx.eval(self._square, self._matrix, self._vector)
        self.dtype = str(dtype).rpartition(".")[2]
        self()  # kernels are compiled at their first use

    def __call__(self) -> Speed:
        """Measure once."""
        began = time.perf_counter()
        mx.eval(self._square @ self._square)
        between = time.perf_counter()
        mx.eval(self._matrix @ self._vector)
        ended = time.perf_counter()
        return Speed(
            2 * self._square.shape[0] ** 3 / (between - began),
            self._matrix.nbytes / (ended - between),
        )
