"""The README.md of a bundle: what it is, what was verified, how to run it."""

from macai.coreml.manifest import FILE, FunctionInfo, Manifest
from macai.coreml.profiles import profile_called

_TEXT = """# {name}

{model_line}, as a Core ML package for {systems}.

| | |
|---|---|
| package{plural} | {packages}, {megabytes:.0f} MB, weights {weights} |
| functions | {functions} |
| states | {states} |
| adapter at run time | {slot} |
| context | {context} tokens |
| ends of a reply | token ids {eos} |
| profile | {profile} |
| meant for | compute units `{compute_units}` |
| licence of the model | {licence} |

`{file}` says the same to a program; its contract is version {contract}.

## Run it

On any machine, with the runtime that comes with macai (numpy; slow, and independent of Core ML):

    macai run . --prompt "Hello"

{app}{usage}
## What was verified

`verify.json` has the comparison with the model that was made when the package was, unless the
export was told to do without: the reference runtime against MLX, also with every value rounded to
float16. It was not run by Core ML, nor on a device: check what your app shows, and on which
compute units.
{float16}{unverified}"""
_SWIFT = """In an app: `Swift/` is a package with a typed, streaming `generate`; see its README.

"""
_CHUNKS = """The packages are parts of one model, run in this order: each function goes through all
of them. What one returns as `hiddenOut` the next takes as `hiddenIn`; each has a state of its own,
made by itself. No Swift code comes with a model in parts.

"""


def model_card(manifest: Manifest) -> str:
    """Return the card of a bundle."""
    source, profile = manifest.source, profile_called(manifest.profile)
    room = profile.calls.room(manifest)
    line = f"`{source['model']}`"
    if "adapter" in source:
        line += f" with the adapter `{source['adapter']}`"
    functions = ", ".join(
        f"`{name}` ({_tokens(info)})" for name, info in manifest.functions.items()
    )
    slot = "no room for one"
    if manifest.slot:
        slot = f"rank {manifest.slot.rank} at most, on {len(manifest.slot.layers)} layers"
    states = ", ".join(f"`{k}` fp16 {v['shape']}" for k, v in manifest.states.items())
    return _TEXT.format(
        name=manifest.name,
        model_line=line,
        systems=" and ".join(f"{k} {v}" for k, v in manifest.minimum_os.items()),
        plural="s" if manifest.chunks else "",
        packages=", ".join(f"`{name}`" for name in manifest.packages),
        app=_CHUNKS if manifest.chunks else _SWIFT if profile.swift else "",
        float16=_float16(manifest),
        unverified=_unverified(manifest),
        megabytes=manifest.bytes / 1e6,
        weights=manifest.weights,
        functions=functions,
        states=states,
        slot=slot,
        context=manifest.context,
        eos=", ".join(map(str, manifest.eos_token_ids)),
        profile=manifest.profile,
        compute_units=manifest.compute_units,
        licence=source.get("license", "not known: see where it came from"),
        file=FILE,
        contract=manifest.contract,
        usage=profile.usage.format(default=profile.default, room=room),
    )


def _tokens(info: FunctionInfo) -> str:
    if "most" in info.inputs.get("inputIds", {}):
        return f"1 to {info.tokens} tokens"
    return "1 token" if info.tokens == 1 else f"{info.tokens} tokens"


def _float16(manifest: Manifest) -> str:
    """Say how near the values come to the end of float16."""
    if not (found := manifest.float16):
        return ""
    text = (
        f"\nThe largest value that float16 has to hold is {found['largest']:,.0f}, after "
        f"`{found['after']}`, on {found['tokens']} tokens of text; float16 ends at 65,504."
    )
    if counts := found["float32_values"]:
        text = (
            f"\nValues reach {found['largest']:,.0f}, after `{found['after']}`, on "
            f"{found['tokens']} tokens of text, and float16 ends at 65,504. Kept in float32 "
            f"are {', '.join(f'{n} of {name}' for name, n in counts.items())}."
        )
    return text + "\n"


def _unverified(manifest: Manifest) -> str:
    if not manifest.unverified:
        return ""
    lines = "\n".join(f"- {what}" for what in manifest.unverified)
    return f"\nThe profile `{manifest.profile}` is experimental. Not verified is:\n\n{lines}\n"
