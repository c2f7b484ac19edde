"""`macai image`: a prompt, and what else is wanted, to pictures."""

from pathlib import Path
from typing import Annotated

import typer


def image(
    prompt: Annotated[str | None, typer.Argument(help="What the picture shows.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A folder in diffusers' layout, a .safetensors or .ckpt file, a hub id."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The PNG; several get numbers.")] = Path("image.png"),
    negative: Annotated[str | None, typer.Option(help="What the picture keeps away from.")] = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in pixels; else --image's or the model's own.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the scheduler. Default: 25, LCM 4.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="How strictly the prompt is followed; 1 is off. Default: 7.5, XL 5, LCM 8.5."
        ),
    ] = None,
    guidance_rescale: Annotated[
        float | None, typer.Option(min=0, max=1, help="Keeps strong guidance from overexposing.")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="ddim, pndm, euler, euler-a, heun, dpm++2m, dpm++2m-karras, dpm++sde, unipc, lcm, "
            "tcd, or swift for Apple's package; else the model's own."
        ),
    ] = None,
    eta: Annotated[float | None, typer.Option(help="Fresh noise, 0 to 1: ddim and tcd.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the first picture. Default: drawn, and said.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Pictures made together.")] = None,
    rng: Annotated[
        str | None,
        typer.Option(help="Whose noise a seed means: torch, cuda, numpy (Apple's package), mlx."),
    ] = None,
    clip_skip: Annotated[
        int | None, typer.Option(min=0, help="Last text layers that the prompt leaves out.")
    ] = None,
    prompt_weights: Annotated[
        bool | None,
        typer.Option(
            "--prompt-weights/--plain-prompt",
            help="Whether (this:1.2) is a weight, and a long prompt is read to its end.",
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--image", help="A picture to start from.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of --image is made anew, 0 to 1. Default: 0.8.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="White: what of --image is made anew.")] = None,
    controlnet: Annotated[
        list[str] | None, typer.Option(help="A ControlNet; as often as --control.")
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="Its picture, or PICTURE:SCALE or PICTURE:SCALE:START:END."),
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="A LoRA of any program: FILE, or FILE:SCALE.")
    ] = None,
    vae: Annotated[Path | None, typer.Option(help="Another autoencoder.")] = None,
    refiner: Annotated[str | None, typer.Option(help="An XL refiner, for the last steps.")] = None,
    handover: Annotated[
        float | None, typer.Option(help="The share of the way before the refiner. Default: 0.8.")
    ] = None,
    enlarge: Annotated[
        float | None, typer.Option(help="A second pass makes it so many times larger, up to 4.")
    ] = None,
    enlarge_strength: Annotated[
        float | None, typer.Option(help="How much the second pass makes anew. Default: 0.5.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16 or bfloat16. Default: float16 on a GPU, else float32."),
    ] = None,
    quantize: Annotated[
        int | None, typer.Option(help="8 or 4 bits for linear layers: less memory.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Which files of a folder: fp16.")] = None,
    prediction: Annotated[
        str | None, typer.Option(help="epsilon, v_prediction or sample, if a file does not say.")
    ] = None,
    serial: Annotated[
        bool, typer.Option("--serial", help="Prompt and negative one after the other.")
    ] = False,
    tile: Annotated[
        bool, typer.Option("--tile", help="Decode large pictures in tiles: less memory.")
    ] = False,
    low_memory: Annotated[
        bool | None,
        typer.Option(
            "--low-memory/--keep-loaded", help="Let parts go once used. Default: if need be."
        ),
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show it on the way, in terminals that can.")
    ] = False,
    taesd: Annotated[
        Path | None, typer.Option(help="A tiny autoencoder for better previews.")
    ] = None,
    again: Annotated[
        Path | None, typer.Option("--from", help="Take all from a PNG that macai made.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Make pictures with Stable Diffusion 1, 2 or XL: from text, a picture, a mask, a control.

    A seed gives the picture that diffusers gives on the CPU. The PNG holds all that made it. There
    is no check of what a picture shows.

    Example: macai image "a lighthouse at dusk" --model ./stable-diffusion-v1-5 --out lighthouse.png
    """
    from macai.cli.image_run import run
    from macai.cli.image_wanted import Wanted

    run(
        Wanted(
            prompt=prompt,
            model=model,
            negative=negative,
            size=size,
            steps=steps,
            guidance=guidance,
            rescale=guidance_rescale,
            scheduler=scheduler,
            eta=eta,
            seed=seed,
            count=count,
            rng=rng,
            clip_skip=clip_skip,
            weighted=prompt_weights,
            image=picture,
            strength=strength,
            mask=mask,
            controlnets=controlnet or [],
            controls=control or [],
            loras=lora or [],
            vae=vae,
            refiner=refiner,
            handover=handover,
            enlarge=enlarge,
            enlarge_strength=enlarge_strength,
            dtype=dtype,
            quantize=quantize,
            variant=variant,
            prediction=prediction,
            serial=serial,
            tile=tile or None,
            low_memory=low_memory,
            taesd=taesd,
        ),
        out=out,
        again=again,
        preview=preview,
        force=force,
        as_json=as_json,
    )
