"""What a quickstart measured, as JSON and as a person reads it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from macai.bench.json_calls import JsonCallScore
    from macai.data.rows import Row
    from macai.train.events import Summary

REPORT = "report.json"
ANSWERS = 10


@dataclass(frozen=True, slots=True)
class Scored:
    """The replies of one model to the held-out rows, and their score."""

    replies: list[str]
    score: "JsonCallScore"


def make_report(
    summary: "Summary",
    train: "list[Row]",
    test: "list[Row]",
    base: Scored,
    tuned: Scored,
    fused: Scored,
    package: dict[str, Any],
) -> dict[str, Any]:
    """Return what report.json holds.

    `fused` covers the first rows only: its replies are compared with the tuned model's.
    """
    from macai.catalog import MODELS
    from macai.page.machine import machine, versions

    model = MODELS["smollm2-135m"]
    facts = asdict(summary)
    del facts["adapter"], facts["model"]  # whose names say other things here
    return {
        "model": model.name,
        "sha256": model.source.member_sha256,
        "rows": {"train": len(train), "test": len(test)},
        **facts,
        "base": base.score.to_json(),
        "tuned": tuned.score.to_json(),
        "fused": {
            "rows": len(fused.replies),
            "same_replies": sum(map(str.__eq__, fused.replies, tuned.replies)),
        },
        "package": package,
        "answers": [
            {
                "request": row.messages[-2].content,
                "expected": row.messages[-1].content,
                "base": before,
                "tuned": after,
            }
            for row, before, after in zip(test, base.replies, tuned.replies, strict=False)
        ][:ANSWERS],
        "versions": versions(),
        "machine": machine(),
    }


def report_text(report: dict[str, Any], out: Path) -> str:
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
    for name in ("base", "tuned"):
        rate = report[name]["exact_match"]
        lines.append(
            f"  {name:5}  {rate['hits']:3} of {rate['total']}  {rate['value']:6.1%}  "
            f"(95 %: {rate['low']:.1%} to {rate['high']:.1%})"
        )
    fused, package = report["fused"], report["package"]
    lines += [
        "",
        f"fused and opened anew: {fused['same_replies']} of {fused['rows']} replies are the same",
        f"Core ML package: {out / 'package'}, {package['bytes'] / 1e6:.0f} MB; by the reference "
        f"runtime {_agreement(package['verify'])}; it says:",
        *(f"  {answer}" for answer in package["answers"]),
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
        "  macai export llm --model smollm2-135m --adapter runs/mine --out MyModel",
    ]
    return "\n".join(lines)


def _agreement(verify: dict[str, Any]) -> str:
    decode = verify["functions"]["decode"]
    return f"top-1 {decode['top1']:.1%}, KL {decode['kl']:.0e} of the model"
