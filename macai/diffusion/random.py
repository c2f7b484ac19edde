"""Standard noise that other programs would draw from the same seed, without those programs.

An image depends on its first noise, so a seed means nothing without the generator it was for.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from macai.errors import UsageError

Floats = NDArray[np.float32]
Words = NDArray[np.uint64]

LOW_WORD = 0xFFFFFFFF
INVERSE = np.float32(2.0**-32)
SEEDS = 1 << 64


class Noise:
    """A stream of standard noise; each call to `normal` goes on where the last one ended.

    Kinds:
        torch: torch.randn of a CPU generator, float32, to 1e-6: torch's vectorised code has
            logarithms and cosines of its own, so no two processors agree to the last bit.
        cuda: torch.randn of a CUDA generator, to about 2e-6 (cuRAND's sines are approximate), for
            tensors of no more elements than the card runs threads at once: 1,536 or 2,048 times its
            multiprocessors, so 43,008 on an RTX 3060 and 270,336 on an H100. Beyond that cards
            differ from each other; this goes on as A1111's and ComfyUI's "GPU" noise does.
        numpy: np.random.RandomState, the legacy generator; Apple's Swift package and its Python
            pipeline draw from the same one. Seeds of 32 bits.
        mlx: mlx.core.random.normal, with a key split off for each call.
    """

    def __init__(self, kind: str, seed: int) -> None:
        """Start the stream.

        Args:
            kind: One of `KINDS`.
            seed: From -2^63 to 2^64 - 1; a negative one counts back from 2^64, as in torch.

        Raises:
            UsageError: An unknown kind, or a seed out of its range.
        """
        if kind not in KINDS:
            raise UsageError(f"unknown generator {kind!r}", hint=f"choose from {', '.join(KINDS)}")
        least, most = (0, LOW_WORD) if kind == "numpy" else (-(SEEDS >> 1), SEEDS - 1)
        if not least <= seed <= most:
            raise UsageError(
                f"seed {seed} is not from {least} to {most}", hint=f"that is what {kind} takes"
            )
        self.kind = kind
        self._draw = KINDS[kind](seed % SEEDS)

    def normal(self, shape: tuple[int, ...]) -> Floats:
        """Return noise of mean 0 and deviation 1, float32 of the given shape, filled in C order."""
        return self._draw(math.prod(shape)).reshape(shape)


def torch_stream(seed: int) -> Callable[[int], Floats]:
    """Return the source of torch's CPU generator: MT19937, and two ways of Box-Muller.

    torch draws fewer than 16 numbers one by one in float64 and keeps the second of each pair for
    the next such call; 16 and more it draws in blocks of 16, eight radii and eight angles.
    """
    twister = np.random.MT19937(0)
    # NumPy's legacy seeding is torch's, and only 32 bits of a seed reach the twister.
    legacy: Any = np.random.RandomState(seed & LOW_WORD).get_state(legacy=False)
    twister.state = legacy
    spare: list[float] = []

    def one_by_one(count: int) -> Floats:
        wanted = count - len(spare)
        pairs = (wanted + 1) // 2 if wanted > 0 else 0
        high, low = twister.random_raw(4 * pairs).reshape(-1, 2).T
        uniform = ((high << 32 | low) & ((1 << 53) - 1)) * 2.0**-53
        angle, radius = 2 * np.pi * uniform[::2], np.sqrt(-2 * np.log1p(-uniform[1::2]))
        drawn = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        numbers = [*spare, *drawn.reshape(-1).tolist()]
        spare[:] = numbers[count:]
        return np.array(numbers[:count], dtype=np.float32)

    def draw(count: int) -> Floats:
        if count < 16:
            return one_by_one(count)
        uniform = _uniforms(twister.random_raw(count))
        whole = count - count % 16
        numbers = np.empty(count, dtype=np.float32)
        numbers[:whole] = _blocks(uniform[:whole])
        if whole < count:  # the tail is not filled up: the last 16 are drawn anew
            numbers[-16:] = _blocks(_uniforms(twister.random_raw(16)))
        return numbers

    return draw


def _uniforms(words: Words) -> NDArray[np.float64]:
    """Return the low 24 bits of each word as a share of 1."""
    return (words & 0xFFFFFF).astype(np.float64) * 2.0**-24


def _blocks(uniform: NDArray[np.float64]) -> Floats:
    """Return normal numbers of uniform ones, in blocks of 16: eight radii, then eight angles.

    The angle is rounded to float32 as torch rounds it, which moves the result by up to 2e-6.
    """
    radii, angles = uniform.reshape(-1, 2, 8).transpose(1, 0, 2)
    radius = np.sqrt(-2 * np.log(1 - radii))
    angle = (np.float32(2 * np.pi) * angles.astype(np.float32)).astype(np.float64)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1).astype(np.float32)


def philox4x32(counter: Words, key: tuple[int, int], *, rounds: int = 10) -> Words:
    """Return random words of counters (Salmon et al., "Parallel random numbers", SC 2011).

    Args:
        counter: uint64 [4, N], each below 2^32.
        key: Two words below 2^32.
        rounds: Of the cipher.

    Returns:
        uint64 [4, N], each below 2^32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        even, odd = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (odd >> 32) ^ c1 ^ k0,
            odd & LOW_WORD,
            (even >> 32) ^ c3 ^ k1,
            even & LOW_WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & LOW_WORD, (k1 + 0xBB67AE85) & LOW_WORD
    return np.stack([c0, c1, c2, c3])


def cuda_stream(seed: int) -> Callable[[int], Floats]:
    """Return the source of torch's CUDA generator, for tensors no larger than its grid of threads.

    Each element is the first normal number of a thread of its own: the counter holds the number of
    the call and the thread, the key the seed.
    """
    calls = 0
    key = (seed & LOW_WORD, seed >> 32)

    def draw(count: int) -> Floats:
        nonlocal calls
        counter = np.zeros((4, count), dtype=np.uint64)
        counter[0] = calls & LOW_WORD
        counter[2] = np.arange(count)
        calls += 1
        # cuRAND's Box-Muller, with its float32 roundings: a word is the middle of its interval.
        words = philox4x32(counter, key)[:2].astype(np.float32)
        widths = np.array([[INVERSE], [INVERSE * np.float32(2 * np.pi)]], dtype=np.float32)
        uniform, angle = (words * widths + widths / 2).astype(np.float64)
        result: Floats = (np.sqrt(-2 * np.log(uniform)) * np.sin(angle)).astype(np.float32)
        return result

    return draw


def numpy_stream(seed: int) -> Callable[[int], Floats]:
    """Return the source of NumPy's legacy generator: MT19937 and the polar method."""
    state = np.random.RandomState(seed)
    return lambda count: state.standard_normal(count).astype(np.float32)


def mlx_stream(seed: int) -> Callable[[int], Floats]:
    """Return the source of MLX's generator, Threefry."""
    key = mx.random.key(seed)

    def draw(count: int) -> Floats:
        nonlocal key
        key, own = mx.random.split(key)
        return np.array(mx.random.normal((count,), key=own))

    return draw


KINDS: Mapping[str, Callable[[int], Callable[[int], Floats]]] = MappingProxyType(
    {"torch": torch_stream, "cuda": cuda_stream, "numpy": numpy_stream, "mlx": mlx_stream}
)
