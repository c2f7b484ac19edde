"""Runs whose memory runs out: the same steps again, in smaller parts."""

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from macai import finetune as finetune_module
from macai.errors import TrainingError
from macai.recipe import Adapter, Batch, Optimizer, Recipe, Schedule, Train
from macai.train.checkpoint import load_checkpoint
from macai.train.events import Lowered, Started, Stopped, Summary
from macai.train.exhausted import exhausted
from macai.train.loop import Report
from macai.train.team import Team
from tests.finetune.runs import assert_same_but_for_rounding, bits, metrics, of_type

NO_MEMORY = "[metal::malloc] Unable to allocate 123456789 bytes."


def recipe(*, tokens=256, micro_tokens=0, save_every=0, method="lora", workers=1):
    lora = Adapter(rank=4, targets=("q_proj", "down_proj"))
    return Recipe(
        model="tiny",
        adapter=lora if method == "lora" else Adapter(method=method),
        optimizer=Optimizer(learning_rate=1e-3),
        schedule=Schedule(warmup_steps=2),
        batch=Batch(tokens=tokens, micro_tokens=micro_tokens),
        train=Train(epochs=1, eval_every=3, save_every=save_every, workers=workers),
    )


@pytest.fixture
def memory(monkeypatch):
    """Return a function that lets a part have so many tokens, from some step on."""

    def limit(tokens, *, after=0, error=None):
        calls = [0]

        class Small(Team):
            def __call__(self, parts, seed):
                calls[0] += 1
                if calls[0] > after and any(part.padded_tokens > tokens for part in parts):
                    # As a GPU may leave it: nothing that is in memory can be relied on.
                    trained = self._model.trainable_parameters()
                    self._model.update(tree_map(lambda a: a * mx.nan, trained))
                    raise error or RuntimeError(NO_MEMORY)
                return super().__call__(parts, seed)

        monkeypatch.setattr(finetune_module, "Team", Small)

    return limit


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The folder and the events of a run that had all the memory it wanted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, run(recipe(), out)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_without_a_checkpoint_it_begins_anew_as_if_the_parts_had_been_that_small(
    run, memory, tmp_path, method
):
    run(recipe(micro_tokens=128, method=method), tmp_path / "small")
    memory(128)
    events = run(recipe(method=method), tmp_path / "run")
    (lowered,) = of_type(events, Lowered)
    assert lowered == Lowered(step=1, why="memory ran out", micro_tokens=128, first_step=0)
    ours, theirs = tmp_path / "run", tmp_path / "small"
    assert bits(load_checkpoint(ours).arrays) == bits(load_checkpoint(theirs).arrays)
    assert metrics(ours) == metrics(theirs)


def test_the_steps_are_the_same_and_so_is_the_result_but_for_rounding(run, memory, tmp_path):
    whole = run(recipe(tokens=512), tmp_path / "whole")
    memory(128)
    events = run(recipe(tokens=512), tmp_path / "run")
    assert [e.micro_tokens for e in of_type(events, Lowered)] == [256, 128]
    for ours, theirs in zip(of_type(events, Report), of_type(whole, Report), strict=True):
        assert (ours.step, ours.learnt_tokens) == (theirs.step, theirs.learnt_tokens)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert_same_but_for_rounding(tmp_path / "run", tmp_path / "whole")


def test_it_goes_on_from_the_last_checkpoint(run, memory, whole, tmp_path):
    memory(128, after=5)
    events = run(recipe(save_every=2), tmp_path / "run")
    (lowered,) = of_type(events, Lowered)
    assert (lowered.step, lowered.first_step) == (6, 4)
    steps = [event.step for event in of_type(events, Report)]
    assert steps == [1, 2, 3, 4, 5, *range(5, len(of_type(whole[1], Report)) + 1)]
    assert_same_but_for_rounding(tmp_path / "run", whole[0])
    logged = (tmp_path / "run" / "metrics.jsonl").read_text().count('"grad_norm"')
    assert logged == len(of_type(whole[1], Report))


def test_a_resumed_run_does_not_try_again_what_did_not_fit(run, memory, whole, tmp_path):
    memory(128)
    assert run(recipe(), tmp_path / "run", stop_at=2)[-1] == Stopped(step=2)
    events = run(recipe(), tmp_path / "run", resume=True)
    assert not of_type(events, Lowered)
    assert of_type(events, Started)[0].first_step == 2
    assert isinstance(events[-1], Summary)
    assert_same_but_for_rounding(tmp_path / "run", whole[0])


def test_a_run_may_go_on_with_other_parts_of_its_steps(run, whole, tmp_path):
    run(recipe(), tmp_path / "run", stop_at=2)
    assert isinstance(run(recipe(micro_tokens=64), tmp_path / "run", resume=True)[-1], Summary)
    assert_same_but_for_rounding(tmp_path / "run", whole[0])


def test_where_each_row_is_by_itself_already_it_gives_up_and_says_so(run, memory, tmp_path):
    memory(0)
    with pytest.raises(TrainingError, match="each row is computed by itself already") as caught:
        run(recipe(), tmp_path / "run")
    assert "batch.recompute=true" in caught.value.hint


def test_a_worker_without_memory_counts_too(run, memory, tmp_path):
    memory(128, error=TrainingError("a worker process failed: std::bad_alloc"))
    assert of_type(run(recipe(tokens=512, workers=2), tmp_path / "run"), Lowered)


def test_any_other_error_ends_the_run(run, memory, tmp_path):
    memory(0, error=RuntimeError("[matmul] Last dimension of first input ..."))
    with pytest.raises(RuntimeError, match="Last dimension"):
        run(recipe(), tmp_path / "run")


MESSAGES = {
    NO_MEMORY: "memory ran out",
    "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed "
    "buffer size of 8 bytes.": "memory ran out",
    "[malloc] Unable to allocate 9 bytes.": "memory ran out",
    "cudaMallocAsync(&data, size, stream) failed: out of memory": "memory ran out",
    "std::bad_alloc": "memory ran out",
    "[METAL] Command buffer execution failed: Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)": "memory ran out",
    "[METAL] Command buffer execution failed: Caused GPU Timeout Error "
    "(00000002:kIOGPUCommandBufferCallbackErrorTimeout)": "the GPU took longer",
    "[METAL] Command buffer execution failed: Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)": "the GPU took longer",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_what_mlx_says_when_something_ran_out_is_known(message):
    assert exhausted(RuntimeError(message)).startswith(MESSAGES[message])
    assert exhausted(RuntimeError("[broadcast_shapes] Shapes cannot be broadcast.")) is None
