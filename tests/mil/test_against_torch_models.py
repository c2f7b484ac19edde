"""States, flexible shapes and compressed weights of converted torch modules, against torch."""

import numpy as np
import pytest

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")

import coremltools as ct  # noqa: E402
import coremltools.optimize.coreml as cto  # noqa: E402
from torch import nn  # noqa: E402

from macai.errors import PackageError  # noqa: E402
from macai.mil import Range, open_package  # noqa: E402
from tests.mil.packages import save_model  # noqa: E402
from tests.mil.test_against_torch import expected_outputs, worst_error  # noqa: E402

pytestmark = [pytestmark, pytest.mark.filterwarnings("ignore")]


class CachedAttention(nn.Module):
    """One layer with a cache of keys and values, a token at a time at `position`."""

    def __init__(self, context=8, dim=16):
        super().__init__()
        self.context = context
        self.register_buffer("keyCache", torch.zeros(1, context, dim))
        self.register_buffer("valueCache", torch.zeros(1, context, dim))
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    @torch.no_grad()
    def forward(self, x, mask, begin, end):
        q, k, v = self.qkv(x).chunk(3, -1)
        self.keyCache[:, begin.shape[0] - 1 : end.shape[0]] = k
        self.valueCache[:, begin.shape[0] - 1 : end.shape[0]] = v
        scores = q @ self.keyCache.transpose(1, 2) / 4 + mask
        return self.out(scores.softmax(-1) @ self.valueCache)


def test_a_cache_keeps_what_was_written_over_six_steps(tmp_path):
    torch.manual_seed(0)
    module = CachedAttention().eval()
    context, dim = 8, 16
    # The position is the length of an input: torch traces a slice by a number as a constant.
    example = (torch.randn(1, 1, dim), torch.zeros(1, 1, context), torch.zeros(1), torch.zeros(1))
    traced = torch.jit.trace(module, example)
    positions = ct.RangeDim(lower_bound=1, upper_bound=context, default=1)
    half = np.float16
    save_model(
        lambda: ct.convert(
            traced,
            inputs=[
                ct.TensorType(name="x", shape=(1, 1, dim), dtype=half),
                ct.TensorType(name="mask", shape=(1, 1, context), dtype=half),
                ct.TensorType(name="begin", shape=(positions,), dtype=half),
                ct.TensorType(name="end", shape=(positions,), dtype=half),
            ],
            outputs=[ct.TensorType(name="y", dtype=half)],
            states=[
                ct.StateType(ct.TensorType(shape=(1, context, dim), dtype=half), name=name)
                for name in ("keyCache", "valueCache")
            ],
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
        ),
        tmp_path / "p.mlpackage",
    )
    package = open_package(tmp_path / "p.mlpackage")
    states = {precision: package.make_state() for precision in ("fp32", "fp16")}
    module.keyCache.zero_()
    module.valueCache.zero_()
    for step in range(6):
        x = torch.randn(1, 1, dim)
        mask = torch.where(torch.arange(context) <= step, 0.0, -1e4).reshape(1, 1, context)
        length = torch.zeros(step + 1)
        expected = expected_outputs(module, (x, mask, length, length))
        inputs = {"x": x.numpy(), "mask": mask.numpy(), "begin": length.numpy()}
        inputs["end"] = inputs["begin"]
        for precision, tolerance in (("fp32", 1e-3), ("fp16", 4e-3)):
            result = package.functions["main"].run(
                inputs, state=states[precision], precision=precision
            )
            assert worst_error(list(result.outputs.values()), expected) <= tolerance
            assert not result.overflows
    for precision, state in states.items():
        assert np.allclose(state["keyCache"], module.keyCache.detach().numpy(), atol=1e-2), (
            precision
        )
        assert not state["keyCache"][:, 6:].any()


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        y = torch.relu(self.conv(x))
        return y.flatten(2).transpose(1, 2) + y.mean((2, 3))[:, None]


def flexible(path, shape) -> tuple[nn.Module, object]:
    torch.manual_seed(0)
    module = Pooled().eval()
    traced = torch.jit.trace(module, torch.randn(1, 3, 8, 8))
    save_model(
        lambda: ct.convert(
            traced,
            inputs=[ct.TensorType(name="x", shape=shape)],
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        ),
        path,
    )
    return module, open_package(path)


def test_a_range_of_sizes_is_run_at_each_and_refused_outside(tmp_path):
    side = ct.RangeDim(lower_bound=4, upper_bound=12, default=8)
    module, package = flexible(tmp_path / "p.mlpackage", (1, 3, side, 8))
    fn = package.functions["main"]
    assert fn.inputs["x"].shape == (1, 3, Range(4, 12), 8)
    for height in (4, 8, 11):
        x = torch.randn(1, 3, height, 8)
        outputs = fn.run({"x": x.numpy()}).outputs
        assert worst_error(list(outputs.values()), expected_outputs(module, (x,))) <= 1e-5
    with pytest.raises(PackageError, match=r"shape \[1, 3, 13, 8\], not fp32 \[1, 3, 4\.\.12, 8\]"):
        fn.run({"x": np.zeros((1, 3, 13, 8), np.float32)})


