"""`macai run` of a bundle of Stable Diffusion: a picture of its packages alone."""

import json
from pathlib import Path
from typing import Any


def run_sd(
    package: Path,
    prompt: str,
    out: Path,
    options: dict[str, Any],
    *,
    image: Path | None,
    mask: Path | None,
    controls: list[str],
    as_json: bool,
) -> None:
    """Make a picture, write it and print where it is.

    Args:
        package: The bundle.
        prompt: What the picture shows.
        out: The PNG.
        options: Numbers and names of coreml.sd.picture.Wanted.
        image: A picture to start from.
        mask: White where it is made anew.
        controls: NAME=PICTURE of ControlNets, or a PICTURE for the only one.
        as_json: Print one line of JSON.
    """
    from macai.cli.progress import reporting
    from macai.coreml.sd.manifest import read_sd_manifest
    from macai.coreml.sd.picture import Wanted, make_picture
    from macai.diffusion.images import (
        read_control,
        read_mask,
        read_picture,
        require_png,
        to_bytes,
        write_picture,
    )
    from macai.errors import OutputError

    require_png(out)
    if out.exists():
        raise OutputError(f"{out} exists already", hint="choose another --out")
    manifest = read_sd_manifest(package)
    size = manifest.size(options.get("function", "main"))
    named = [spec.rpartition("=") for spec in controls]
    wanted = Wanted(
        prompt=prompt,
        picture=None if image is None else read_picture(image, size),
        mask=None if mask is None else read_mask(mask, size),
        controls={name: read_control(Path(file), size) for name, _, file in named},
        **options,
    )
    with reporting() as progress:
        picture = make_picture(package, manifest, wanted, progress)
    write_picture(out, to_bytes(picture)[0])
    if as_json:
        files = {"image": image, "mask": mask}
        given = {name: str(file) for name, file in files.items() if file is not None}
        told: dict[str, Any] = {"out": str(out), "prompt": prompt, **options, **given}
        if controls:
            told["controls"] = controls
        print(json.dumps(told, ensure_ascii=False))
    else:
        print(f"{out}  seed {options['seed']}")
