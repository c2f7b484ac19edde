"""For which part of a device, or which app, a language model is exported: a module a profile.

All profiles are made of one trace of mlx-lm's model; what they differ in is how the graph is
rewritten, what the functions take and keep, and how weights are stored.
"""

from macai.coreml.profiles.ane import ANE
from macai.coreml.profiles.gpu import GPU
from macai.coreml.profiles.profile import Profile
from macai.coreml.profiles.swift_transformers import SWIFT_TRANSFORMERS
from macai.errors import UsageError

_ALL = (GPU, SWIFT_TRANSFORMERS, ANE)
PROFILES: dict[str, Profile] = {profile.name: profile for profile in _ALL}


def profile_called(name: str) -> Profile:
    """Return a profile; UsageError if there is none of that name."""
    if name not in PROFILES:
        raise UsageError(f"unknown profile '{name}'", hint=f"one of {', '.join(PROFILES)}")
    return PROFILES[name]


__all__ = ["PROFILES", "Profile", "profile_called"]
