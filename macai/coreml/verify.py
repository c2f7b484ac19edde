"""A package against the model it was made from: numbers, and whether they are good enough."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from macai.coreml.chain import Chain
from macai.coreml.manifest import Manifest
from macai.coreml.session import NotFiniteError, ReferenceRunner, Runner, Session, States
from macai.mil import Package
from macai.models.load import LoadedModel

TIE = 0.05
"""Nats between two tokens; where the model itself is no surer than this, either is right."""

LIMITS = {"cosine": 0.9999, "kl": 1e-3, "top1": 0.995}
"""The least cosine, the greatest mean KL divergence in nats, the least share of equal top tokens.

Tokens that differ where the model itself is not sure (see TIE) count as equal.
"""
INCREASE = 0.25
"""The most the perplexity of a text may rise where weights were compressed, as a share."""
FP16_POSITIONS = 8
PREFILL_CUTS = 4
Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Agreement:
    """How near the package's logits are to the model's, position by position."""

    positions: int = 0
    max_error: float = 0.0
    cosine: float = 1.0
    kl: float = 0.0
    top1: int = 0
    ties: int = 0
    top5: float = 0.0
    nll: list[tuple[float, float]] = field(default_factory=list)

    def add(self, own: np.ndarray, model: np.ndarray, following: int | None = None) -> None:
        """Count one position: the package's and the model's logits, float32 [V] each."""
        self.positions += 1
        self.max_error = max(self.max_error, float(np.abs(own - model).max() / np.abs(model).max()))
        norms = float(np.linalg.norm(own) * np.linalg.norm(model))
        self.cosine = min(self.cosine, float(own @ model) / norms if norms else 0.0)
        p, q = _log_softmax(model), _log_softmax(own)
        self.kl += float((np.exp(p) * (p - q)).sum())
        best, ours = int(model.argmax()), int(own.argmax())
        self.top1 += best == ours
        self.ties += best != ours and bool(p[best] - p[ours] <= TIE)
        five = set(np.argpartition(-model, 5)[:5].tolist())
        self.top5 += len(five & set(np.argpartition(-own, 5)[:5].tolist())) / 5
        if following is not None:
            self.nll.append((-float(p[following]), -float(q[following])))

    def to_json(self) -> dict[str, Any]:
        """Return means over the positions; max_error and cosine are the worst one's."""
        n = max(self.positions, 1)
        return {
            "positions": self.positions,
            "max_relative_error": self.max_error,
            "cosine": self.cosine,
            "kl": self.kl / n,
            "top1": self.top1 / n,
            "near_ties": self.ties,
            "top5": self.top5 / n,
        }

    def problems(self, where: str) -> list[str]:
        """Return which limits it is beyond."""
        n = max(self.positions, 1)
        found = []
        if not self.cosine >= LIMITS["cosine"]:
            found.append(f"{where}: cosine {self.cosine:.6f}, at least {LIMITS['cosine']}")
        if not self.kl / n <= LIMITS["kl"]:
            found.append(f"{where}: mean KL {self.kl / n:.2e}, at most {LIMITS['kl']:.0e}")
        if not (self.top1 + self.ties) / n >= LIMITS["top1"]:
            found.append(f"{where}: {self.top1} of {n} top tokens equal")
        return found


