"""Whether an error says that memory, or a GPU's time for one command, ran out.

MLX raises RuntimeError for all it meets, so only the message tells. Those of MLX 0.32's allocators
(mlx/backend/metal/allocator.cpp, mlx/backend/cuda/allocator.cpp), of Metal's command buffers
(MTLCommandBufferError, in the words of its localizedDescription) and of the C++ library.
"""

_MEMORY = (
    "unable to allocate",
    "attempting to allocate",
    "resource limit",
    "out of memory",
    "outofmemory",
    "insufficient memory",
    "std::bad_alloc",
)
_TIME = ("gpu timeout", "callbackerrortimeout", "impacting interactivity")


def exhausted(error: BaseException) -> str | None:
    """Return what ran out, in words for a sentence, or None for any other error."""
    message = str(error).lower()
    if isinstance(error, MemoryError) or any(mark in message for mark in _MEMORY):
        return "memory ran out"
    if any(mark in message for mark in _TIME):
        return "the GPU took longer for a part than the system lets it"
    return None
