"""Which layers go into which package."""

import mlx.nn as nn
import pytest

from macai.coreml.chunks import plan_chunks
from macai.errors import UsageError


class Model(nn.Module):
    """Layers of so many weights, an embedding of 10 and, if it is not tied, a head of 10."""

    def __init__(self, *sizes, tied=True):
        super().__init__()
        self.embed = nn.Embedding(5, 2)
        self.layers = [nn.Linear(size, 1, bias=False) for size in sizes]
        if not tied:
            self.head = nn.Linear(2, 5, bias=False)


def plan(*sizes, tied=True, **options):
    """A weight is a byte, but for the embedding's, which are what they are: float32."""
    chunks = plan_chunks(Model(*sizes, tied=tied), stored_bytes=lambda _, a: a.size, **options)
    assert [layer for chunk in chunks for layer in chunk] == list(range(len(sizes)))
    return [len(chunk) for chunk in chunks]


def test_all_layers_are_together_where_nothing_is_said():
    assert plan(100, 100, 100) == [3]


def test_as_few_chunks_as_fit_are_as_equal_as_can_be():
    assert plan(*[100] * 8, most_bytes=10_000) == [8]
    assert plan(*[100] * 8, most_bytes=500) == [4, 4]
    assert plan(*[100] * 9, most_bytes=500) == [3, 3, 3]


def test_the_embedding_counts_for_the_first_and_the_head_for_the_last():
    for tied in (True, False):
        assert plan(10, 10, 10, 10, tied=tied, most_bytes=50) == [1, 3]
        assert plan(50, 10, 30, 50, tied=tied, most_bytes=90) == [1, 2, 1]


def test_a_layer_that_is_too_large_is_alone():
    assert plan(10, 500, 10, most_bytes=100) == [1, 1, 1]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_there_are_as_many_chunks_as_asked_for(count):
    assert len(plan(10, 10, 500, 10, 10, count=count)) == count


@pytest.mark.parametrize("count", [0, 4])
def test_more_chunks_than_layers_are_refused(count):
    with pytest.raises(UsageError, match="chunks of a model with 3 layers"):
        plan(1, 1, 1, count=count)


def test_a_weight_is_as_large_as_it_is_stored():
    model = Model(100, 100, 100)
    halves = plan_chunks(model, stored_bytes=lambda _, array: array.size, count=2)
    assert halves == [range(1), range(1, 3)]
    halves = plan_chunks(
        model, stored_bytes=lambda path, _: 1 if "layers.0" in path else 300, count=2
    )
    assert halves == [range(2), range(2, 3)]
