"""On Linux, an optimised BLAS in the place of the reference one that MLX's wheel links.

It makes a float32 matmul 20 times faster or more. On a Mac there is nothing to do: MLX uses
Accelerate and Metal.
"""

import ctypes
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_FORTRAN = "libgfortran.so.5"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlasInfo:
    """What became of the attempt to load OpenBLAS.

    Attributes:
        found: Whether MLX's matmul goes through it.
        library: Its path.
        config: Its own description: version, kernels, most threads.
        threads: Threads it uses; OPENBLAS_NUM_THREADS sets them.
        reason: Why it was not loaded.
    """

    found: bool
    library: Path | None = None
    config: str = ""
    threads: int = 0
    reason: str = ""


@functools.cache
def load_fast_blas() -> BlasInfo:
    """Load OpenBLAS for the whole process; never raises, a second call returns the first answer.

    Its symbols win over those of MLX's own BLAS only when it is loaded first, and globally: so
    before anything imports `mlx.core`.
    """
    if sys.platform != "linux":
        return BlasInfo(found=False, reason="only Linux needs one")
    if "mlx.core" in sys.modules:
        return BlasInfo(found=False, reason="mlx was imported before macai.models")
    try:
        library = _beside("cmeel", "cmeel.prefix/lib", "libopenblas.so.0")
        _load_fortran_runtime()
        openblas = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        openblas.openblas_get_config.restype = ctypes.c_char_p
        config = openblas.openblas_get_config().decode()
        threads = openblas.openblas_get_num_threads()
    except (OSError, AttributeError, LookupError) as e:
        return BlasInfo(found=False, reason=str(e))
    return BlasInfo(found=True, library=library, config=config, threads=threads)


@contextmanager
def blas_threads(threads: int) -> Iterator[None]:
    """Have OpenBLAS compute with so many threads meanwhile; nothing where MLX uses another BLAS."""
    info = load_fast_blas()
    if not info.found:
        yield
        return
    openblas = ctypes.CDLL(str(info.library))
    before = openblas.openblas_get_num_threads()
    openblas.openblas_set_num_threads(threads)
    try:
        yield
    finally:
        openblas.openblas_set_num_threads(before)


def _load_fortran_runtime() -> None:
    """Have a `libgfortran.so.5` in the process, which OpenBLAS names and its wheel lacks.

    A bare machine has none. MLX's wheel carries one, but under a name with a hash, by which the
    loader cannot know it for the one that OpenBLAS asks for. It goes by the SONAME inside the file,
    not by the file's name: so a copy of that file with the plain SONAME is loaded from memory.
    """
    try:
        ctypes.CDLL(_FORTRAN)
        return
    except OSError:
        bundled = _beside("mlx", "mlx_cpu.libs", "libgfortran-*.so.5*")
    ctypes.CDLL(str(_beside("mlx", "mlx_cpu.libs", "libquadmath-*.so.0*")))  # bundled needs it
    content = bundled.read_bytes()
    name = bundled.name.encode() + b"\0"
    if content.count(name) != 1:
        raise LookupError(f"{bundled}: has its SONAME {content.count(name)} times, not once")
    renamed = content.replace(name, _FORTRAN.encode().ljust(len(name), b"\0"))
    with os.fdopen(os.memfd_create(_FORTRAN), "wb") as f:
        f.write(renamed)
        f.flush()
        ctypes.CDLL(f"/proc/self/fd/{f.fileno()}")


def _beside(package: str, folder: str, pattern: str) -> Path:
    """Return the first file that fits `pattern` in a folder beside an installed package."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted((Path(location).parent / folder).glob(pattern)):
            return path
    raise LookupError(f"no {pattern} in {folder} beside the package '{package}'")
