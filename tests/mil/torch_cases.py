"""Modules that torch runs and Apple's converter turns into packages, to judge the judge by.

Long because it is a table of modules, each by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Case:
    """One comparison; `module` makes the module, `inputs` what it is called with.

    Attributes:
        tolerance: The relative error allowed at fp32: the largest difference by the largest value.
        half_tolerance: The same for a package in fp16; None where rounding changes an order.
        targets: The deployment targets it can be converted for.
    """

    name: str
    module: Callable[[], nn.Module]
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    tolerance: float = 1e-5
    half_tolerance: float | None = 4e-3
    targets: tuple[str, ...] = ("iOS16", "iOS18")


class Fn(nn.Module):
    """A module that is a function."""

    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, *args):
        return self.fn(*args)


def fn(f):
    return lambda: Fn(f)


def randn(*shapes, scale=1.0):
    return lambda: tuple(torch.randn(*s) * scale for s in shapes)


def ids(*shape, high=16):
    return lambda: (torch.randint(0, high, shape, dtype=torch.int32),)


class ResNetBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.down = nn.Conv2d(8, 16, 1, stride=2)
        for bn in (self.bn1, self.bn2):
            bn.running_mean.uniform_(-0.5, 0.5)
            bn.running_var.uniform_(0.5, 2)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.down(x)).mean((2, 3))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inc = nn.Conv2d(3, 16, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(4, 16), nn.GroupNorm(8, 32)
        self.down = nn.Conv2d(16, 32, 4, stride=2, padding=1)
        self.time = nn.Linear(16, 32)
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up = nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1)
        self.out = nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x, t):
        freqs = torch.exp(torch.arange(8) * -0.5)
        emb = torch.cat([torch.sin(t[:, None] * freqs), torch.cos(t[:, None] * freqs)], -1)
        a = F.silu(self.norm1(self.inc(x)))
        b = self.norm2(self.down(a)) + self.time(emb)[:, :, None, None]
        B, C, H, W = b.shape
        tokens = b.reshape(B, C, H * W).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        tokens = tokens + self.proj(F.scaled_dot_product_attention(q, k, v))
        b = F.interpolate(tokens.transpose(1, 2).reshape(B, C, H, W), scale_factor=1.0)
        return self.out(torch.cat([F.silu(self.up(b)), a], 1))


class GPT(nn.Module):
    def __init__(self, vocab=16, dim=32, heads=4, layers=2):
        super().__init__()
        self.heads = heads
        self.embed, self.pos = nn.Embedding(vocab, dim), nn.Parameter(torch.randn(32, dim) * 0.1)
        self.qkv = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in range(layers))
        self.proj = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 64), nn.GELU(), nn.Linear(64, dim)) for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * layers + 1))

    def forward(self, tokens):
        B, L = tokens.shape
        x = self.embed(tokens) + self.pos[:L]
        for i, (qkv, proj, mlp) in enumerate(zip(self.qkv, self.proj, self.mlp, strict=True)):
            q, k, v = (
                y.reshape(B, L, self.heads, -1).transpose(1, 2)
                for y in qkv(self.norms[2 * i](x)).chunk(3, -1)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + proj(y.transpose(1, 2).reshape(B, L, -1))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.norms[-1](x) @ self.embed.weight.T


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, stride=4)
        self.cls = nn.Parameter(torch.randn(1, 1, 32))
        self.block = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        # The fast path is one operation that no converter knows.
        torch.backends.mha.set_fastpath_enabled(False)
        return self.head(self.block(x)[:, 0])


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(6, 8, **options)

    def forward(self, x):
        y, state = self.rnn(x)
        return (y, *state) if isinstance(state, tuple) else (y, state)


class Branch(nn.Module):
    def forward(self, x):
        y = x
        if x.sum() > 0:
            y = x * 2
        else:
            y = x - 1
        return y


class Loop(nn.Module):
    def forward(self, x):
        y = x
        while y.abs().max() < 100.0:
            y = y * 2 + 1
        return y


def grid(x, g):
    return F.grid_sample(x, g, mode="bilinear", padding_mode="zeros", align_corners=False)


def cases() -> list[Case]:
    """Return all cases; torch's modules are made when they are needed."""
    image = randn((2, 8, 9, 11))
    interpolate = [
        Case(
            f"interpolate {mode} {options}",
            fn(lambda x, m=mode, o=options: F.interpolate(x, mode=m, **o)),
            image,
        )
        for mode, options in [
            ("nearest", {"scale_factor": 2}),
            ("nearest", {"size": (18, 33)}),
            ("bilinear", {"scale_factor": 2, "align_corners": False}),
            ("bilinear", {"scale_factor": (2, 3), "align_corners": True}),
            ("bilinear", {"size": (20, 7), "align_corners": False}),
            ("bilinear", {"size": (20, 31), "align_corners": True}),
            (
                "bilinear",
                {"scale_factor": 1.7, "align_corners": False, "recompute_scale_factor": True},
            ),
        ]
    ]
    pads = [
        Case(f"pad {mode} {pad}", fn(lambda x, p=pad, m=mode: F.pad(x, p, mode=m)), image)
        for mode, pad in [
            ("constant", (1, 2, 0, 3)),
            ("reflect", (3, 2, 4, 1)),
            ("replicate", (3, 2, 4, 1)),
        ]
    ]
    return [*CONVOLUTIONS, *POOLS, *interpolate, *pads, *ACTIVATIONS, *TENSORS, *NETS]


