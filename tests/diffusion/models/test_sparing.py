import contextlib

import mlx.core as mx
import mlx.nn as nn
import pytest

from macai.diffusion.models import attention, sparing


class Net(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.convs = [nn.Conv2d(4, 6, 3, padding=1, bias=bias), nn.Conv2d(6, 4, 1)]
        self.half = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.look = attention.Attention(4, heads=1, dim_head=4)

    def __call__(self, x):
        for conv in self.convs:
            x = conv(x)
        return self.look(self.half(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 7])
def test_a_convolution_in_strips_is_the_convolution(rows, bias, monkeypatch):
    net = Net(bias)
    x = mx.random.normal((2, 8, 5, 4), key=mx.random.key(0))
    whole = net(x)
    sparing.spare_memory(net)
    assert [type(conv).__name__ for conv in net.convs] == ["StripConv2d", "Conv2d"]
    assert type(net.half) is nn.Conv2d  # it takes every other row
    monkeypatch.setattr(sparing, "PIECE_BYTES", 9 * x.nbytes * rows // 8)
    monkeypatch.setattr(attention, "FEW_SCORES", 4)
    assert mx.allclose(net(x), whole, atol=1e-5)


def test_a_convolution_in_strips_takes_less_memory(monkeypatch):
    conv = nn.Sequential(nn.Conv2d(16, 4, 3, padding=1))
    x = mx.random.normal((1, 256, 256, 16), key=mx.random.key(0))
    mx.eval(x, conv.parameters())
    monkeypatch.setattr(sparing, "PIECE_BYTES", 1 << 18)
    peaks = []
    for _ in range(2):
        mx.reset_peak_memory()
        held = mx.get_active_memory()
        mx.eval(conv(x))
        peaks.append(mx.get_peak_memory() - held)
        sparing.spare_memory(conv)
    assert peaks[1] < peaks[0] / 3


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="elsewhere there is nothing to gain")
def test_convolutions_are_in_strips_for_a_while(monkeypatch):
    net = Net()
    x = mx.random.normal((2, 8, 5, 4), key=mx.random.key(0))
    whole, before = net(x), list(net.convs)
    monkeypatch.setattr(sparing, "PIECE_BYTES", 9 * x.nbytes // 8)
    with contextlib.suppress(KeyboardInterrupt), sparing.in_strips(net):
        assert [type(conv).__name__ for conv in net.convs] == ["StripConv2d", "Conv2d"]
        assert mx.allclose(net(x), whole, atol=1e-5)
        raise KeyboardInterrupt
    assert all(now is then for now, then in zip(net.convs, before, strict=True))
