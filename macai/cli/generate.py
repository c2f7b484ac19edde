"""`macai generate`: one prompt, one reply."""

import json
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macai.cli.opening import (
    AdapterOption,
    MaxTokensOption,
    ModelOption,
    SeedOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    TopPOption,
    open_model,
)

if TYPE_CHECKING:
    from macai.generate.decode import Token


def generate(
    model: ModelOption,
    prompt: Annotated[
        str | None, typer.Argument(help="What you say; - or nothing reads it from stdin.")
    ] = None,
    adapter: AdapterOption = None,
    system: SystemOption = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt itself, without a chat template.")
    ] = False,
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Let a model reply to one prompt, and print the reply as it comes.

    Example: macai generate "Name three whales." --model smollm2-135m
    """
    from macai.generate.decode import generate as decode
    from macai.generate.prompt import user_prompt
    from macai.generate.sample import make_sampler
    from macai.generate.stop import StopMatcher

    text = read_prompt(prompt)
    sampler = make_sampler(temperature=temperature, top_p=top_p)
    StopMatcher(stop or ())  # refuses an empty string before a large model is loaded
    loaded = open_model(model, adapter, seed)
    prompt_ids = user_prompt(loaded, text, system=system, raw=raw)
    tokens = decode(loaded, prompt_ids, max_tokens=max_tokens, sampler=sampler, stop=stop or ())
    if as_json:
        print(json.dumps(measure(tokens, len(prompt_ids)), ensure_ascii=False))
    else:
        stream_text(tokens)


def read_prompt(argument: str | None) -> str:
    """Return what the user says: the argument, or all of stdin."""
    from macai.errors import UsageError

    if argument not in (None, "-"):
        assert argument is not None
        return argument
    if argument is None and sys.stdin.isatty():
        raise UsageError("no prompt", hint='give one: macai generate "Hello" --model smollm2-135m')
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UsageError(f"the prompt on stdin is not UTF-8 at byte {e.start}") from e
    return text.removesuffix("\n").removesuffix("\r")


def stream_text(tokens: "Generator[Token, None, None]") -> None:
    """Print a reply as it comes."""
    ends_line = True
    with closing(tokens):
        try:
            for token in tokens:
                print(token.text, end="", flush=True)
                ends_line = token.text.endswith("\n") if token.text else ends_line
        except KeyboardInterrupt:
            if not ends_line:
                print(flush=True)
            raise
    print(end="" if ends_line else "\n", flush=True)


def measure(
    tokens: "Iterator[Token]", prompt_tokens: int, peak_memory: Callable[[], int] | None = None
) -> dict[str, Any]:
    """Return a reply with its speed, as `--json` prints it; the memory is MLX's if not given."""
    import mlx.core as mx

    mx.reset_peak_memory()
    start = time.perf_counter()
    first = next(tokens)
    after_first = time.perf_counter()
    rest = list(tokens)
    seconds = time.perf_counter() - after_first
    reply = [first, *rest]
    return {
        "text": "".join(token.text for token in reply),
        "prompt_tokens": prompt_tokens,
        "generated_tokens": len(reply),
        "prompt_tokens_per_second": prompt_tokens / (after_first - start),
        # The first token comes with the prompt; of one token alone there is no speed.
        "tokens_per_second": len(rest) / seconds if rest else None,
        "peak_memory_bytes": (peak_memory or mx.get_peak_memory)(),
        "finish_reason": reply[-1].finish_reason,
    }
