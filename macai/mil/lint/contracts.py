"""Rules about contracts: what an app that loads a language model expects of it.

swift-transformers: Sources/Models/LanguageModel.swift, as of 2026-06. It is only judged where a
package looks as if it wanted that contract.
"""

from collections.abc import Iterator

from macai.mil.features import Range
from macai.mil.lint.rule import Finding, rule
from macai.mil.lint.subject import Subject
from macai.mil.lint.view import View

_NAME = "co.huggingface.exporters.name"
_CACHES = ("keyCache", "valueCache")
_CACHE_FEATURES = {"keyCache", "valueCache", "presentKeys", "presentValues"}
_KNOWN_INPUTS = {
    "inputIds", "attentionMask", "causalMask", "fullAttentionMask", "slidingAttentionMask",
    *_CACHES,
}  # fmt: skip
_MASKS = {"causalMask", "attentionMask", "fullAttentionMask", "slidingAttentionMask"}


def _wanting(subject: Subject) -> View | None:
    """Return the function swift-transformers would run, if the package is meant for it."""
    package = subject.package
    view = next(v for v in subject.views if v.name == package.default_function)
    inputs = set(view.function.inputs)
    masked = bool(inputs & _MASKS) and bool(inputs & {"inputIds", "input_ids"})
    cached = "causalMask" in inputs and bool(set(view.states) & set(_CACHES))
    # HF's older exporters have a mask and other names, and their own loader.
    legacy = "input_ids" in inputs and "attention_mask" in inputs
    return view if (_NAME in package.metadata or masked or cached) and not legacy else None


@rule(
    "swift-transformers-inputs",
    "error",
    "Inputs that swift-transformers does not give",
    why="It gives inputIds and the masks it knows by name; without the others prediction fails.",
    fix="Name the inputs inputIds and causalMask, or attentionMask where there is no state.",
)
def swift_transformers_inputs(subject: Subject) -> Iterator[Finding]:
    view = _wanting(subject)
    if view is None:
        return
    inputs = set(view.function.inputs)
    if "inputIds" not in inputs:
        yield Finding("there is no inputIds", view.name)
    unknown = sorted(inputs - _KNOWN_INPUTS)
    if unknown:
        yield Finding(f"nobody gives {', '.join(unknown)}", view.name)
    if set(_CACHES) <= set(view.states) and not inputs & (_MASKS - {"attentionMask"}):
        yield Finding("with a state it gives causalMask, which is not there", view.name)


@rule(
    "swift-transformers-states",
    "error",
    "A state that swift-transformers does not know",
    why="Only keyCache and valueCache, both, are a key-value cache to it: with one of them it "
    "stops with 'Invalid model configuration', others are never made.",
    fix="Name the states keyCache and valueCache.",
)
def swift_transformers_states(subject: Subject) -> Iterator[Finding]:
    view = _wanting(subject)
    if view and view.states and set(view.states) != set(_CACHES):
        yield Finding(f"states {', '.join(view.states)}", view.name)


@rule(
    "swift-transformers-cache-io",
    "error",
    "A key-value cache as inputs and outputs",
    why="swift-transformers stops with 'KV Cache using IO is currently not supported'.",
    fix="Make the cache a state.",
)
def swift_transformers_cache_io(subject: Subject) -> Iterator[Finding]:
    view = _wanting(subject)
    if view:
        features = {*view.function.inputs, *view.function.outputs} & _CACHE_FEATURES
        if features:
            yield Finding(", ".join(sorted(features)), view.name)


@rule(
    "swift-transformers-range",
    "error",
    "A stateful model whose inputIds have no range of lengths",
    why="swift-transformers stops with 'Expecting ranged query sequence length': a fixed shape is "
    "128 to it, of enumerated ones it takes the first.",
    fix="Give inputIds a RangeDim from 1 to the context.",
)
def swift_transformers_range(subject: Subject) -> Iterator[Finding]:
    view = _wanting(subject)
    ids = view.function.inputs.get("inputIds") if view else None
    if view is None or ids is None or not set(_CACHES) <= set(view.states):
        return
    last = ids.shape[-1] if ids.shape else None
    ranged = isinstance(last, Range) and (last.upper is None or last.upper - last.lower > 1)
    if not ranged or ids.enumerated is not None:
        yield Finding(f"inputIds is {ids}", view.name)


@rule(
    "swift-transformers-logits",
    "error",
    "No logits of rank 3",
    why="swift-transformers takes the last row of logits [1, T, V].",
    fix="Name the output logits and give it three dimensions.",
)
def swift_transformers_logits(subject: Subject) -> Iterator[Finding]:
    view = _wanting(subject)
    if view is None:
        return
    logits = view.function.outputs.get("logits")
    if logits is None:
        yield Finding(f"outputs are {', '.join(view.function.outputs)}", view.name)
    elif logits.shape is not None and len(logits.shape) != 3:
        yield Finding(f"logits is {logits}", view.name)


@rule(
    "swift-transformers-name",
    "warning",
    "The metadata does not name the model's repository",
    why=f"swift-transformers fetches config and tokenizer of {_NAME}; without it of the file's "
    "name.",
    fix=f"Set the user-defined entry {_NAME} to the repository's id.",
)
def swift_transformers_name(subject: Subject) -> Iterator[Finding]:
    if _wanting(subject) and not subject.package.metadata.get(_NAME, "").strip():
        yield Finding(f"no {_NAME}")


@rule(
    "swift-transformers-mask",
    "note",
    "swift-transformers' causal mask is all zeros, with one column more than there are tokens",
    why="Also for a whole prompt, so that each token sees those after it: the model has to be "
    "causal by itself. This one reads the mask's values.",
    fix="Make the mask within the model, and read of this one the width alone.",
)
def swift_transformers_mask(subject: Subject) -> Iterator[Finding]:
    view = _wanting(subject)
    if view is None or not set(_CACHES) <= set(view.states):
        return
    if any(reader.type != "shape" for reader in view.users.get("causalMask", ())):
        yield Finding(f"causalMask is {view.function.inputs['causalMask']}", view.name)


@rule(
    "known-contract",
    "note",
    "The package follows a contract that is known",
    why="Which app can load it follows from the names of its inputs, outputs and states.",
    fix="Nothing.",
)
def known_contract(subject: Subject) -> Iterator[Finding]:
    name = contract(subject)
    if name:
        yield Finding(name)


def contract(subject: Subject) -> str:
    """Return whose contract a package follows, "" if nobody's that is known."""
    inputs = {n for v in subject.views for n in v.function.inputs}
    states = {n for v in subject.views for n in v.states}
    keys = subject.package.metadata
    if _wanting(subject):
        return "swift-transformers, in a macai bundle" if subject.bundle else "swift-transformers"
    if subject.bundle:
        return "a macai bundle"
    if any(key.startswith("com.anemll.") for key in keys) or "model_model_kv_cache_0" in states:
        return "ANEMLL: one part of a model"
    if any("kv_cache_0" in state for state in states):
        hidden = {"hidden_in", "cos", "sin"} <= inputs
        return "CoreML-LLM: a chunk of a model" if hidden else "ANEMLL: one part of a model"
    if {"inputIds", "position"} <= inputs and {*_CACHES} <= states:
        return "the package of a macai bundle"
    if {"sample", "timestep", "encoder_hidden_states"} <= inputs:
        return "ml-stable-diffusion: a U-Net"
    if {"input_ids", "attention_mask"} <= inputs:
        return "Hugging Face exporters"
    return ""
