"""What a model's scheduler_config.json may say, read as diffusers' `from_config` reads it.

A class takes the keys it has, keys of other classes are left alone, and a missing key gets the
default of the class that reads it. What would change the arithmetic and is not built here is
refused by name, never dropped. Each scheduler's own options stand beside it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from macai.errors import ModelError

CONFIG_FILE = "scheduler_config.json"
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
FLOW = "flow matching is another family of models; those here denoise"


def choice(*values: str, default: str, aliases: Mapping[str, str] | None = None) -> Any:
    """Return a field that takes one of `values`, or a word that diffusers reads as one of them."""
    return field(default=default, metadata={"choices": values, "aliases": aliases or {}})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every scheduler reads; a subclass sets the defaults of its diffusers class.

    Attributes:
        class_name: The diffusers class whose options these are.
        refused: Keys that change the arithmetic when set and are not built, each with the reason.
    """

    class_name: ClassVar[str]
    refused: ClassVar[Mapping[str, str]] = {}

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = choice(*BETAS, default="linear")
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = choice(*PREDICTIONS, default="epsilon")
    timestep_spacing: str = choice(*SPACINGS, default="leading")
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False

    def problem(self) -> str | None:
        """Return what is wrong with the options taken together, or None."""
        return None


@dataclass(frozen=True, kw_only=True)
class ClippingOptions(Options):
    """Options of classes that may clip the estimate of the final sample."""

    set_alpha_to_one: bool = True
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SigmaOptions(Options):
    """Options of classes that run over sigmas rather than timesteps."""

    refused: ClassVar[Mapping[str, str]] = {
        "use_beta_sigmas": "beta sigmas need scipy; take Karras or exponential ones"
    }

    timestep_spacing: str = choice(*SPACINGS, default="linspace")
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    # Not all of these classes have the two, yet diffusers reads them from a crossed config.
    sigma_min: float | None = None
    sigma_max: float | None = None

    def problem(self) -> str | None:
        if self.use_karras_sigmas and self.use_exponential_sigmas:
            return "use_karras_sigmas and use_exponential_sigmas exclude each other"
        return None


AnyOptions = TypeVar("AnyOptions", bound=Options)


def absent() -> Any:
    """Return a field that a diffusers class lacks though its siblings have it: never read, off."""
    return field(default=False, init=False)


def known_keys(kind: type[Options]) -> set[str]:
    """Return the keys that this class of options reads or refuses."""
    return {option.name for option in dataclasses.fields(kind)} | set(kind.refused)


def read_options(
    kind: type[AnyOptions], config: Mapping[str, Any], *, known: set[str], **forced: object
) -> AnyOptions:
    """Return the options of one class out of a scheduler_config.json.

    Args:
        kind: Whose options.
        config: The file's object; keys that begin with "_" are diffusers' own notes.
        known: The keys of all classes; any other is refused unless it is off (null, false, zero).
        forced: Options that the scheduler's name decides, whatever the config says.

    Raises:
        ModelError: A value of the wrong type, one not built here, or a key nobody knows; all named.
    """
    defaulted = config.get("_use_default_values", ())
    given = {key: value for key, value in config.items() if key not in defaulted} | forced
    values: dict[str, Any] = {}
    problems: list[str] = []
    for option in dataclasses.fields(kind):
        if option.init and option.name in given:
            value = given[option.name]
            if isinstance(value, str):
                value = option.metadata.get("aliases", {}).get(value, value)
            values[option.name] = value
            problems += _problems(option, value)
    for key, value in given.items():
        if key in kind.refused and value:
            problems.append(f"{key} = {value!r}: {kind.refused[key]}")
        elif key not in known and value and not key.startswith("_"):
            problems.append(f"{key} = {value!r} is an option that no scheduler here has")
    if not problems:
        options = kind(**values)
        problems = [problem] if (problem := options.problem()) else []
    if problems:
        raise ModelError(
            f"{CONFIG_FILE}, read as {kind.class_name}: {'; '.join(problems)}",
            hint="choose another scheduler, or mend the file in the model's folder",
        )
    return options


def _problems(option: "dataclasses.Field[Any]", value: object) -> list[str]:
    """Return what is wrong with one value: nothing, or one sentence."""
    choices = option.metadata.get("choices")
    if choices is not None:
        right, wanted = value in choices, f"one of {', '.join(choices)}"
    else:
        accepts, wanted = _CHECKS[option.type]
        right = accepts(value)
    return [] if right else [f"{option.name} = {value!r} is not {wanted}"]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_int(value)


_CHECKS: dict[Any, tuple[Callable[[object], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (_is_int, "a whole number"),
    float: (_is_number, "a number"),
    float | None: (lambda value: value is None or _is_number(value), "a number or null"),
    tuple[float, ...] | None: (
        lambda value: (
            value is None or (isinstance(value, list | tuple) and all(map(_is_number, value)))
        ),
        "a list of numbers or null",
    ),
    tuple[int, ...]: (
        lambda value: isinstance(value, list | tuple) and all(map(_is_int, value)),
        "a list of whole numbers",
    ),
}