CONVOLUTIONS = [
    Case("conv1d", lambda: nn.Conv1d(4, 6, 3, padding=2, dilation=2), randn((2, 4, 17))),
    Case(
        "conv2d groups",
        lambda: nn.Conv2d(8, 12, 3, stride=(1, 2), padding=(1, 2), groups=4),
        randn((2, 8, 9, 11)),
    ),
    Case(
        "conv2d depthwise",
        lambda: nn.Conv2d(8, 16, (3, 5), padding="same", groups=8),
        randn((1, 8, 9, 11)),
    ),
    Case(
        "conv2d dilated",
        lambda: nn.Conv2d(4, 6, 3, dilation=(2, 3), stride=2, bias=False),
        randn((1, 4, 15, 16)),
    ),
    Case(
        "conv3d",
        lambda: nn.Conv3d(3, 4, (2, 3, 3), stride=(1, 2, 1), padding=1),
        randn((1, 3, 5, 6, 7)),
    ),
    Case(
        "conv_transpose1d",
        lambda: nn.ConvTranspose1d(4, 6, 5, stride=3, padding=1),
        randn((2, 4, 7)),
    ),
    Case(
        "conv_transpose2d output_padding",
        lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
        randn((2, 6, 5, 7)),
    ),
    Case(
        "conv_transpose2d groups",
        lambda: nn.ConvTranspose2d(6, 4, (3, 2), stride=(2, 1), groups=2),
        randn((1, 6, 5, 7)),
    ),
    Case(
        "conv_transpose2d dilated",
        lambda: nn.ConvTranspose2d(4, 4, 3, dilation=2),
        randn((1, 4, 5, 6)),
    ),
    Case(
        "conv_transpose3d",
        lambda: nn.ConvTranspose3d(3, 2, 3, stride=2, padding=1),
        randn((1, 3, 3, 4, 3)),
    ),
]

