"""The tables schedulers share: betas, their products, timesteps and sigmas.

diffusers holds betas and their products in float32 and sigmas too; so do these, since a rounded
timestep of a Karras schedule depends on it. torch's linspace differs between processors in its last
bit, so float32 here means equal to about 1e-7, not to the bit.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macai.diffusion.schedulers.options import Options, SigmaOptions

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

MAX_BETA = 0.999
KARRAS_RHO = 7.0
# Where zero terminal SNR makes the last product 0 and sigma infinite, diffusers puts this.
SMALLEST_PRODUCT = 2.0**-24


def betas(options: Options) -> Floats:
    """Return the variance each training step adds, float32 [num_train_timesteps]."""
    count = options.num_train_timesteps
    if options.trained_betas is not None:
        result = np.array(options.trained_betas, dtype=np.float32)
    elif options.beta_schedule == "linear":
        result = np.linspace(options.beta_start, options.beta_end, count).astype(np.float32)
    elif options.beta_schedule == "scaled_linear":
        roots = np.linspace(options.beta_start**0.5, options.beta_end**0.5, count)
        result = roots.astype(np.float32) ** 2
    elif options.beta_schedule == "squaredcos_cap_v2":
        result = _betas_of(lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2, count)
    else:
        result = _betas_of(lambda t: math.exp(-12.0 * t), count)
    return _zero_terminal_snr(result) if options.rescale_betas_zero_snr else result


def _betas_of(product: Callable[[float], float], count: int) -> Floats:
    """Return betas whose running product of 1 - beta follows `product` from t = 0 to 1."""
    pairs = [(product(i / count), product((i + 1) / count)) for i in range(count)]
    return np.array([min(1 - after / before, MAX_BETA) for before, after in pairs], np.float32)


def _zero_terminal_snr(given: Floats) -> Floats:
    """Shift and scale so that no signal is left at the last step (Lin et al., arXiv:2305.08891)."""
    roots = np.sqrt(products(given))
    first, last = roots[0], roots[-1]
    squares = ((roots - last) * (first / (first - last))) ** 2
    return 1 - np.concatenate([squares[:1], squares[1:] / squares[:-1]])


def products(given: Floats) -> Floats:
    """Return the running product of 1 - beta, float32; torch too multiplies in float64."""
    return np.cumprod((1 - given).astype(np.float64)).astype(np.float32)


def alphas_cumprod(options: Options, *, finite_sigmas: bool = False) -> Floats:
    """Return what share of signal each training step leaves, float32 [num_train_timesteps].

    Args:
        options: Of the scheduler.
        finite_sigmas: Whether a last share of zero is made a small one, as for sigma schedulers.
    """
    result = products(betas(options))
    if finite_sigmas and options.rescale_betas_zero_snr:
        result[-1] = SMALLEST_PRODUCT
    return result


def sigma_table(shares: Floats) -> Floats:
    """Return noise over signal of every training step, float32 [num_train_timesteps]."""
    return ((1 - shares) / shares) ** np.float32(0.5)


def whole_timesteps(options: Options, steps: int) -> Ints:
    """Return timesteps of the alpha schedulers (DDIM, PNDM), falling, int64 [steps]."""
    trained = options.num_train_timesteps
    if options.timestep_spacing == "linspace":
        return np.linspace(0, trained - 1, steps).round()[::-1].astype(np.int64)
    if options.timestep_spacing == "leading":
        return np.arange(steps)[::-1] * (trained // steps) + options.steps_offset
    return _trailing(trained, trained, steps)


def sigma_timesteps(options: Options, steps: int) -> Floats:
    """Return timesteps of the Euler family, falling, float32 [steps]; linspace is not rounded."""
    if options.timestep_spacing == "linspace":
        return np.linspace(0, options.num_train_timesteps - 1, steps, dtype=np.float32)[::-1]
    return whole_timesteps(options, steps).astype(np.float32)


def solver_timesteps(options: Options, steps: int, last: int) -> Ints:
    """Return timesteps of the multistep solvers, falling, int64 [steps].

    They place one timestep more than they run, and the one left out is the end.

    Args:
        options: Of the scheduler.
        steps: How many.
        last: One past the noisiest timestep to use.
    """
    if options.timestep_spacing == "linspace":
        return np.linspace(0, last - 1, steps + 1).round()[::-1][:-1].astype(np.int64)
    if options.timestep_spacing == "leading":
        return np.arange(steps + 1)[::-1][:-1] * (last // (steps + 1)) + options.steps_offset
    return _trailing(last, options.num_train_timesteps, steps)


def _trailing(last: int, trained: int, steps: int) -> Ints:
    return np.arange(last, 0, -trained / steps).round().astype(np.int64) - 1


def respaced(options: SigmaOptions, sigmas: Floats, steps: int) -> Floats | None:
    """Return Karras or exponential sigmas between the ends of `sigmas`, float64 [steps], or None.

    Args:
        options: Say which, and may move the ends.
        sigmas: Falling.
        steps: How many.
    """
    low = float(sigmas[-1]) if options.sigma_min is None else options.sigma_min
    high = float(sigmas[0]) if options.sigma_max is None else options.sigma_max
    if options.use_karras_sigmas:  # Karras et al., arXiv:2206.00364, equation 5
        return powers(high, low, steps, KARRAS_RHO)
    if options.use_exponential_sigmas:
        return np.exp(np.linspace(math.log(high), math.log(low), steps))
    return None


def powers(first: float, last: float, steps: int, rho: float) -> Floats:
    """Return values from `first` to `last` whose rho-th roots are evenly spaced, float64."""
    roots = np.linspace(0, 1, steps) * (last ** (1 / rho) - first ** (1 / rho))
    return (first ** (1 / rho) + roots) ** rho


def timesteps_of(sigmas: Floats, table: Floats) -> Floats:
    """Return between which training steps each sigma lies, by its logarithm, float64 [steps]."""
    logs = np.log(table)
    wanted = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, len(logs) - 2)
    weight = np.clip((logs[low] - wanted) / (logs[low] - logs[low + 1]), 0, 1)
    return (1 - weight) * low + weight * (low + 1)
