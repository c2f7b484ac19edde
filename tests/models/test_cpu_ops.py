"""What stands in for mx.fast on the CPU: the same values, and the same gradients."""

import mlx.core as mx
import pytest

from macai.models import cpu_ops
from macai.models.cpu_ops import attention, rms_norm, rope

FAST = {n: getattr(mx.fast, n) for n in ("rms_norm", "rope", "scaled_dot_product_attention")}
ROPE = {"traditional": False, "base": 10000.0, "scale": 1.0, "offset": 0}


def weighted(function):
    """A scalar of the result in which every element counts differently."""

    def scalar(*arrays):
        result = function(*arrays)
        return (result * mx.sin(mx.arange(result.size).reshape(result.shape) * 0.7)).sum()

    return scalar


def assert_same(ours, theirs, *arrays, rtol=1e-4, atol=1e-5):
    a, b = ours(*arrays), theirs(*arrays)
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    assert mx.allclose(a, b, rtol=rtol, atol=atol).item()
    every = tuple(range(len(arrays)))
    grads = zip(
        mx.grad(weighted(ours), argnums=every)(*arrays),
        mx.grad(weighted(theirs), argnums=every)(*arrays),
        strict=True,
    )
    for mine, reference in grads:
        assert mx.allclose(mine, reference, rtol=1e-3, atol=1e-4).item()


@pytest.fixture(autouse=True)
def seeded():
    mx.random.seed(3)


@pytest.mark.parametrize("shape", [(7, 48), (2, 5, 48), (1, 3, 4, 16)])
@pytest.mark.parametrize("size", [0.01, 1.0, 300.0])
def test_rms_norm_is_mlx_s(shape, size):
    x, weight = mx.random.normal(shape) * size, mx.random.normal(shape[-1:])
    assert_same(
        lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: FAST["rms_norm"](x, w, 1e-5), x, weight
    )


@pytest.mark.parametrize("change", [{}, {"offset": 9}, {"base": 500.0}, {"scale": 0.25}])
def test_rope_is_mlx_s(change):
    options = ROPE | change
    x = mx.random.normal((2, 3, 11, 16))
    assert_same(lambda x: rope(x, 16, **options), lambda x: FAST["rope"](x, 16, **options), x)


@pytest.mark.parametrize(
    ("dims", "change"),
    [
        (8, {}),
        (16, {"traditional": True}),
        (16, {"base": None, "freqs": mx.arange(1.0, 9.0)}),
        (16, {"offset": mx.array([4])}),
    ],
)
def test_what_rope_does_not_know_is_left_to_mlx(dims, change):
    options, x = ROPE | change, mx.random.normal((1, 2, 5, 16))
    assert mx.array_equal(rope(x, dims, **options), FAST["rope"](x, dims, **options)).item()


@pytest.fixture(autouse=True)
def however_small(monkeypatch):
    monkeypatch.setattr(cpu_ops, "LEAST", 1)


def masks(rows, length, keys):
    padding = mx.arange(keys)[None] >= mx.array([0, 2])[:rows, None]
    causal = mx.arange(keys - length, keys)[:, None] >= mx.arange(keys)
    return {
        "none": None,
        "causal": "causal",
        "bool": causal,
        "padded": (causal & padding[:, None])[:, None],
        "additive": mx.where(causal, 0.0, -1e9),
    }


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "padded", "additive"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize(("length", "keys"), [(5, 5), (3, 9), (1, 7)])
def test_attention_is_mlx_s(kind, heads, kv_heads, length, keys):
    q, k, v = (
        mx.random.normal((2, n, t, 8))
        for n, t in ((heads, length), (kv_heads, keys), (kv_heads, keys))
    )
    mask = masks(2, length, keys)[kind]
    assert_same(
        lambda q, k, v: attention(q, k, v, scale=0.3, mask=mask),
        lambda q, k, v: FAST["scaled_dot_product_attention"](q, k, v, scale=0.3, mask=mask),
        q,
        k,
        v,
    )


def test_a_row_that_sees_nothing_gives_numbers():
    q, k = mx.random.normal((1, 4, 2, 8)), mx.random.normal((1, 2, 3, 8))
    out = attention(q, k, k, scale=1.0, mask=mx.zeros((2, 3), mx.bool_))
    assert mx.isfinite(out).all().item()


def test_masks_of_single_heads_and_sinks_are_left_to_mlx(monkeypatch):
    calls = []

    def theirs(*arrays, **options):
        calls.append(options)
        return FAST["scaled_dot_product_attention"](*arrays, **options)

    monkeypatch.setattr(cpu_ops, "_fast_attention", theirs)
    q, k = mx.random.normal((1, 4, 2, 8)), mx.random.normal((1, 2, 3, 8))
    attention(q, k, k, scale=1.0, mask=mx.ones((1, 4, 2, 3), mx.bool_))
    attention(q, k, k, scale=1.0, sinks=mx.zeros((4,)))
    assert len(calls) == 2


def test_few_numbers_are_left_to_mlx(monkeypatch):
    monkeypatch.setattr(cpu_ops, "LEAST", 50)
    q, k = mx.random.normal((1, 4, 3, 8)), mx.random.normal((1, 4, 4, 8))
    theirs = FAST["scaled_dot_product_attention"](q, k, k, scale=1.0)
    assert mx.array_equal(attention(q, k, k, scale=1.0), theirs).item()


def test_a_model_uses_them_only_meanwhile(tiny):
    ids = mx.arange(24).reshape(2, 12)
    before = tiny.model(ids)
    mx.eval(before)
    with cpu_ops.cpu_ops(tiny.model):
        assert (mx.fast.rope is rope) == (mx.default_device() == mx.cpu)
        meanwhile = tiny.model(ids)
        mx.eval(meanwhile)
    assert {n: getattr(mx.fast, n) for n in FAST} == FAST
    assert mx.allclose(before, meanwhile, rtol=1e-4, atol=1e-5).item()
    assert mx.array_equal(before, tiny.model(ids)).item()


def test_they_are_gone_after_an_error(tiny):
    with pytest.raises(KeyError), cpu_ops.cpu_ops(tiny.model):
        raise KeyError
    assert {n: getattr(mx.fast, n) for n in FAST} == FAST