POOLS = [
    Case("max_pool2d", lambda: nn.MaxPool2d(3, stride=2, padding=1), randn((2, 3, 9, 11))),
    Case(
        "max_pool2d ceil",
        lambda: nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        randn((2, 3, 10, 12)),
    ),
    Case("max_pool1d", lambda: nn.MaxPool1d(4, stride=3), randn((2, 3, 17))),
    Case("max_pool3d", lambda: nn.MaxPool3d(2, stride=1), randn((1, 3, 4, 5, 6))),
    Case("avg_pool2d", lambda: nn.AvgPool2d(3, stride=2, padding=1), randn((2, 3, 9, 11))),
    Case(
        "avg_pool2d exclude",
        lambda: nn.AvgPool2d((3, 2), padding=1, count_include_pad=False),
        randn((2, 3, 9, 11)),
    ),
    Case(
        "avg_pool2d ceil",
        lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True),
        randn((2, 3, 10, 12)),
    ),
    Case(
        "avg_pool2d ceil exclude",
        lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        randn((2, 3, 10, 12)),
    ),
    Case("avg_pool1d", lambda: nn.AvgPool1d(3, padding=1), randn((2, 3, 10))),
    Case("adaptive_avg_pool2d", lambda: nn.AdaptiveAvgPool2d((3, 2)), randn((2, 3, 9, 8))),
    Case("adaptive_max_pool2d", lambda: nn.AdaptiveMaxPool2d(1), randn((2, 3, 9, 8))),
]

ACTIVATIONS = [
    Case(
        "activations",
        fn(
            lambda x: (
                F.elu(x, 0.7),
                F.leaky_relu(x, 0.2),
                F.silu(x),
                F.softplus(x),
                F.softplus(x, beta=2.0),
                F.hardswish(x),
                F.hardsigmoid(x),
                F.hardtanh(x, -0.5, 0.7),
                F.relu6(4 * x),
                F.softsign(x),
                F.mish(x),
                F.selu(x),
                F.tanhshrink(x),
                F.threshold(x, 0.1, 0.0),
            )
        ),
        randn((2, 5, 7), scale=2),
    ),
    Case(
        "gelu", fn(lambda x: (F.gelu(x), F.gelu(x, approximate="tanh"))), randn((2, 500), scale=3)
    ),
    Case("prelu", lambda: nn.PReLU(5, 0.3), randn((2, 5, 7))),
    Case("glu", fn(lambda x: F.glu(x, 1)), randn((2, 6, 7))),
    Case(
        "softmax",
        fn(lambda x: (x.softmax(1), x.log_softmax(-1), F.softmin(x, 0))),
        randn((3, 5, 7), scale=3),
    ),
    Case(
        "unary",
        fn(
            lambda x: (
                x.abs(),
                x.acos(),
                x.asin(),
                x.atan(),
                x.atanh(),
                x.ceil(),
                x.cos(),
                x.cosh(),
                x.erf(),
                x.exp(),
                x.exp2(),
                x.floor(),
                x.round(),
                x.sign(),
                x.sin(),
                x.sinh(),
                x.tan(),
                x.tanh(),
                x.square(),
                x.neg(),
                x.sigmoid(),
            )
        ),
        lambda: (torch.rand(3, 50) * 1.9 - 0.95,),
    ),
    # The converter adds 1e-4 to x.
    Case(
        "reciprocal", fn(torch.reciprocal), lambda: (torch.rand(3, 50) * 5 + 0.1,), tolerance=1e-3
    ),
    Case(
        "unary positive",
        fn(lambda x: (x.log(), x.rsqrt(), x.sqrt(), x.log1p(), x.log2())),
        lambda: (torch.rand(3, 50) * 5 + 0.1,),
    ),
]

