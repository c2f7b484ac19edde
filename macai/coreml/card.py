"""The README.md of a bundle: what it is, what was verified, how to run it."""

from macai.coreml.manifest import FILE, Manifest

_TEXT = """# {name}

{model_line}, as a Core ML package for {systems}.

| | |
|---|---|
| package | `{package}`, {megabytes:.0f} MB, weights {weights} |
| functions | {functions} |
| states | {states} |
| context | {context} tokens |
| ends of a reply | token ids {eos} |
| meant for | compute units `{compute_units}` |
| licence of the model | {licence} |

`{file}` says the same to a program; its contract is version {contract}.

## Run it

On any machine, with the runtime that comes with macai (numpy; slow, and independent of Core ML):

    macai run . --prompt "Hello"

In an app: `Swift/` is a package with a typed, streaming `generate`; see its README.

## What the functions do

Each writes keys and values at `position` and after, into the states, and attends to all positions
up to its own. A prefill takes up to its number of tokens; what is behind `last` is padding and is
written over later. `position` plus the tokens of the function must not exceed the context.

## What was verified

`verify.json` has the comparison with the model that was made when the package was: the reference
runtime against MLX, also with every value rounded to float16. It was not run by Core ML, nor on a
device: check what your app shows, and on which compute units.
"""


def model_card(manifest: Manifest) -> str:
    """Return the card of a bundle."""
    source = manifest.source
    line = f"`{source['model']}`"
    if "adapter" in source:
        line += f" with the adapter `{source['adapter']}`"
    functions = ", ".join(
        f"`{name}` ({info.tokens} token{'s' if info.tokens > 1 else ''})"
        for name, info in manifest.functions.items()
    )
    states = ", ".join(f"`{k}` fp16 {v['shape']}" for k, v in manifest.states.items())
    return _TEXT.format(
        name=manifest.name,
        model_line=line,
        systems=" and ".join(f"{k} {v}" for k, v in manifest.minimum_os.items()),
        package=manifest.package,
        megabytes=manifest.bytes / 1e6,
        weights=manifest.weights,
        functions=functions,
        states=states,
        context=manifest.context,
        eos=", ".join(map(str, manifest.eos_token_ids)),
        compute_units=manifest.compute_units,
        licence=source.get("license", "not known: see where it came from"),
        file=FILE,
        contract=manifest.contract,
    )
