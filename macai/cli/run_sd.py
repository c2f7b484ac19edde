"""`macai run` of a bundle of Stable Diffusion: a picture of its packages alone."""

import json
from pathlib import Path
from typing import Any


def run_sd(
    package: Path, prompt: str, out: Path, options: dict[str, Any], *, as_json: bool
) -> None:
    """Make a picture, write it and print where it is."""
    from macai.cli.progress import reporting
    from macai.coreml.sd.manifest import read_sd_manifest
    from macai.coreml.sd.picture import Wanted, make_picture
    from macai.diffusion.images import require_png, to_bytes, write_picture
    from macai.errors import OutputError

    require_png(out)
    if out.exists():
        raise OutputError(f"{out} exists already", hint="choose another --out")
    manifest = read_sd_manifest(package)
    with reporting() as progress:
        picture = make_picture(package, manifest, Wanted(prompt=prompt, **options), progress)
    write_picture(out, to_bytes(picture)[0])
    if as_json:
        print(json.dumps({"out": str(out), "prompt": prompt, **options}, ensure_ascii=False))
    else:
        print(f"{out}  seed {options['seed']}")
