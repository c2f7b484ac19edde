import mlx.core as mx
import pytest

from macai.diffusion.models import attention


@pytest.mark.parametrize("budget", [1, 2 * 3 * 5 * 4, 2 * 3 * 5 * 7])
def test_attention_piece_by_piece_is_attention(budget, monkeypatch):
    shapes = ((2, 3, 7, 4), (2, 3, 5, 4), (2, 3, 5, 4))
    q, k, v = (mx.random.normal(shape, key=mx.random.key(i)) for i, shape in enumerate(shapes))
    whole = attention.attend(q, k, v, scale=0.5)
    wanted = mx.softmax(0.5 * q @ k.swapaxes(-1, -2), axis=-1) @ v
    monkeypatch.setattr(attention, "SCORES", budget)
    pieces = attention.attend(q, k, v, scale=0.5)
    assert pieces.shape == (2, 3, 7, 4)
    assert mx.allclose(pieces, wanted, atol=1e-6)
    assert mx.allclose(pieces, whole, atol=1e-6)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Scores are MLX's own affair."""
    monkeypatch.setattr(attention, "_by_hand", lambda q: False)


def drawn(*shapes):
    return [mx.random.normal(shape, key=mx.random.key(i)) for i, shape in enumerate(shapes)]


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="the CPU's way")
def test_on_a_cpu_few_scores_at_a_time_are_attention_in_less_memory(monkeypatch):
    q, k, v = drawn((2, 3, 700, 8), (2, 3, 500, 8), (2, 3, 500, 8))
    mx.eval(q, k, v)
    wanted = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3)
    monkeypatch.setattr(attention, "CACHED_SCORES", 500 * 64)
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    made = attention.attend(q, k, v, scale=0.3)
    mx.eval(made)
    assert mx.get_peak_memory() - held < 4 * 2 * 3 * 700 * 500 / 2
    assert made.shape == wanted.shape
    assert mx.allclose(made, wanted, atol=2e-6)


def test_who_traces_attention_sees_it_whole(monkeypatch):
    q, k, v = drawn((1, 2, 9, 4), (1, 2, 9, 4), (1, 2, 9, 4))
    seen = []

    def watched(*args, **kwargs):
        seen.append(args)
        return args[2]

    monkeypatch.setattr(attention, "CACHED_SCORES", 1)
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", watched)
    attention.attend(q, k, v, scale=0.3)
    assert len(seen) == 1


@pytest.mark.usefixtures("as_on_a_gpu")
def test_attention_piece_by_piece_takes_less_memory(monkeypatch):
    q = mx.zeros((1, 1, 1 << 11, 4))
    mx.eval(q)
    peaks = []
    for budget in (1 << 22, 1 << 18):
        monkeypatch.setattr(attention, "SCORES", budget)
        mx.reset_peak_memory()
        held = mx.get_active_memory()
        mx.eval(attention.attend(q, q, q, scale=1.0))
        peaks.append(mx.get_peak_memory() - held)
    assert peaks[1] < peaks[0] / 4


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_layer_that_spares_memory_gives_the_same_from_less(monkeypatch):
    monkeypatch.setattr(attention, "FEW_SCORES", 1 << 18)
    layer = attention.Attention(8, heads=2, dim_head=4)
    x = mx.random.normal((1, 1 << 11, 8), key=mx.random.key(0))
    mx.eval(x, layer.parameters())
    results, peaks = [], []
    for _ in range(2):
        mx.reset_peak_memory()
        held = mx.get_active_memory()
        results.append(layer(x))
        mx.eval(results[-1])
        peaks.append(mx.get_peak_memory() - held)
        layer.spare_memory()
    assert mx.allclose(*results, atol=1e-6)
    assert peaks[1] < peaks[0] / 4
