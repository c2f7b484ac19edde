"""`macai score`: how many replies of a model are exactly the JSON that was asked for."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from macai.cli.opening import AdapterOption, MaxTokensOption, ModelOption, open_model

if TYPE_CHECKING:
    from macai.bench.json_calls import JsonCallScore
    from macai.data.rows import Message, Row
    from macai.generate.batch import Reply


def score(
    model: ModelOption,
    data: Annotated[
        Path, typer.Option("--data", help="A .jsonl file; each row ends in the expected reply.")
    ],
    adapter: AdapterOption = None,
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
    from macai.cli.progress import reporting
    from macai.data.rows import read_rows
    from macai.errors import OutputError
    from macai.generate.batch import generate_batch
    from macai.generate.prompt import chat_prompt

    if replies is not None and replies.exists():
        raise OutputError(f"{replies} exists already", hint="choose another file for --replies")
    if replies is not None and not os.access(replies.absolute().parent, os.W_OK):
        raise OutputError(f"{replies}: its folder is missing or cannot be written to")
    rows = read_rows(data)[:limit]
    questions, expected = _split(rows)
    score_calls(expected, expected)  # refuses what no reply could equal before it takes minutes
    loaded = open_model(model, adapter)
    prompts = [chat_prompt(loaded, messages) for messages in questions]
    with reporting() as progress:
        given = generate_batch(
            loaded,
            prompts,
            max_tokens=max_tokens,
            progress=lambda done, total: progress("replies", done, total),
        )
    if replies is not None:
        _write_replies(replies, rows, expected, given)
    result = score_calls(expected, [reply.text for reply in given])
    if as_json:
        print(json.dumps(result.to_json(), ensure_ascii=False))
    else:
        _print_table(result)


def _split(rows: "list[Row]") -> "tuple[list[tuple[Message, ...]], list[str]]":
    """Return the messages before each row's last, and the text of the last."""
    from macai.data.rows import Message
    from macai.errors import DataError

    questions: list[tuple[Message, ...]] = []
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
