"""`macai quickstart`: the whole way on a real model, from a fresh machine, in minutes."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from macai.cli.quickstart_report import REPORT, Scored, make_report, report_text

if TYPE_CHECKING:
    from macai.data.rows import Row
    from macai.models.load import LoadedModel
    from macai.recipe import Recipe

MAX_TOKENS = 40  # of a reply; the longest expected one has 35
BASE_ROWS = 50
"""Rows the untuned model is scored on: it gets none right, and each takes as long as a good one."""
FUSED_ROWS = 20
"""Rows whose replies of the fused model are compared with the tuned one's: scoring all takes long,
and one wrongly fused layer changes them all."""
PACKAGE_ANSWERS = 3
CONTEXT, PREFILL, POSITIONS = 512, 32, 24


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

    It fetches the model (93 MB, once), scores it on 50 held-out requests, tunes it, scores it on
    200, fuses the adapter, makes a Core ML package of it, compares that with the model, and lets it
    answer. Stopped half-way, it goes on from the last checkpoint the next time. An earlier
    quickstart in --out is replaced.

    Example: macai quickstart --out quickstart
    """
    from macai.catalog import find_recipe, locate_model
    from macai.cli.progress import reporting
    from macai.cli.train import run_recipe
    from macai.files import atomic_directory, write_json
    from macai.models.adapter import load_adapter
    from macai.models.fuse import fuse, write_model
    from macai.models.load import load_model
    from macai.recipe import load_recipe

    began = time.perf_counter()
    resume = _prepare(out, force=force)
    recipe = load_recipe(find_recipe("intents"))
    learnt, held = _rows(recipe)

    _say("1/6  the model as it is")
    with reporting() as progress:
        folder = locate_model(recipe.model, progress=progress)
    base = _score(load_model(folder), held[:BASE_ROWS])

    _say("2/6  tuning it")
    adapter = out / "adapter"
    summary = run_recipe(recipe, data=None, out=adapter, resume=resume, force=True)

    _say("3/6  the tuned model")
    loaded = load_model(folder)
    load_adapter(loaded, adapter)
    tuned = _score(loaded, held)

    _say("4/6  fusing the adapter")
    with atomic_directory(out / "model", force=True) as temporary, reporting() as progress:
        fuse(loaded)
        write_model(loaded, temporary, dtype="float16", progress=progress)
    del loaded

    _say("5/6  the fused model, opened anew")
    reopened = load_model(out / "model")
    fused = _score(reopened, held[:FUSED_ROWS])

    _say("6/6  a Core ML package of it")
    package = _export(out, recipe.model, reopened, held)

    report = make_report(summary, learnt, held, base, tuned, fused, package)
    report["total_seconds"] = round(time.perf_counter() - began, 1)
    write_json(out / REPORT, report)
    print(json.dumps(report, ensure_ascii=False) if as_json else report_text(report, out))


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


def _rows(recipe: "Recipe") -> "tuple[list[Row], list[Row]]":
    """Return the rows to learn from and those to score."""
    from macai.data.rows import read_splits

    assert recipe.data.path is not None
    splits = read_splits(recipe.data.path)
    return list(splits.train), list(splits.test)


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


def _export(out: Path, name: str, reopened: "LoadedModel", rows: "list[Row]") -> dict[str, Any]:
    """Write the fused model as a bundle, compare it with the model, and ask it a few requests."""
    from macai.cli.progress import reporting
    from macai.cli.run import reply
    from macai.coreml.export_llm import Export, export_llm
    from macai.coreml.session import ReferenceRunner, Session, open_bundle
    from macai.files import atomic_directory
    from macai.generate.prompt import chat_prompt

    export = Export(
        path=out / "model",
        name=name,
        source={"model": name, "adapter": "quickstart"},
        context=CONTEXT,
        prefill=[PREFILL],
        positions=POSITIONS,
        tokens=4,
    )
    with atomic_directory(out / "package", force=True) as folder, reporting() as progress:
        manifest, reports = export_llm(export, folder, progress)
        package = open_bundle(folder)[1]
        session = Session(manifest, ReferenceRunner(package))
        answers = []
        for done, row in enumerate(rows[:PACKAGE_ANSWERS]):
            progress("asking the package", done, PACKAGE_ANSWERS)
            prompt = chat_prompt(reopened, row.messages[:-1])
            tokens = reply(session, reopened, prompt, max_tokens=MAX_TOKENS)
            answers.append("".join(token.text for token in tokens))
    return {"bytes": manifest.bytes, "verify": reports["model"], "answers": answers}


def _say(text: str) -> None:
    print(text, file=sys.stderr)
