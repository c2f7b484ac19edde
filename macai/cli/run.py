"""`macai run`: talk to an exported package."""

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macai.cli.generate import measure, read_prompt, stream_text
from macai.cli.opening import (
    MaxTokensOption,
    RuntimeOption,
    SeedOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    TopPOption,
    refuse_given,
)

if TYPE_CHECKING:
    from macai.coreml.session import Session
    from macai.generate.decode import Token
    from macai.generate.sample import Sampler
    from macai.models.load import Tokenized

_OF_TEXT = ("runtime", "system", "raw", "max_tokens", "temperature", "top_p", "stop")
_OF_PICTURES = (
    *("out", "negative", "steps", "guidance", "scheduler"),
    *("image", "strength", "mask", "control"),
)


def run(
    ctx: typer.Context,
    package: Annotated[Path, typer.Argument(help="The bundle that macai export wrote.")],
    prompt: Annotated[
        str | None, typer.Option(help="What you say; - or nothing reads it from stdin.")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="The adapter of the bundle that replies, by name; for a slot, the file of macai "
            "export adapter or the folder of macai train; of Stable Diffusion, the function."
        ),
    ] = None,
    runtime: RuntimeOption = "reference",
    system: SystemOption = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt itself, without a chat template.")
    ] = False,
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    out: Annotated[
        Path, typer.Option(help="Of Stable Diffusion: the PNG, which must not be there yet.")
    ] = Path("image.png"),
    negative: Annotated[str, typer.Option(help="What the picture keeps away from.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="From noise to the picture.")] = 20,
    guidance: Annotated[float, typer.Option(help="How strictly a picture follows --prompt.")] = 7.5,
    scheduler: Annotated[
        str,
        typer.Option(
            help="Of Stable Diffusion: swift (PNDM, which Apple's package takes by itself), "
            "swift-dpm++, or another of macai image."
        ),
    ] = "swift",
    image: Annotated[
        Path | None, typer.Option(help="Of Stable Diffusion: a picture to start from.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="How much of the way from noise to --image is gone, to 1.")
    ] = 0.8,
    mask: Annotated[
        Path | None, typer.Option(help="White where a U-Net for inpainting makes --image anew.")
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="A picture for the bundle's ControlNet: PICTURE, or NAME=PICTURE."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Let an exported package reply to one prompt: by macai's own runtime, in numpy, or by Core ML.

    A bundle of Stable Diffusion makes a picture of it, with tokens, noise and scheduler of Apple's
    Swift package; from a picture with --image, with a ControlNet in the bundle and --control.

    Example: macai run MyModel --prompt "wake me at half six tomorrow"
    """
    from macai.coreml.sd.manifest import is_sd_bundle

    if is_sd_bundle(package):
        from macai.cli.run_sd import run_sd

        refuse_given(ctx, _OF_TEXT, "a bundle of Stable Diffusion")
        options = {"negative": negative, "steps": steps, "guidance": guidance, "seed": seed or 0}
        options["scheduler"] = scheduler
        if adapter is not None:
            options["function"] = adapter
        if image is not None:
            options["strength"] = strength
        run_sd(
            package,
            read_prompt(prompt),
            out,
            options,
            image=image,
            mask=mask,
            controls=control or [],
            as_json=as_json,
        )
        return
    refuse_given(ctx, _OF_PICTURES, "a language model")
    import mlx.core as mx

    from macai.coreml.device import CoreMLRunner
    from macai.coreml.hot_swap import chosen_adapter
    from macai.coreml.session import ReferenceRunner, Session, open_bundle
    from macai.generate.prompt import user_prompt
    from macai.generate.sample import make_sampler
    from macai.generate.stop import StopMatcher
    from macai.models.load import load_tokenized

    text = read_prompt(prompt)
    sampler = make_sampler(temperature=temperature, top_p=top_p)
    StopMatcher(stop or ())
    manifest, opened = open_bundle(package)
    functions, held = chosen_adapter(manifest, adapter)
    tokenized = load_tokenized(package)
    prompt_ids = user_prompt(tokenized, text, system=system, raw=raw)
    if seed is not None:
        mx.random.seed(seed)
    if runtime == "coreml":
        session = Session(manifest, CoreMLRunner(package, manifest, held=held), functions)
    else:
        session = Session(manifest, ReferenceRunner(opened, held=held), functions)
    tokens = reply(
        session, tokenized, prompt_ids, max_tokens=max_tokens, sampler=sampler, stop=stop or []
    )
    if as_json:
        print(json.dumps(measure(tokens, len(prompt_ids), _process_memory), ensure_ascii=False))
    else:
        stream_text(tokens)


def _process_memory() -> int:
    """The most memory this process had, bytes: numpy's is not MLX's."""
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reply(
    session: "Session",
    tokenized: "Tokenized",
    prompt_ids: list[int],
    *,
    max_tokens: int,
    sampler: "Sampler | None" = None,
    stop: list[str] | None = None,
) -> "Generator[Token, None, None]":
    """Continue a prompt with a package; the greedy reply without a sampler."""
    from macai.generate.decode import stream, token_limit
    from macai.generate.sample import greedy

    config = {"max_position_embeddings": session.room}
    limit = token_limit(config, prompt_ids, max_tokens)
    steps = _steps(session, prompt_ids, limit, sampler or greedy)
    ends = tokenized.eos_token_ids | set(session.manifest.eos_token_ids)
    return stream(tokenized.tokenizer, ends, steps, limit=limit, stop=stop or ())


def _steps(
    session: "Session", prompt_ids: list[int], limit: int, sampler: Any
) -> Iterator[tuple[int, float]]:
    import mlx.core as mx

    from macai.models.arrays import scalar

    logits = session.feed(prompt_ids[session.keep_prefix(prompt_ids) :])
    for number in range(1, limit + 1):
        scores = mx.array(logits)[None]
        logprobs = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
        token = int(scalar(sampler(logprobs)))
        yield token, scalar(logprobs[0, token])
        if number < limit:
            logits = session.feed([token])