def verify_package(
    loaded: LoadedModel,
    manifest: Manifest,
    package: Package | Chain,
    ids: Sequence[int],
    *,
    tokens: int = 16,
    adapter: str | None = None,
    runner: Runner | None = None,
    held: States | None = None,
    exact: bool = True,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Compare a package with the model, in MLX in float32, on a text.

    The decode function is fed the text token by token after a first chunk; each prefill function is
    compared where its chunk ends, at several lengths; then both continue the text greedily. The
    last positions are computed once more with every value rounded to float16, to find what
    overflows.

    Args:
        loaded: The model; on the CPU backend it computes in float32.
        manifest: The bundle's.
        package: Its package.
        ids: The text.
        tokens: How many to generate.
        runner: What runs the package; macai's own runtime without. Rounding to float16 is looked
            at with that one always.
        held: An adapter in the package's slot, which `loaded` has too: see slot.Slot.fill. It is
            for macai's runtime; a `runner` has its own.
        exact: Whether the package has the model's own weights. Where they were compressed, only
            the perplexity is limited.
        adapter: Whose functions are compared; `loaded` has it. The plain model's without.
        progress: Called with what is being compared, and how much of it is done.
    """
    session = Session(manifest, runner or ReferenceRunner(package, held=held), adapter)
    ids = list(ids)[: session.room - tokens]
    model = _logits(loaded, ids)
    found = {name: _prefill(session, name, ids, model, progress) for name in manifest.prefills}
    found["decode"] = _decode(session, ids, model, progress)
    transcript = _transcript(loaded, session, ids, tokens, progress)
    rounding = ReferenceRunner(package, "fp16", held)
    half = _rounded(Session(manifest, rounding, adapter), ids, model, progress)
    perplexity = _perplexity(found["decode"].nll)
    if exact:
        problems = [p for name, agreement in found.items() for p in agreement.problems(name)]
        if transcript["different"]:
            problems.append(f"transcript: {transcript['different']} tokens differ, no ties")
    else:
        problems = _increase(perplexity["delta"])
    if rounding.overflows and manifest.precision == "fp16":
        problems.append(f"{rounding.overflows} operations overflow float16")
    return {
        "passed": not problems,
        "problems": problems,
        "runtime": "reference" if runner is None else type(runner).__name__,
        "exact": exact,
        "functions": {name: agreement.to_json() for name, agreement in found.items()},
        "perplexity": perplexity,
        "transcript": transcript,
        "float16": (half.to_json() if half else {}) | {"overflows": rounding.overflows},
        "limits": LIMITS | {"near_tie_nats": TIE, "perplexity_increase": INCREASE},
    }


def _perplexity(nll: list[tuple[float, float]]) -> dict[str, float]:
    before, after = np.mean(nll, axis=0) if nll else (0.0, 0.0)
    return {
        "model": float(np.exp(before)),
        "package": float(np.exp(after)),
        "delta": float(np.exp(after - before) - 1),
    }


def _increase(delta: float) -> list[str]:
    if delta <= INCREASE:
        return []
    return [f"the perplexity is {delta:.1%} above the model's, at most {INCREASE:.0%}"]


def sample_text() -> str:
    """Return the text a package is compared on where none is given: stories, code, letters."""
    return Path(__file__).with_name("verify_text.txt").read_text(encoding="utf-8")


def _decode(session: Session, ids: list[int], model: np.ndarray, progress: Progress) -> Agreement:
    """Feed the text token by token after a first chunk; the session then holds all of it."""
    session.reset()
    first = min(max(len(ids) // 4, 1), 16)
    agreement = Agreement()
    session.feed(ids[:first])
    for place in range(first, len(ids)):
        own = session.feed(ids[place : place + 1])
        following = ids[place + 1] if place + 1 < len(ids) else None
        agreement.add(own, model[place], following)
        progress("comparing decode with the model", place + 1 - first, len(ids) - first)
    return agreement


def _prefill(
    session: Session, name: str, ids: list[int], model: np.ndarray, progress: Progress
) -> Agreement:
    """Compare where chunks of several lengths end, the full one and ones that are padded."""
    rows = min(session.manifest.functions[name].tokens, len(ids))
    agreement = Agreement()
    cuts = sorted({max(rows * n // PREFILL_CUTS, 1) for n in range(1, PREFILL_CUTS + 1)})
    for done, cut in enumerate(cuts, 1):
        session.reset()
        agreement.add(session.run(name, ids[:cut]), model[cut - 1])
        progress(f"comparing {name} with the model", done, len(cuts))
    return agreement


def _transcript(
    loaded: LoadedModel, session: Session, ids: list[int], tokens: int, progress: Progress
) -> dict[str, Any]:
    """Let the model continue greedily; count where the package would have said something else."""
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(loaded.model)
    logits = loaded.model(mx.array(ids)[None], cache=cache)[0, -1]
    own = session.last
    spoken: list[int] = []
    ties = different = 0
    for done in range(1, tokens + 1):
        model = np.array(logits.astype(mx.float32))
        best, ours = int(model.argmax()), int(own.argmax())
        if best != ours:
            near = float(_log_softmax(model)[best] - _log_softmax(model)[ours]) <= TIE
            ties, different = ties + near, different + (not near)
        spoken.append(best)
        logits = loaded.model(mx.array([[best]]), cache=cache)[0, -1]
        own = session.feed([best])
        progress("continuing the text", done, tokens)
    return {
        "tokens": tokens,
        "near_ties": ties,
        "different": different,
        "text": loaded.tokenizer.decode(spoken),
    }


def _rounded(
    session: Session, ids: list[int], model: np.ndarray, progress: Progress
) -> Agreement | None:
    """The last positions once more, with all values rounded to float16 after each operation.

    None if nothing comes of that but infinities.
    """
    agreement = Agreement()
    first = max(len(ids) - FP16_POSITIONS, 1)
    try:
        agreement.add(session.feed(ids[:first]), model[first - 1])
        for place in range(first, len(ids)):
            agreement.add(session.feed(ids[place : place + 1]), model[place])
            progress("looking for float16 overflow", place + 1 - first, len(ids) - first)
    except NotFiniteError:
        return None
    return agreement


def _logits(loaded: LoadedModel, ids: list[int]) -> np.ndarray:
    """The model's logits at every position, float32 [N, V]."""
    return np.array(loaded.model(mx.array(ids)[None])[0].astype(mx.float32))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return result
