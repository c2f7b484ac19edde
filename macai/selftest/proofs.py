"""All proofs, made one after the other."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from macai.errors import MacaiError
from macai.selftest import gradients, models, runs
from macai.selftest.proof import Finding, Proof, Subject
from macai.selftest.tiny import tiny_model_dir

PROOFS: tuple[Proof, ...] = (*gradients.PROOFS, *runs.PROOFS, *models.PROOFS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a proof found on a model, under the names `macai selftest --json` prints."""

    name: str
    claim: str
    model: str
    held: bool | None
    measure: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the values by name."""
        return asdict(self)


def prove(
    model: Path | None = None,
    *,
    name: str = "",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Iterator[Result]:
    """Make every proof on a tiny model, then on `model` those that say something about it.

    Args:
        model: A Hugging Face model directory.
        name: What to call it.
        progress: Told before each proof and after the last: (what, proofs done, of how many).
    """
    with TemporaryDirectory(prefix="macai-selftest-") as scratch:
        tiny = tiny_model_dir(Path(scratch) / "tiny")
        wanted = [(proof, "tiny", tiny) for proof in PROOFS]
        if model is not None:
            wanted += [(proof, name, model) for proof in PROOFS if proof.any_model]
        for done, (proof, called, folder) in enumerate(wanted):
            progress("proving", done, len(wanted))
            work = Path(scratch) / str(done)
            work.mkdir()
            yield _result(proof, Subject(folder, work), called)
        progress("proving", len(wanted), len(wanted))


def _result(proof: Proof, subject: Subject, model: str) -> Result:
    began = time.perf_counter()
    try:
        finding = proof.find(subject)
    except MacaiError as e:  # the trainer refused: the claim does not hold, and the rest may
        finding = Finding(False, e.message)
    return Result(
        name=proof.name,
        claim=proof.claim,
        model=model,
        held=finding.held,
        measure=finding.measure,
        seconds=time.perf_counter() - began,
    )
