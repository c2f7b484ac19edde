"""The part of a run's state that is no array; saved with every checkpoint."""

from dataclasses import dataclass

from macai.train.events import Summary
from macai.train.loop import Report


@dataclass(slots=True, kw_only=True)
class Progress:
    """Counters of a run, over all parts of a resumed one.

    `workers` are those of the last part; `stale` counts validations since the best one;
    `micro_tokens` is above 0 where the memory ran out with more.
    """

    step: int = 0
    workers: int = 1
    micro_tokens: int = 0
    epoch_loss: float = 0.0
    epoch_learnt: int = 0
    real_tokens: int = 0
    processed_tokens: int = 0
    step_seconds: float = 0.0
    valid_seconds: float = 0.0
    valid_loss: float | None = None
    best_valid_loss: float | None = None
    stale: int = 0
    peak_memory_bytes: int = 0

    def count(self, report: Report) -> None:
        """Add what a step did."""
        self.step = report.step
        self.epoch_loss += report.loss * report.learnt_tokens
        self.epoch_learnt += report.learnt_tokens
        self.real_tokens += report.real_tokens
        self.processed_tokens += report.processed_tokens
        self.step_seconds += report.seconds
        self.peak_memory_bytes = max(self.peak_memory_bytes, report.peak_memory_bytes)

    def summary(
        self, *, adapter: str | None, steps_per_epoch: int, model: str | None = None
    ) -> Summary:
        """Return the result, after the last step and its validation."""
        assert self.valid_loss is not None, "the last step is always validated"
        assert self.best_valid_loss is not None
        return Summary(
            adapter=adapter,
            model=model,
            steps=self.step,
            epochs=self.step / steps_per_epoch,
            train_loss=self.epoch_loss / self.epoch_learnt,
            valid_loss=self.valid_loss,
            best_valid_loss=self.best_valid_loss,
            real_tokens=self.real_tokens,
            processed_tokens=self.processed_tokens,
            tokens_per_second=self.real_tokens / self.step_seconds,
            workers=self.workers,
            peak_memory_bytes=self.peak_memory_bytes,
            seconds=self.step_seconds + self.valid_seconds,
        )
