import pytest

from macai.finetune import finetune
from macai.models.load import load_model
from macai.train.loop import Report
from tests.finetune.runs import outcome, small, write_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "train.jsonl", range(20))
    write_rows(folder / "valid.jsonl", range(20, 25))
    return folder


@pytest.fixture(scope="module")
def run(tiny_dir, data):
    def run(recipe, out, *, stop_at=None, base=tiny_dir, data=data, each=None, **options):
        """Run to the end, or until `stop_at` steps are done, and return the events."""
        loaded, events, done = load_model(base), [], [0]
        run = finetune(
            recipe,
            loaded,
            data=data,
            out=out,
            should_stop=lambda: done[0] == stop_at,
            **options,
        )
        for event in run:
            if isinstance(event, Report):
                done[0] = event.step
            events.append(event)
            if each:
                each(event, loaded)
        return events

    return run


@pytest.fixture(scope="module")
def uninterrupted(tiny_dir, data, tmp_path_factory):
    """The outcome of a run of `small()` that nothing stopped, and its events."""
    out = tmp_path_factory.mktemp("whole") / "run"
    events = list(finetune(small(), load_model(tiny_dir), data=data, out=out))
    return outcome(out), events


@pytest.fixture(scope="module")
def stopped(tiny_dir, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "run"
    list(finetune(small(), load_model(tiny_dir), data=data, out=out, should_stop=lambda: True))
    return out
