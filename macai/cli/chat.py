"""`macai chat`: a conversation in the terminal; works with a script on stdin too."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

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
from macai.errors import MacaiError, OutputError, UsageError

if TYPE_CHECKING:
    from macai.generate.chat import ChatSession

HELP = """\
/reset      forget the conversation
/save FILE  write the conversation as JSON
/quit       leave; so does Ctrl-D
/help       show this
Ctrl-C breaks off a reply."""


def chat(
    model: ModelOption,
    adapter: AdapterOption = None,
    system: SystemOption = None,
    max_tokens: MaxTokensOption = 1024,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
    stop: StopOption = None,
) -> None:
    """Talk with a model; /help shows the commands.

    Replies go to stdout and all else to stderr, so lines may come from a file.

    Example: macai chat --model smollm2-135m --system "Answer in one sentence."
    """
    from macai.generate.chat import ChatSession
    from macai.generate.prompt import require_template
    from macai.generate.sample import make_sampler
    from macai.generate.stop import StopMatcher

    sampler = make_sampler(temperature=temperature, top_p=top_p)
    StopMatcher(stop or ())  # refuses an empty string before a large model is loaded
    loaded = open_model(model, adapter, seed)
    require_template(loaded)
    session = ChatSession(
        loaded, system=system, max_tokens=max_tokens, sampler=sampler, stop=stop or ()
    )
    # What is no UTF-8 must not end the program; the session refuses it.
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    _converse(session, _line_reader())


def _line_reader() -> Callable[[], str | None]:
    """Return a function that reads one line, or None at the end."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return lambda: sys.stdin.readline() or None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() edits lines once it is imported
    _note("/help shows the commands")

    def read() -> str | None:
        while True:
            try:
                return input("> ")
            except EOFError:
                _note("")
                return None
            except KeyboardInterrupt:
                _note("\nleave with /quit or Ctrl-D")

    return read


def _converse(session: "ChatSession", read: Callable[[], str | None]) -> None:
    while (line := read()) is not None:
        line = line.strip()
        try:
            if line == "/quit":
                return
            if line.startswith("/"):
                _run_command(session, line)
            elif line:
                _answer(session, line)
        except MacaiError as e:
            _note(f"error: {e.message}")
            if e.hint:
                _note(f"hint: {e.hint}")


def _answer(session: "ChatSession", line: str) -> None:
    text = ""
    with contextlib.closing(session.say(line)) as pieces:
        try:
            for piece in pieces:
                text += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass
    print(end="" if text.endswith("\n") else "\n", flush=True)
    if session.finish_reason is None:
        _note("(broken off)")
    elif session.finish_reason == "length":
        _note("(cut off: no tokens left; see --max-tokens, or /reset)")


def _run_command(session: "ChatSession", line: str) -> None:
    name, _, argument = line.partition(" ")
    if name == "/reset":
        session.reset()
        _note("the conversation is forgotten")
    elif name == "/save":
        _save(session, argument.strip())
    elif name == "/help":
        _note(HELP)
    else:
        _note(f"unknown command {name}; /help shows what there is")


def _save(session: "ChatSession", name: str) -> None:
    from macai.files import write_json

    if not name:
        raise UsageError("/save needs the name of a file", hint="/save talk.json")
    path = Path(name).expanduser()
    if path.exists():
        raise OutputError(f"{path} exists already", hint="choose another name")
    messages = [{"role": m.role, "content": m.content} for m in session.messages]
    write_json(path, {"messages": messages})
    _note(f"{path}: {len(messages)} messages")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
