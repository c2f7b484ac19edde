"""`macai convert`: a foreign file of weights becomes a model folder."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from macai.models.converter import Converter, Dtype


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="What to read, as a .gguf file.")],
    out: Annotated[Path, typer.Option(help="Folder to write, in Hugging Face's layout.")],
    dtype: Annotated[
        Dtype, typer.Option(help="Type of the weights; keep leaves exact 4 and 8 bit ones packed.")
    ] = "keep",
    name: Annotated[
        str | None,
        typer.Option("--from", metavar="NAME", help="Converter: a name, or your own .py file."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Convert a foreign file of weights to a model folder.

    The converter is chosen by the file itself unless --from names one. With your own .py file,
    which ends in CONVERTER = Converter(...), macai reads a format it does not know.

    Example: macai convert model.gguf --out model
    """
    from macai.cli.progress import reporting
    from macai.errors import ModelError
    from macai.files import atomic_directory

    if not source.exists():
        raise ModelError(f"{source}: no such file or folder", hint=_hint(source))
    converter = _choose(source, name)
    with reporting() as progress, atomic_directory(out, force=force) as folder:
        converter.convert(source, folder, dtype, progress)
    _print_result(out, converter, as_json=as_json)


def _hint(source: Path) -> str | None:
    from macai.catalog import MODELS

    if str(source) not in MODELS:
        return None
    return f"a model of the catalogue needs no converting: macai generate --model {source} hello"


def _choose(source: Path, name: str | None) -> Converter:
    from macai.catalog import converter_for, converter_names, load_converter
    from macai.errors import ModelError

    converter = load_converter(name) if name else converter_for(source)
    if converter is None:
        raise ModelError(
            f"{source}: no converter knows this kind of file",
            hint=f"choose one with --from: {', '.join(converter_names())}, or your own .py file",
        )
    return converter


def _print_result(out: Path, converter: Converter, *, as_json: bool) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    result: dict[str, Any] = {"out": str(out), "converter": converter.name, "files_bytes": sizes}
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        print(f"{out}  {sum(sizes.values()) / 1e6:.1f} MB, {len(sizes)} files ({converter.name})")
