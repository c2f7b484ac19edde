"""`macai export adapter`: the small file that an app downloads and loads into a package's slot."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "macai export adapter --adapter runs/mine --for MyModel --out mine.macaiadapter"


def adapter(
    adapter: Annotated[
        Path, typer.Option("--adapter", help="Folder of an adapter that macai train wrote.")
    ],
    bundle: Annotated[
        Path, typer.Option("--for", help="The bundle it is for, exported with --adapter-slot.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    name: Annotated[str | None, typer.Option(help="What it is called; else its folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Write an adapter as a file that an app loads at run time: float16, safetensors.

    It serves every bundle of the same model that has room for its rank and its layers.
    docs/coreml.md describes the file. macai verify BUNDLE --against MODEL --adapter FILE compares.
    """
    from macai.coreml.adapter_file import write_adapter_file
    from macai.coreml.hot_swap import open_adapter, slot_of
    from macai.coreml.manifest import read_manifest
    from macai.errors import OutputError

    if out.is_dir() or (out.exists() and not force):
        raise OutputError(
            f"{out} exists already", hint="choose another --out, or replace a file with --force"
        )
    manifest = read_manifest(bundle)
    opened = open_adapter(adapter, slot_of(manifest.slot, str(bundle)))
    opened = replace(opened, name=name or opened.name)
    write_adapter_file(out, opened)
    size = out.stat().st_size
    if as_json:
        print(json.dumps({"out": str(out), "for": manifest.name, "bytes": size, **opened.facts()}))
    else:
        layers = len(opened.layers)
        print(f"{out}: {size / 1e6:.1f} MB, rank {opened.rank}, {layers} layers")
        print(f"for {manifest.name} and other exports of its model")
