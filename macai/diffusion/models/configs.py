"""Frozen dataclasses from `config.json`, with the meaning diffusers and transformers give it."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from macai.errors import ModelError

T = TypeVar("T")


def read_config(cls: type[T], config: Mapping[str, Any]) -> T:
    """Make the dataclass `cls` of those keys of `config` that are its fields.

    Other keys are ignored, as diffusers does. A list becomes a tuple; null is the default where
    the field cannot be None.

    Raises:
        ModelError: values of another type than their fields', or a missing key without default;
            all of them are named.
    """
    hints = get_type_hints(cls)
    values, wrong = {}, []
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        hint, value = hints[field.name], config.get(field.name)
        if isinstance(value, list):
            value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
        if field.name not in config or (value is None and not _fits(None, hint)):
            if field.default is dataclasses.MISSING:
                wrong.append(f"{field.name} is missing")
        elif not _fits(value, hint):
            wrong.append(f"{field.name} is {config[field.name]!r}")
        else:
            values[field.name] = value
    if wrong:
        raise ModelError(
            f"{cls.__name__.removesuffix('Config')}'s config.json: {'; '.join(wrong)}",
            hint="is it the config.json of this model? each key has a type that diffusers gives it",
        )
    return cls(**values)


def unsupported(model: str, key: str, value: object, *, known: object) -> ModelError:
    """Return the error for a value of a key that changes the computation and is not supported."""
    return ModelError(
        f"{model}'s config.json: {key} = {value!r} is not supported", hint=f"supported: {known}"
    )


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, h) for h in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(v, get_args(hint)[0]) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
