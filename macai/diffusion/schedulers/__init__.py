"""Schedulers: how a diffusion model's predictions lead from noise to a sample.

One file a scheduler, each after a class of diffusers, whose defaults and options it reads from the
model's scheduler_config.json; `swift` and `swift-dpm++` follow Apple's package instead.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from macai.diffusion.schedulers.base import Array as Array
from macai.diffusion.schedulers.base import NoiseSource as NoiseSource
from macai.diffusion.schedulers.base import Scheduler as Scheduler
from macai.diffusion.schedulers.ddim import DDIM, DDIMOptions
from macai.diffusion.schedulers.dpm import DPMOptions, DPMSolver
from macai.diffusion.schedulers.euler import Euler, EulerOptions
from macai.diffusion.schedulers.euler_ancestral import EulerAncestral, EulerAncestralOptions
from macai.diffusion.schedulers.heun import Heun, HeunOptions
from macai.diffusion.schedulers.lcm import LCM, LCMOptions
from macai.diffusion.schedulers.options import CONFIG_FILE, Options, known_keys, read_options
from macai.diffusion.schedulers.pndm import PNDM, PNDMOptions
from macai.diffusion.schedulers.swift import SwiftOptions, make_swift, swift_choices
from macai.diffusion.schedulers.tcd import TCD, TCDOptions
from macai.diffusion.schedulers.unipc import UniPC, UniPCOptions
from macai.errors import ModelError, UsageError


@dataclass(frozen=True)
class Entry:
    """What a name on the command line stands for.

    Attributes:
        options: The options of its diffusers class.
        make: Builds the scheduler.
        forced: Options that the name decides, whatever the model's file says.
        takes_eta: Whether `make` takes the share of fresh noise.
    """

    options: type[Options]
    make: Callable[..., Scheduler]
    forced: Mapping[str, object] = field(default_factory=dict)
    takes_eta: bool = False


_MULTISTEP: dict[str, object] = {"algorithm_type": "dpmsolver++"}
_KARRAS: dict[str, object] = {
    "use_karras_sigmas": True,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}

SCHEDULERS: Mapping[str, Entry] = MappingProxyType(
    {
        "ddim": Entry(DDIMOptions, DDIM, takes_eta=True),
        "pndm": Entry(PNDMOptions, PNDM),
        "euler": Entry(EulerOptions, Euler),
        "euler-a": Entry(EulerAncestralOptions, EulerAncestral),
        "heun": Entry(HeunOptions, Heun),
        "dpm++2m": Entry(DPMOptions, DPMSolver, _MULTISTEP),
        "dpm++2m-karras": Entry(DPMOptions, DPMSolver, _MULTISTEP | _KARRAS),
        "dpm++sde": Entry(DPMOptions, DPMSolver, {"algorithm_type": "sde-dpmsolver++"}),
        "unipc": Entry(UniPCOptions, UniPC),
        "lcm": Entry(LCMOptions, LCM),
        "tcd": Entry(TCDOptions, TCD, takes_eta=True),
        "swift": Entry(SwiftOptions, make_swift),
        "swift-dpm++": Entry(SwiftOptions, make_swift, {"swift_scheduler": "dpmpp"}),
    }
)

# Options of diffusers classes that are not built here, whose files may be read for one that is.
_FOREIGN = {"noise_sampler_seed", "rho", "sigma_data", "sigma_schedule", "time_shift_type"}
_KNOWN = _FOREIGN | {"flow_shift"}.union(
    *(known_keys(entry.options) for entry in SCHEDULERS.values())
)


def make_scheduler(
    name: str | None, config: Mapping[str, Any], *, eta: float | None = None
) -> Scheduler:
    """Return a scheduler for a model.

    Args:
        name: One of `SCHEDULERS`; None for the class that `config` names, with its own options.
            Another class than the config's gets what it knows of its options, and its own defaults
            for the rest: diffusers' `OtherScheduler.from_config(config)`.
        config: The model's scheduler_config.json.
        eta: The share of fresh noise, 0 to 1, for ddim (default 0) and tcd (default 0.3).

    Raises:
        UsageError: An unknown name, or an eta it has no use for.
        ModelError: A class or an option that is not built here; the message names key and value.
    """
    class_name = config.get("_class_name")
    if isinstance(class_name, str) and class_name.startswith("FlowMatch"):
        raise ModelError(
            f"{CONFIG_FILE}: {class_name} is for models of flow matching",
            hint="macai runs Stable Diffusion 1, 2 and XL",
        )
    entry = _by_class(class_name) if name is None else _by_name(name)
    forced = dict(entry.forced) if name is not None else {}
    if name == "swift":
        forced |= swift_choices(config)
    options = read_options(entry.options, config, known=_KNOWN, **forced)
    if eta is None:
        return entry.make(options)
    if not entry.takes_eta:
        raise UsageError(f"{name or class_name} has no eta", hint="eta is for ddim and tcd")
    if not 0 <= eta <= 1:
        raise UsageError(f"eta {eta} is not between 0 and 1", hint="0 adds no noise")
    return entry.make(options, eta=eta)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """What the noise of training depends on, with the defaults of diffusers' DDPMScheduler."""

    class_name: ClassVar[str] = "DDPMScheduler"


def training_options(config: Mapping[str, Any]) -> TrainingOptions:
    """Return how the model of a scheduler_config.json was, and is, trained, whatever its class is.

    Raises:
        ModelError: A value or an option that is not known; the message names key and value.
    """
    return read_options(TrainingOptions, config, known=_KNOWN | {"variance_type"})


def _by_name(name: str) -> Entry:
    if name not in SCHEDULERS:
        raise UsageError(f"unknown scheduler {name!r}", hint=f"choose from {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name]


def _by_class(class_name: object) -> Entry:
    for entry in SCHEDULERS.values():
        if entry.options.class_name == class_name:
            return entry
    raise ModelError(
        f"{CONFIG_FILE}: _class_name = {class_name!r} is not built here",
        hint=f"choose a scheduler: {', '.join(SCHEDULERS)}",
    )
