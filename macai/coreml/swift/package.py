"""Write the Swift package of an exported language model.

Everything but Contract.swift and Package.swift is static text in templates/, which is Swift as it
stands: only the module's name is replaced, which is ModelModule there.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from macai.coreml.manifest import CONTRACT
from macai.coreml.swift.contract import contract_source, package_source
from macai.coreml.swift.names import module_name
from macai.errors import OutputError, UsageError

TEMPLATES = Path(__file__).parent / "templates"
PLACEHOLDER = "ModelModule"
APP = "App"


def write_swift_package(
    folder: Path, manifest: Mapping[str, Any], *, sample_app: bool = True
) -> list[Path]:
    """Write the package into a new or empty folder; return the files, sorted.

    Args:
        folder: DIR/Swift of a bundle.
        manifest: The values of macai.json.
        sample_app: Whether the SwiftUI app and its Xcode project are written too.

    Raises:
        UsageError: the manifest is not of a language model, or of another contract.
        OutputError: something is in the folder.
    """
    kind, contract = manifest.get("kind"), manifest.get("contract")
    if (kind, contract) != ("llm", CONTRACT):
        raise UsageError(
            f"a manifest of kind {kind!r} and contract {contract!r}",
            hint=f"Swift code is written for language models of contract {CONTRACT}",
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty", hint="give a new folder")
    module = module_name(manifest["name"])
    files = dict(_static(module, sample_app=sample_app))
    files[Path("Package.swift")] = package_source(manifest, module)
    files[Path("Sources", module, "Contract.swift")] = contract_source(manifest, module)
    for relative, text in files.items():
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_text(text, encoding="utf-8")
    return sorted(folder / relative for relative in files)


def _static(module: str, *, sample_app: bool) -> Iterator[tuple[Path, str]]:
    """The templates under the module's name."""
    for path in sorted(TEMPLATES.rglob("*")):
        relative = path.relative_to(TEMPLATES)
        if path.is_file() and (sample_app or relative.parts[0] != APP):
            text = path.read_text(encoding="utf-8")
            named = str(relative).replace(PLACEHOLDER, module)
            yield Path(named), text.replace(PLACEHOLDER, module)
