"""`macai quickstart`: the whole way on a real model, from a fresh machine, in minutes."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from macai.bench.json_calls import JsonCallScore
    from macai.data.rows import Row
    from macai.models.load import LoadedModel
    from macai.train.events import Summary

REPORT = "report.json"
ANSWERS = 10
MAX_TOKENS = 40  # of a reply; the longest expected one has 35


@dataclass(frozen=True, slots=True)
class Scored:
    """The replies of one model to the held-out rows, and their score."""

    replies: list[str]
    score: "JsonCallScore"


def quickstart(
    out: Annotated[
        Path, typer.Option(help="The folder for adapter, fused model and report.")
    ] = Path("quickstart"),
    force: Annotated[
        bool, typer.Option("--force", help="Begin anew in --out, whatever is in it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Tune SmolLM2-135M to turn spoken requests into JSON calls, and compare before with after.

    It fetches the model (93 MB, once), scores it on 200 held-out requests, tunes it, scores it
    again, fuses the adapter and scores the fused model. Stopped half-way, it goes on from the last
    checkpoint the next time. An earlier quickstart in --out is replaced.

    Example: macai quickstart --out quickstart
    """
    from macai.catalog import find_recipe, locate_model
    from macai.cli.progress import reporting
    from macai.cli.train import run_recipe
    from macai.data.rows import read_splits
    from macai.files import atomic_directory, write_json
    from macai.models.adapter import load_adapter
    from macai.models.fuse import fuse, write_model
    from macai.models.load import load_model
    from macai.recipe import load_recipe

    began = time.perf_counter()
    resume = _prepare(out, force=force)
    recipe = load_recipe(find_recipe("intents"))
    assert recipe.data.path is not None
    splits = read_splits(recipe.data.path)

    _say("1/5  the model as it is")
    with reporting() as progress:
        folder = locate_model(recipe.model, progress=progress)
    base = _score(load_model(folder), splits.test)

    _say("2/5  tuning it")
    adapter = out / "adapter"
    summary = run_recipe(recipe, data=None, out=adapter, resume=resume, force=True)

    _say("3/5  the tuned model")
    loaded = load_model(folder)
    load_adapter(loaded, adapter)
    tuned = _score(loaded, splits.test)

    _say("4/5  fusing the adapter")
    with atomic_directory(out / "model", force=True) as temporary, reporting() as progress:
        fuse(loaded)
        write_model(loaded, temporary, dtype="float16", progress=progress)
    del loaded

    _say("5/5  the fused model, opened anew")
    fused = _score(load_model(out / "model"), splits.test)

    report = _report(summary, splits.train, splits.test, base, tuned, fused)
    report["total_seconds"] = round(time.perf_counter() - began, 1)
    write_json(out / REPORT, report)
    print(json.dumps(report, ensure_ascii=False) if as_json else _text(report, out))


def _prepare(out: Path, *, force: bool) -> bool:
    """Make sure `out` may be written to; return whether a stopped run in it can go on."""
    from macai.files import refuse_existing
    from macai.train.checkpoint import FILE

    own = (out / "adapter" / "recipe.toml").is_file()
    if not own:
        refuse_existing(out, force=force)
    finished = (out / REPORT).is_file()
    if own and finished:
        (out / REPORT).unlink()  # a report must not stand beside another run's adapter
    return own and not finished and not force and (out / "adapter" / FILE).is_file()


def _score(loaded: "LoadedModel", rows: "list[Row]") -> Scored:
    """Let the model reply to every row, greedily, and score the replies."""
    from macai.bench.json_calls import score_calls
    from macai.cli.progress import reporting
    from macai.generate.batch import generate_batch
    from macai.generate.prompt import chat_prompt

    prompts = [chat_prompt(loaded, row.messages[:-1]) for row in rows]
    with reporting() as progress:
        replies = generate_batch(
            loaded,
            prompts,
            max_tokens=MAX_TOKENS,
            progress=lambda done, total: progress("scoring held-out requests", done, total),
        )
    texts = [reply.text for reply in replies]
    return Scored(texts, score_calls([row.messages[-1].content for row in rows], texts))


def _report(
    summary: "Summary",
    train: "list[Row]",
    test: "list[Row]",
    base: Scored,
    tuned: Scored,
    fused: Scored,
) -> dict[str, Any]:
    from dataclasses import asdict

    from macai.bench.machine import machine, versions
    from macai.catalog import MODELS

    model = MODELS["smollm2-135m"]
    facts = asdict(summary)
    del facts["adapter"]
    return {
        "model": model.name,
        "sha256": model.source.member_sha256,
        "rows": {"train": len(train), "test": len(test)},
        **facts,
        "base": base.score.to_json(),
        "tuned": tuned.score.to_json(),
        "fused": fused.score.to_json(),
        "answers": [
            {
                "request": row.messages[-2].content,
                "expected": row.messages[-1].content,
                "base": before,
                "tuned": after,
            }
            for row, before, after in zip(test, base.replies, tuned.replies, strict=True)
        ][:ANSWERS],
        "versions": versions(),
        "machine": machine(),
    }


def _text(report: dict[str, Any], out: Path) -> str:
    """Return the report as a person reads it."""
    lines = []
    for answer in report["answers"]:
        before = " ".join(answer["base"].split())
        lines += [
            answer["request"],
            f"  before  {before[:100]}{'...' if len(before) > 100 else ''}",
            f"  after   {answer['tuned']}",
        ]
        if answer["tuned"] != answer["expected"]:
            lines.append(f"  wanted  {answer['expected']}")
    lines += ["", "exact match on requests worded as in no training row:"]
    for name in ("base", "tuned", "fused"):
        rate = report[name]["exact_match"]
        lines.append(
            f"  {name:5}  {rate['hits']:3} of {rate['total']}  {rate['value']:6.1%}  "
            f"(95 %: {rate['low']:.1%} to {rate['high']:.1%})"
        )
    lines += [
        "",
        f"{report['steps']} steps, {report['real_tokens']} tokens, "
        f"{report['tokens_per_second']:.0f} tokens/s, "
        f"{report['peak_memory_bytes'] / 1e9:.1f} GB peak; {report['total_seconds']:.0f} s in all",
        f"report: {out / REPORT}",
        "",
        "go on with your own model and data:",
        "  macai recipes copy lora mine.toml",
        "  macai train mine.toml --model smollm2-135m --data examples.jsonl --out runs/mine",
        '  macai generate --model smollm2-135m --adapter runs/mine "a prompt"',
        "  macai chat --model smollm2-135m --adapter runs/mine",
        "  macai fuse --model smollm2-135m --adapter runs/mine --out fused",
    ]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
