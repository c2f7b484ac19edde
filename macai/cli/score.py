"""`macai score`: how many replies of a model are exactly the JSON that was asked for."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from macai.cli.opening import MaxTokensOption, open_model

if TYPE_CHECKING:
    from macai.bench.json_calls import JsonCallScore
    from macai.data.rows import Message, Row
    from macai.generate.batch import Reply

    Questions = list[tuple[Message, ...]]


def score(
    data: Annotated[
        Path, typer.Option("--data", help="A .jsonl file; each row ends in the expected reply.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="A catalogue name, a model folder, a .gguf file or a hub id."),
    ] = None,
    package: Annotated[
        Path | None,
        typer.Option(help="Instead of a model, a bundle that macai export wrote: slow, exact."),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="Folder of an adapter that macai train wrote; its name in a bundle, or for a "
            "slot its folder or file."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    max_tokens: MaxTokensOption = 256,
    replies: Annotated[
        Path | None, typer.Option(help="File to write each row's expected text and reply to.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Score a model's replies as JSON: an intent and its slots.

    The model replies to the messages before each row's last one, greedily. Rates come with their
    95 % Wilson intervals.

    Example: macai score --model smollm2-135m --adapter runs/adapter --data test.jsonl
    """
    from macai.bench.json_calls import score_calls
    from macai.data.rows import read_rows
    from macai.errors import OutputError, UsageError

    if (model is None) == (package is None):
        raise UsageError("give a model or a package to score", hint="--model M, or --package DIR")
    if replies is not None and replies.exists():
        raise OutputError(f"{replies} exists already", hint="choose another file for --replies")
    if replies is not None and not os.access(replies.absolute().parent, os.W_OK):
        raise OutputError(f"{replies}: its folder is missing or cannot be written to")
    rows = read_rows(data)[:limit]
    questions, expected = _split(rows)
    score_calls(expected, expected)  # refuses what no reply could equal before it takes minutes
    if model is not None:
        given = _of_model(model, adapter, questions, max_tokens)
    else:
        assert package is not None
        given = _of_package(package, adapter, questions, max_tokens)
    if replies is not None:
        _write_replies(replies, rows, expected, given)
    result = score_calls(expected, [reply.text for reply in given])
    if as_json:
        print(json.dumps(result.to_json(), ensure_ascii=False))
    else:
        _print_table(result)


def _of_model(
    name: str, adapter: str | None, questions: "Questions", max_tokens: int
) -> "list[Reply]":
    from macai.cli.progress import reporting
    from macai.generate.batch import generate_batch
    from macai.generate.prompt import chat_prompt

    loaded = open_model(name, None if adapter is None else Path(adapter))
    prompts = [chat_prompt(loaded, messages) for messages in questions]
    with reporting() as progress:
        return generate_batch(
            loaded,
            prompts,
            max_tokens=max_tokens,
            progress=lambda done, total: progress("replies", done, total),
        )


def _of_package(
    folder: Path, adapter: str | None, questions: "Questions", max_tokens: int
) -> "list[Reply]":
    """Reply with a bundle, by macai's own runtime; what prompts begin with is computed once."""
    from macai.cli.progress import reporting
    from macai.cli.run import reply
    from macai.coreml.hot_swap import chosen_adapter
    from macai.coreml.session import ReferenceRunner, Session, open_bundle
    from macai.generate.batch import Reply
    from macai.generate.prompt import chat_prompt
    from macai.models.load import load_tokenized

    manifest, opened = open_bundle(folder)
    functions, held = chosen_adapter(manifest, adapter)
    session = Session(manifest, ReferenceRunner(opened, held=held), functions)
    tokenized = load_tokenized(folder)
    given = []
    with reporting() as progress:
        for done, messages in enumerate(questions, 1):
            prompt = chat_prompt(tokenized, messages)
            tokens = list(reply(session, tokenized, prompt, max_tokens=max_tokens))
            text, reason = "".join(token.text for token in tokens), tokens[-1].finish_reason
            assert reason is not None
            given.append(Reply(tuple(token.id for token in tokens), text, reason))
            progress("replies", done, len(questions))
    return given


def _split(rows: "list[Row]") -> "tuple[Questions, list[str]]":
    """Return the messages before each row's last, and the text of the last."""
    from macai.data.rows import Message
    from macai.errors import DataError

    questions: Questions = []
    expected: list[str] = []
    problems: list[str] = []
    for row in rows:
        if row.prompt is not None and row.completion is not None:
            questions.append((Message(role="user", content=row.prompt),))
            expected.append(row.completion)
        elif len(row.messages) > 1 and row.messages[-1].role == "assistant":
            questions.append(row.messages[:-1])
            expected.append(row.messages[-1].content)
        else:
            problems.append(row.source)
    if problems:
        raise DataError(
            "\n  ".join([f"rows without a reply to compare with: {len(problems)}", *problems]),
            hint="the last message of a row must be the assistant's",
        )
    return questions, expected


def _write_replies(
    file: Path, rows: "list[Row]", expected: list[str], replies: "list[Reply]"
) -> None:
    from macai.files import atomic_file

    lines = [
        {"source": row.source, "expected": want, "reply": reply.text, "finish": reply.finish_reason}
        for row, want, reply in zip(rows, expected, replies, strict=True)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _print_table(result: "JsonCallScore") -> None:
    rates = {
        "exact match": result.exact_match,
        "intent": result.intent_accuracy,
        "valid JSON": result.valid_json,
    }
    for name, rate in rates.items():
        low, high = rate.interval
        print(
            f"{name:12} {rate.value:6.1%}  {low:6.1%} to {high:6.1%}  {rate.hits} of {rate.total}"
        )
    print(f"{'slot F1':12} {result.slot_f1:6.1%}")
