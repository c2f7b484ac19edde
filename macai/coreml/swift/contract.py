"""The two files of the Swift package that depend on the model: Contract.swift and Package.swift.

A manifest is read as data: its strings become literals and its numbers are checked to be numbers.
"""

import re
from collections.abc import Mapping
from typing import Any

from macai.coreml.swift.names import array, dictionary, number, optional, string

Manifest = Mapping[str, Any]
# The first version whose messages are Sendable is 1.1.6.
TOKENIZERS_VERSION = "1.2.0"


def contract_source(manifest: Manifest, module: str) -> str:
    """Return Contract.swift: what the static sources need to know of this model."""
    states = {
        name: array([number(n) for n in state["shape"]])
        for name, state in sorted(manifest["states"].items())
    }
    ends = [number(n) for n in manifest["eos_token_ids"]]
    variants = ",\n".join(f"        {_variant(manifest, *v)}" for v in _variants(manifest))
    return f"""\
// Written by macai export from macai.json: export again instead of editing it.

/// What this package was generated for. A bundle is compared with it before it is loaded.
public enum Contract {{
    /// Of the functions' inputs, outputs and states.
    public static let version = {number(manifest["contract"])}
    public static let name = {string(manifest["name"])}
    public static let packageName = {string(manifest["package"])}
    /// Over the package's files, as macai computes it.
    public static let sha256 = {string(manifest["sha256"])}
    public static let packageBytes = {number(manifest["bytes"])}
    /// The most tokens of a prompt and its reply.
    public static let context = {number(manifest["context"])}
    public static let vocabularySize = {number(manifest["vocab_size"])}
    /// Each of them ends a reply.
    public static let eosTokenIDs: Set<Int> = {array(ends)}
    public static let bosTokenID: Int? = {optional(manifest["bos_token_id"])}
    public static let precision = {string(manifest["precision"])}
    public static let weights = {string(manifest["weights"])}
    /// Where the model is meant to run: a case of `MLComputeUnits`.
    public static let computeUnits = {string(manifest["compute_units"])}
    /// Shapes of what keeps keys and values; heads, context and width of a head are last.
    public static let states: [String: [Int]] = {dictionary(states)}
    /// The functions, by adapter. The first is loaded unless another is asked for.
    public static let variants: [ModelVariant] = [
{variants},
    ]
    /// Room for an adapter at run time; `nil` if the model was exported without.
    public static let slot: AdapterSlot? = {_slot(manifest.get("slot"))}
    public static let sourceModel = {string(str(manifest["source"].get("model", "")))}
    public static let macaiVersion = {string(manifest["macai"])}
}}

/// The model under its own name, for apps with several.
public typealias {module}Model = LanguageModel
"""


def package_source(manifest: Manifest, module: str) -> str:
    """Return Package.swift."""
    system = manifest["minimum_os"]
    return f"""\
// swift-tools-version: 6.0
import PackageDescription

// The model is not a resource of the package: the app decides whether it is bundled or downloaded.
let package = Package(
    name: "{module}",
    platforms: [.iOS("{_version(system["iOS"])}"), .macOS("{_version(system["macOS"])}")],
    products: [.library(name: "{module}", targets: ["{module}"])],
    dependencies: [
        .package(
            url: "https://github.com/huggingface/swift-transformers.git",
            from: "{TOKENIZERS_VERSION}")
    ],
    targets: [
        .target(
            name: "{module}",
            dependencies: [.product(name: "Tokenizers", package: "swift-transformers")]),
        .executableTarget(name: "{module}Chat", dependencies: ["{module}"]),
        .executableTarget(name: "{module}Bench", dependencies: ["{module}"]),
        .testTarget(name: "{module}Tests", dependencies: ["{module}"]),
    ]
)
"""


def _variants(manifest: Manifest) -> list[tuple[str | None, list[str]]]:
    """Each adapter's functions, before them those that belong to none."""
    adapters = [(a["name"], list(a["functions"].values())) for a in manifest["adapters"]]
    taken = {function for _, functions in adapters for function in functions}
    own = [name for name in manifest["functions"] if name not in taken]
    return ([(None, own)] if own else []) + adapters


def _variant(manifest: Manifest, adapter: str | None, functions: list[str]) -> str:
    tokens = {name: manifest["functions"][name]["tokens"] for name in functions}
    [decode] = [name for name in functions if tokens[name] == 1]
    prefill = sorted((n for n in functions if n != decode), key=lambda n: tokens[n])

    def function(name: str) -> str:
        return f"ModelFunction(name: {string(name)}, tokens: {number(tokens[name])})"

    return (
        f"ModelVariant(\n            adapter: {optional(adapter)},\n"
        f"            prefill: {array([function(name) for name in prefill])},\n"
        f"            decode: {function(decode)})"
    )


def _slot(slot: Mapping[str, Any] | None) -> str:
    if not slot:
        return "nil"
    base = {name: string(value) for name, value in sorted(slot["base"].items())}
    layers = ",\n".join(
        f"            {string(path)}: "
        + array([number(place[key]) for key in ("inputs", "outputs", "a", "b")])
        for path, place in slot["layers"].items()
    )
    return f"""AdapterSlot(
        rank: {number(slot["rank"])},
        state: {string(slot["state"])},
        shape: {array([number(n) for n in slot["shape"]])},
        base: {dictionary(base)},
        layers: [
{layers},
        ])"""


def _version(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+){0,2}", text):
        raise ValueError(f"not a version of a system: {text!r}")
    return text
