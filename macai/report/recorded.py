"""The events of a run on their way to whoever asked for them, written down as they pass."""

import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

import macai
from macai.files import write_json
from macai.finetune_diffusion import events as of_pictures
from macai.page.machine import machine, versions
from macai.report.answers import Asked
from macai.report.folder import RECORD, REPORT, old_record, write_report
from macai.train import events as of_texts

Event = TypeVar("Event")

KIND = "macai-run"
VERSION = 1
_HERE = ("adapter", "model")  # of a summary: paths, which are nobody else's business
_STARTS = (of_texts.Started, of_pictures.Started)
_SUMMARIES = (of_texts.Summary, of_pictures.Summary)


def recorded(
    events: Iterable[Event], out: Path, *, ask: Callable[[], Sequence[Asked]] | None = None
) -> Iterator[Event]:
    """Yield the events of a run; leave `run.json` in its folder, and `report.html` at the end.

    The end is also that of a run that is stopped or fails; of one that is killed `macai report`
    makes the page.

    Args:
        events: Of `macai.finetune` or `macai.finetune_diffusion`.
        out: The run's folder.
        ask: Returns a few prompts with what the model replies as it then is; called before the
            first step and after the last.
    """
    record: dict[str, Any] | None = None
    try:
        for event in events:
            if isinstance(event, _STARTS):
                record = _begin(event, out, ask)
            elif record and isinstance(event, (*_SUMMARIES, of_texts.Stopped)):
                record["state"] = "stopped" if isinstance(event, of_texts.Stopped) else "finished"
                if isinstance(event, _SUMMARIES):
                    values = asdict(event).items()
                    record["summary"] = {k: v for k, v in values if k not in _HERE}
            yield event
        if record and record["state"] == "finished" and ask and record["answers"]:
            after = {a.prompt: a.reply for a in ask()}  # a resumed run may ask others
            record["answers"] = [
                {**answer, "after": after[answer["prompt"]]}
                if answer["prompt"] in after
                else answer
                for answer in record["answers"]
            ]
    finally:
        if record:
            write_json(out / RECORD, record)
            write_report(out)


def _begin(
    event: of_texts.Started | of_pictures.Started,
    out: Path,
    ask: Callable[[], Sequence[Asked]] | None,
) -> dict[str, Any]:
    """Return the record of a run that is set up, written to its folder."""
    record: dict[str, Any] = {
        "kind": KIND,
        "version": VERSION,
        "tool": f"macai {macai.__version__}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {**machine(), "backend": mx.default_device().type.name},
        "versions": versions(),
        "state": "begun",
        "started": asdict(event),
        "answers": [],
    }
    if event.first_step:
        record["answers"] = old_record(out).get("answers", [])
    else:
        (out / REPORT).unlink(missing_ok=True)
        if ask:
            record["answers"] = [
                {"prompt": a.prompt, "wanted": a.wanted, "before": a.reply} for a in ask()
            ]
            mx.reset_peak_memory()  # what is reported is what training takes
    write_json(out / RECORD, record)
    return record
