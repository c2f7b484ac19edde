"""What is measured: a figure with its unit and what it stands for, and the samples of one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Section = Literal["generate", "train", "image", "coreml"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Work:
    """The least that must be done for one unit of a figure: what a roofline is drawn from.

    Attributes:
        flops: Operations of matrix products, attention and convolutions; a multiply-add is two.
        bytes: That must come from memory at least: each weight once; 0 if caches may hold them all.
    """

    flops: float
    bytes: float

    def limit(self, flops_per_second: float, bytes_per_second: float) -> tuple[float, str]:
        """Return the most units a second, and what bounds them: "compute" or "memory"."""
        compute, memory = self.flops / flops_per_second, self.bytes / bytes_per_second
        return 1 / max(compute, memory), "compute" if compute >= memory else "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a report, before it is measured.

    Attributes:
        section: What it belongs to.
        name: What it is: "decode", "peak memory".
        subject: The model or package, by a name that tells nothing of where it is.
        unit: "tokens/s", "s", "bytes".
        better: Which way is better.
        parameters: What it was measured at, such as {"context": 128, "batch": 1}.
        work: Of one unit, for rates; None where no roofline applies.
        single: Whether it is measured once a run, the first time: there is no interval then.
    """

    section: Section
    name: str
    subject: str
    unit: str
    better: Better
    parameters: Mapping[str, int | float | str] = field(default_factory=dict)
    work: Work | None = None
    single: bool = False

    @property
    def id(self) -> str:
        """What two reports have in common if they measured the same."""
        pairs = [f"{key}={value}" for key, value in self.parameters.items()]
        return "/".join([self.section, self.subject, self.name.replace(" ", "-"), *pairs])


class Case(Protocol):
    """Something that can be done again and again, and gives one or several figures each time."""

    @property
    def figures(self) -> Mapping[str, Figure]:
        """By keys that are the case's own."""
        ...

    def sample(self) -> Mapping[str, float]:
        """Do it once, and return a value for the keys of `figures` that have one this time."""
        ...


Opener = Callable[[], list[Case]]
"""Loads what a section needs, in the process that will measure it."""