NORM_SHAPE = (2, 6, 5, 4)
TENSORS = [
    Case(
        "norms",
        fn(
            lambda x: (
                F.layer_norm(x, (5, 4)),
                F.instance_norm(x),
                F.group_norm(x, 3),
                F.local_response_norm(x, 3, alpha=0.1, k=2.0),
                F.normalize(x, dim=1),
            )
        ),
        randn(NORM_SHAPE),
    ),
    Case(
        "local response norm, even",
        fn(lambda x: F.local_response_norm(x, 4, alpha=0.1)),
        randn(NORM_SHAPE),
    ),
    Case("batch norm", lambda: nn.BatchNorm1d(6), randn((4, 6, 3))),
    Case(
        "binary",
        fn(
            lambda x, y: (
                x + y,
                x - y,
                x * y,
                x / y,
                torch.maximum(x, y),
                torch.minimum(x, y),
                x.abs().pow(y),
                torch.remainder(x, y),
                torch.floor_divide(x, y),
                torch.atan2(x, y),
            )
        ),
        lambda: (torch.randn(3, 1, 5), torch.rand(4, 1) + 0.5),
    ),
    Case(
        "compare",
        fn(
            lambda x, y: (
                torch.where(x > y, x, y),
                ((x >= y) & (x < 1)).float(),
                torch.logical_or(x <= y, ~(x == y)).int(),
                torch.logical_xor(x > 0, y > 0).float(),
                (x != y).int(),
            )
        ),
        randn((3, 5), (3, 5)),
    ),
    Case(
        "reductions",
        fn(
            lambda x: (
                x.sum(1),
                x.mean((0, 2), keepdim=True),
                x.amax(-1),
                x.amin(0),
                x.logsumexp(1),
                x.norm(dim=1),
                x.std(1),
                x.var(-1, unbiased=False),
                x.norm(p=1, dim=-1),
                x.max(),
                x.argmax(1).float(),
                x.argmin(-1).float(),
            )
        ),
        randn((3, 4, 5)),
    ),
    Case(
        "matmul",
        fn(lambda x, y: (x @ y, x.transpose(-1, -2) @ x, x[0] @ y[0], torch.bmm(2 * x, y))),
        randn((3, 4, 5), (3, 5, 6)),
    ),
    Case("matmul broadcast", fn(lambda x, y: x @ y), randn((2, 1, 4, 5), (3, 5, 6))),
    Case(
        "einsum",
        fn(
            lambda x, y: (
                torch.einsum("bhqc,bhkc->bhqk", x, y),
                torch.einsum(
                    "bchq,bkhc->bkhq", x.transpose(1, 3).transpose(2, 3), y.transpose(1, 2)
                ),
            )
        ),
        randn((2, 3, 4, 5), (2, 3, 6, 5)),
    ),
    Case(
        "einsum plain",
        fn(
            lambda x, y: (
                torch.einsum("ij,jk->ik", x, y),
                torch.einsum("ij,jk->ki", x, y),
                torch.einsum("ij,kj->", x, y.T),
            )
        ),
        randn((4, 5), (5, 6)),
    ),
    Case(
        "shapes",
        fn(
            lambda x: (
                x.reshape(4, -1),
                x.permute(2, 0, 1),
                x.flatten(1),
                x.unsqueeze(1).squeeze(),
                torch.stack([x, x], 1),
                torch.cat([x, x], -1),
                *x.split([1, 2, 1], 1),
                *x.chunk(2, 1),
                x.repeat(2, 1, 3),
                x.flip(1, 2),
                x.expand(2, -1, -1, -1),
                x.unbind(0)[1],
                x.roll(1, 2),
            )
        ),
        randn((2, 4, 6)),
    ),
    Case(
        "slices",
        fn(
            lambda x: (
                x[1:, ::2],
                x[..., -1],
                x[:, 1:-1, 2],
                x[:, :, -3:-1],
                x[0],
                x.narrow(2, 1, 3),
                x[None, 1],
                x.select(1, -1),
                x[:, [0, 3, 1]],
            )
        ),
        randn((2, 5, 6)),
    ),
    Case(
        "pixels",
        fn(lambda x: (F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 2))),
        randn((1, 8, 4, 6)),
    ),
    Case("cumsum", fn(lambda x: (x.cumsum(0), x.cumsum(1))), randn((3, 4, 5))),
    Case(
        "sorting",
        fn(
            lambda x: (
                *x.topk(3, 1),
                *x.topk(2, 0, largest=False),
                x.sort(1)[0],
                x.argsort(-1, descending=True),
                x.sort(-1, descending=True)[1],
            )
        ),
        randn((4, 6)),
    ),
    Case("embedding", lambda: nn.Embedding(16, 6), ids(2, 5)),
    Case(
        "gather",
        fn(
            lambda x, i: (x.gather(1, i.long()), x[i[0].long()], x.index_select(1, i[0].long() % 3))
        ),
        lambda: (torch.randn(4, 5), torch.randint(0, 4, (4, 3), dtype=torch.int32)),
    ),
    Case(
        "scatter",
        fn(lambda x, i, u: (x.scatter(1, i.long(), u), x.scatter_add(1, i.long(), u))),
        lambda: (
            torch.randn(4, 5),
            torch.tensor([[0, 2, 4]] * 4, dtype=torch.int32),
            torch.randn(4, 3),
        ),
    ),
    Case("one_hot", fn(lambda i: F.one_hot(i.long(), 16).float()), ids(3, 4)),
    Case("tril", fn(lambda x: (x.tril(), x.triu(1), x.tril(-2))), randn((2, 5, 6))),
    Case("masked_fill", fn(lambda x: x.masked_fill(x > 0.5, -10.0)), randn((3, 4))),
    Case(
        "arange", fn(lambda x: x + torch.arange(x.shape[1]) * torch.full((1,), 0.5)), randn((3, 4))
    ),
    Case(
        "clamp",
        fn(lambda x: (x.clamp(-0.5, 0.5), x.clamp(min=0.1), x.clamp(max=-0.1))),
        randn((3, 40)),
    ),
    Case(
        "casts",
        fn(
            lambda x: (
                x.int().float(),
                x.bool().float(),
                (x * 3).to(torch.int32) // 2,
                x.long() % 3,
            )
        ),
        randn((3, 40), scale=5),
    ),
    Case(
        "grid_sample",
        fn(grid),
        lambda: (torch.randn(2, 3, 5, 6), torch.rand(2, 4, 7, 2) * 2.4 - 1.2),
        half_tolerance=1e-2,
    ),
    Case(
        "grid_sample border",
        fn(
            lambda x, g: F.grid_sample(
                x, g, mode="bilinear", padding_mode="border", align_corners=True
            )
        ),
        lambda: (torch.randn(2, 3, 5, 6), torch.rand(2, 4, 7, 2) * 2.4 - 1.2),
        half_tolerance=1e-2,
    ),
    Case("unfold", fn(lambda x: F.unfold(x, 3, padding=1)), randn((1, 2, 5, 6))),
    Case(
        "sdpa mask",
        fn(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m > 0)),
        randn((1, 2, 4, 8), (1, 2, 6, 8), (1, 2, 6, 5), (1, 1, 4, 6)),
        targets=("iOS18",),
    ),
    Case(
        "sdpa scale",
        fn(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m, scale=0.3)),
        randn((1, 2, 4, 8), (1, 2, 6, 8), (1, 2, 6, 5), (1, 1, 4, 6)),
    ),
]

