"""The README.md of a bundle: what is in it and how an app uses it."""

from macai.coreml.sd.manifest import SdManifest


def card(manifest: SdManifest) -> str:
    """Return the card in Markdown."""
    rows = [
        f"| `{name}` | {_features(p.inputs)} | {_features(p.outputs)} | {p.bytes / 1e6:.1f} MB |"
        for name, p in manifest.packages.items()
    ]
    loras = [f"- LoRA: {one['name']}, {one['scale']:g}" for one in manifest.source["loras"]]
    facts = [
        f"- made of: {manifest.source['model']}",
        *loras,
        f"- licence: {manifest.source.get('license', 'see the model')}",
        f"- pictures of {manifest.width}x{manifest.height} pixels, {manifest.attention} attention, "
        f"meant for {manifest.compute_units}",
        f"- latents are divided by {manifest.scaling_factor:g}"
        + (f", plus {manifest.shift_factor:g}," if manifest.shift_factor else "")
        + " before they are decoded",
        f"- the U-Net predicts: {manifest.prediction_type}",
    ]
    channels = manifest.unet_inputs()["sample"]["shape"][1]
    if channels != _CHANNELS:
        facts.append(
            f"- the U-Net takes {channels} channels, and Apple's package feeds {_CHANNELS}: what "
            "follows needs code of your own for its inputs"
        )
    table = ["| package | inputs | outputs | size |", "|---|---|---|---|", *rows]
    use = _USE.format(
        scale=manifest.scaling_factor,
        units=manifest.compute_units,
        controlnets=controlnets(manifest),
    )
    if manifest.functions:
        use += _FUNCTIONS.format(
            names=", ".join(f"`{name}`" for name in manifest.functions),
            first=next(iter(manifest.functions)),
        )
    head = [f"# {manifest.name}", "", "Stable Diffusion for Core ML, written by macai.", ""]
    return "\n".join([*head, *facts, "", *table, "", use])


def controlnets(manifest: SdManifest) -> str:
    """Return the ControlNets' names as a list in Swift has them."""
    prefix = "controlnet/"
    names = [n.removeprefix(prefix) for n in manifest.packages if n.startswith(prefix)]
    return ", ".join(f'"{name}"' for name in names)


def _features(specs: dict[str, dict[str, object]]) -> str:
    return "<br>".join(f"`{n}` {s['dtype']} {s['shape']}" for n, s in specs.items())


_CHANNELS = 4
_USE = """\
## In an app

Core ML loads compiled packages. In Xcode, what is in `Resources/` is compiled as the app is built;
by hand, on a Mac with Xcode:

    for p in Resources/*.mlpackage; do xcrun coremlcompiler compile "$p" Resources; done
    for m in Resources/*.mlmodelc; do
      cp -n "metadata/$(basename "$m" .mlmodelc).json" "$m/metadata.json"; done

The second line is for compilers that leave out the `metadata.json` by which apps tell models.

Apple's package, github.com/apple/ml-stable-diffusion, then makes pictures of that folder:

```swift
import StableDiffusion

let configuration = MLModelConfiguration()
configuration.computeUnits = .{units}
let pipeline = try StableDiffusionPipeline(
    resourcesAt: resources, controlNet: [{controlnets}], configuration: configuration,
    reduceMemory: true)
try pipeline.loadResources()
var wanted = StableDiffusionPipeline.Configuration(prompt: "a red apple")
wanted.decoderScaleFactor = {scale:g}
wanted.encoderScaleFactor = {scale:g}
let images = try pipeline.generateImages(configuration: wanted)
```

`swift/GenerateView.swift` is a view that does this. `swift/SelfTest.swift` runs the packages on
what is in `golden.safetensors`, and says how close the device comes to the model.

Compiling, loading and running by Core ML were not tried where this was written: the packages were
run by macai's own runtime and compared with the model (verify.json), unless the export was told to
do without. There is no safety checker.
"""

_FUNCTIONS = """
Each package has the functions {names} besides `main`: `configuration.functionName = "{first}"`.
"""
