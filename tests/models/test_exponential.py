import mlx.core as mx
import numpy as np

from macai.models.exponential import as_is, attend, exp


def test_exp_is_as_exact_as_float32():
    x = np.linspace(-86, 87, 100_001).astype(np.float32)
    error = np.array(exp(mx.array(x))).astype(np.float64) / np.exp(x.astype(np.float64)) - 1
    assert np.abs(error).max() < 6e-6  # a rounding of x itself is as much at the ends
    assert np.abs(error[np.abs(x) < 10]).max() < 1e-6


def test_exp_of_what_is_far_out_is_that_of_the_ends_and_of_no_number_none():
    assert exp(mx.array([-200.0, -1e30, -mx.inf])).max().item() < 3e-38
    assert exp(mx.array([200.0, 1e30, mx.inf])).min().item() > 5e37
    assert mx.isnan(exp(mx.array([mx.nan, -mx.nan]))).all().item()


def test_what_is_hidden_has_no_weight_and_no_gradient():
    mx.random.seed(0)
    q, k, v = (mx.random.normal((2, n, 4)) for n in (3, 5, 5))
    seen = mx.array([[1, 1, 0, 0, 1]] * 3, mx.bool_)

    def hide(scores):
        return mx.where(seen, scores, mx.finfo(mx.float32).min)

    def total(k, v):
        return (attend(q, k, v, hide, as_is) * mx.arange(1, 5)).sum()

    least = mx.array([0, 1, 4])
    made = attend(q, k[:, least], v[:, least], as_is, as_is)
    assert mx.allclose(attend(q, k, v, hide, as_is), made, rtol=1e-6, atol=1e-7).item()
    for grad in mx.grad(total, argnums=(0, 1))(k, v):
        assert mx.abs(grad[:, mx.array([2, 3])]).max().item() < 1e-28
        assert mx.abs(grad[:, least]).min().item() > 0


def test_attention_in_float64_is_the_same():
    mx.random.seed(1)
    q, k, v = (mx.random.normal((2, n, 8)) * 3 for n in (40, 70, 70))
    scores = np.array(q, np.float64) @ np.array(k, np.float64).swapaxes(-1, -2)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    expected = weights / weights.sum(axis=-1, keepdims=True) @ np.array(v, np.float64)
    ours = np.array(attend(q, k, v, as_is, as_is))
    assert np.abs(ours - expected).max() < 2e-5 * np.abs(expected).max()