NETS = [
    Case("resnet block", ResNetBlock, randn((2, 8, 12, 12))),
    Case(
        "unet",
        UNet,
        lambda: (torch.randn(2, 3, 16, 16), torch.tensor([3.0, 17.0])),
        half_tolerance=1e-2,
    ),
    Case("gpt", GPT, ids(2, 12)),
    Case("vit", ViT, randn((2, 3, 16, 16))),
    Case("lstm", lambda: Recurrent(nn.LSTM, batch_first=True), randn((2, 5, 6))),
    Case(
        "lstm two layers, both ways",
        lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        randn((5, 2, 6)),
    ),
    Case("gru", lambda: Recurrent(nn.GRU), randn((5, 1, 6))),
    Case("rnn", lambda: Recurrent(nn.RNN, nonlinearity="relu"), randn((5, 2, 6))),
    Case("multihead attention", lambda: AttentionNet(), randn((2, 5, 16))),
    Case("cond, true", lambda: torch.jit.script(Branch()), lambda: (torch.ones(3),)),
    Case("cond, false", lambda: torch.jit.script(Branch()), lambda: (-torch.ones(3),)),
    Case("while_loop", lambda: torch.jit.script(Loop()), lambda: (torch.tensor([1.0, -2.0, 3.0]),)),
]


class AttentionNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        torch.backends.mha.set_fastpath_enabled(False)
        return self.attention(x, x, x)[0]