def test_enumerated_shapes_are_run_and_no_other(tmp_path):
    shapes = ct.EnumeratedShapes(shapes=[(1, 3, 8, 8), (1, 3, 4, 6)], default=(1, 3, 8, 8))
    module, package = flexible(tmp_path / "p.mlpackage", shapes)
    fn = package.functions["main"]
    assert fn.inputs["x"].enumerated == ((1, 3, 8, 8), (1, 3, 4, 6))
    for shape in fn.inputs["x"].enumerated:
        x = torch.randn(shape)
        outputs = fn.run({"x": x.numpy()}).outputs
        assert worst_error(list(outputs.values()), expected_outputs(module, (x,))) <= 1e-5
    with pytest.raises(PackageError, match=r"not fp32 \[1, 3, 8, 8\] or \[1, 3, 4, 6\]"):
        fn.run({"x": np.zeros((1, 3, 4, 8), np.float32)})


class Weights(nn.Module):
    """Large enough that every compression takes hold."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 64, 3, padding=1)
        self.linear1, self.linear2 = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x):
        y = self.conv(x).mean((2, 3))
        return self.linear2(torch.relu(self.linear1(y)))


def config(op_config):
    return cto.OptimizationConfig(global_config=op_config)


def linear(**options):
    return lambda m: cto.linear_quantize_weights(
        m, config(cto.OpLinearQuantizerConfig(weight_threshold=0, **options))
    )


def palette(**options):
    return lambda m: cto.palettize_weights(
        m, config(cto.OpPalettizerConfig(weight_threshold=0, **options))
    )


def prune(**options):
    return lambda m: cto.prune_weights(
        m, config(cto.OpMagnitudePrunerConfig(weight_threshold=0, target_sparsity=0.5, **options))
    )


def then(first, second):
    def both(m):
        return second(first(m), joint_compression=True)

    return both


def joint_linear(**options):
    return lambda m, **k: cto.linear_quantize_weights(
        m, config(cto.OpLinearQuantizerConfig(weight_threshold=0, **options)), **k
    )


def joint_palette(**options):
    return lambda m, **k: cto.palettize_weights(
        m, config(cto.OpPalettizerConfig(weight_threshold=0, **options)), **k
    )


COMPRESSIONS = {
    "int8 per channel": ("iOS16", linear(mode="linear_symmetric")),
    "uint8 affine": ("iOS16", linear(mode="linear", dtype="uint8")),
    "int8, iOS18": ("iOS18", linear(mode="linear_symmetric")),
    "int8 per tensor": ("iOS18", linear(granularity="per_tensor")),
    "int4 per block": ("iOS18", linear(dtype="int4", granularity="per_block", block_size=32)),
    "uint4 affine per block": (
        "iOS18",
        linear(mode="linear", dtype="uint4", granularity="per_block", block_size=16),
    ),
    **{
        f"palette of {bits} bits, {target}": (target, palette(mode="uniform", nbits=bits))
        for target, bits in [("iOS16", b) for b in (1, 2, 4, 6, 8)]
        + [("iOS18", b) for b in (1, 2, 3, 4, 6, 8)]
    },
    "palette per group": (
        "iOS18",
        palette(mode="uniform", nbits=4, granularity="per_grouped_channel", group_size=16),
    ),
    "palette with scales": (
        "iOS18",
        palette(mode="uniform", nbits=4, enable_per_channel_scale=True),
    ),
    "pruned, iOS16": ("iOS16", prune()),
    "pruned, iOS18": ("iOS18", prune()),
    "pruned and int8": ("iOS18", then(prune(), joint_linear())),
    "pruned and palette": ("iOS18", then(prune(), joint_palette(mode="uniform", nbits=4))),
    "palette of int8": (
        "iOS18",
        then(palette(mode="uniform", nbits=4), joint_linear(granularity="per_tensor")),
    ),
}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressed_weights_are_what_coremltools_decompresses(tmp_path, name):
    target, compress = COMPRESSIONS[name]
    torch.manual_seed(0)
    module = Weights().eval()
    x = torch.randn(1, 4, 6, 6)
    traced = torch.jit.trace(module, x)

    def compressed():
        model = ct.convert(
            traced,
            inputs=[ct.TensorType(name="x", shape=x.shape)],
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision.FLOAT16,
            skip_model_load=True,
        )
        return compress(model)

    save_model(compressed, tmp_path / "p.mlpackage")
    save_model(lambda: cto.decompress_weights(compressed()), tmp_path / "plain.mlpackage")
    package, plain = (
        open_package(tmp_path / "p.mlpackage"),
        open_package(tmp_path / "plain.mlpackage"),
    )
    types = {o.type for o in package.functions["main"].operations}
    assert any(t.startswith("constexpr_") for t in types)
    assert not any(o.type.startswith("constexpr_") for o in plain.functions["main"].operations)
    for precision in ("fp32", "fp16"):
        outputs = [
            list(p.functions["main"].run({"x": x.numpy()}, precision=precision).outputs.values())
            for p in (package, plain)
        ]
        assert np.array_equal(*(o[0] for o in outputs)), (types, precision)
    assert package.weight_bytes < plain.weight_bytes
