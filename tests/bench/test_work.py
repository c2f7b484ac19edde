import mlx.core as mx
import mlx.nn as nn
import pytest

from macai.bench import work as module
from macai.bench.figure import Work
from macai.bench.work import work_of


@pytest.fixture(autouse=True)
def nothing_is_cached(monkeypatch):
    monkeypatch.setattr(module, "CACHED_BYTES", 0)


def test_a_linear_layer_is_two_operations_a_weight_and_row():
    layer = nn.Linear(64, 32)
    assert work_of(layer, [mx.zeros((8, 64))], layer) == Work(2 * 8 * 64 * 32, 4 * (64 * 32 + 32))


def test_a_convolution_is_two_operations_a_weight_and_pixel():
    layer = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    assert work_of(layer, [mx.zeros((1, 8, 8, 3))], layer).flops == 2 * 8 * 8 * 5 * 3 * 3 * 3


def test_attention_is_two_products():
    layer = nn.MultiHeadAttention(32, 4, bias=False)
    x = mx.zeros((1, 10, 32))
    work = work_of(lambda a: layer(a, a, a), [x], layer)
    assert work.flops == 4 * 2 * 10 * 32 * 32 + 2 * 2 * 10 * 10 * 32


def test_rows_that_are_picked_are_not_a_matrix_that_is_read():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(1000, 16)
            self.head = nn.Linear(16, 1000, bias=False)

        def __call__(self, ids):
            return self.head(self.words(ids))

    model = Model()
    assert work_of(model, [mx.zeros((1, 4), mx.int32)], model).bytes == 1000 * 16 * 4


def test_tied_words_are_read_once():
    words = nn.Embedding(1000, 16)
    work = work_of(lambda ids: words.as_linear(words(ids)), [mx.zeros((1, 4), mx.int32)], words)
    assert work.bytes == 1000 * 16 * 4


def test_weights_that_caches_may_hold_do_not_bound_by_memory(monkeypatch):
    monkeypatch.setattr(module, "CACHED_BYTES", 1 << 20)
    layer = nn.Linear(64, 32)
    assert work_of(layer, [mx.zeros((1, 64))], layer).bytes == 0


def test_the_roofline_is_the_lower_of_two_bounds():
    assert Work(flops=2e9, bytes=1e9).limit(1e12, 1e11) == (pytest.approx(100.0), "memory")
    assert Work(flops=1e12, bytes=1e9).limit(1e12, 1e11) == (pytest.approx(1.0), "compute")
