"""Names of single files, full size: against the names of the original classes and diffusers'."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from macai.diffusion.loading import single_file
from macai.diffusion.loading.contents import Contents
from macai.diffusion.loading.coverage import Coverage, match, torch_shapes
from macai.diffusion.loading.single_file import Wishes, read_single_file
from macai.diffusion.loading.sources import Table
from macai.diffusion.loading.weights import WeightsFile
from macai.diffusion.models import from_config
from macai.errors import ModelError
from macai.models.stored import StoredTensor
from tests.diffusion.loading.cases import GOLDENS, golden_file

KINDS = ["sd1", "sd1-inpaint", "sd2", "sdxl", "sdxl-refiner", "controlnet"]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch):
    def read(tensors: Mapping[str, StoredTensor], wishes: Wishes | None = None) -> Contents:
        file = WeightsFile(dict(tensors))
        monkeypatch.setattr(single_file, "open_weights", lambda path: file)
        return read_single_file(Path("model.safetensors"), wishes or Wishes())

    return read


def matched(contents: Contents, component: str) -> tuple[Table, Coverage]:
    part = contents.parts[component]
    shapes = torch_shapes(from_config(part.config))
    table = part.table(shapes)
    return table, match(shapes, table, part.tensors, part.may_be_left)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_comes_from_the_tensor_that_diffusers_takes(kind: str, read) -> None:
    tensors = golden_file(kind)
    names, golden = list(tensors), np.load(GOLDENS / "ldm_names.npz")
    contents = read(tensors)
    components = {key.split("/")[1] for key in golden.files if key.startswith(f"{kind}/")}
    assert set(contents.parts) == components - {"names", "shapes"}
    for component in contents.parts:
        parameters, source, third, transposed = (
            golden[f"{kind}/{component}/{what}"].tolist()
            for what in ("parameters", "source", "third", "transposed")
        )
        theirs = {
            p.decode(): (names[s], None if t < 0 else t, turned)
            for p, s, t, turned in zip(parameters, source, third, transposed, strict=True)
        }
        table, _ = matched(contents, component)
        ours = {
            parameter: next((s.name, s.third, s.transposed) for s in sources if s.name in tensors)
            for parameter, sources in table.items()
        }
        assert ours == theirs


@pytest.mark.parametrize("kind", KINDS)
def test_the_known_configs_have_the_shapes_of_the_files(kind: str, read) -> None:
    contents = read(golden_file(kind))
    for component in contents.parts:
        _, coverage = matched(contents, component)
        assert coverage.missing == coverage.unexpected == []
        assert coverage.wrong_shapes == {}


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("sd1", "sd1"),
        ("sd1-inpaint", "sd1"),
        ("sd2", "sd2"),
        ("sdxl", "sdxl"),
        ("sdxl-refiner", "sdxl-refiner"),
        ("controlnet", "sd1"),
    ],
)
def test_the_version_is_told_from_the_header(kind: str, found: str, read) -> None:
    contents = read(golden_file(kind))
    assert contents.kind == found
    if kind == "sd1-inpaint":
        assert contents.parts["unet"].config["in_channels"] == 9


def test_what_is_left_of_a_whole_file_is_counted_by_reason(read) -> None:
    contents = read(golden_file("sd1"))
    assert contents.ignored == {"schedule": 12, "averaged weights": 686}
    assert matched(contents, "text_encoder")[1].left_over == {"positions": 1}
    contents = read(golden_file("sd2"))
    assert matched(contents, "text_encoder")[1].left_over == {
        "after the layer that counts": 13,
        "the image side of CLIP": 1,
    }


def test_averaged_weights_are_found_by_their_names_without_dots(read) -> None:
    tensors = golden_file("sd1")
    table, coverage = matched(read(tensors, Wishes(ema=True)), "unet")
    assert coverage.missing == coverage.unexpected == []
    assert coverage.found["conv_in.weight"].name == "model_ema.diffusion_modelinput_blocks00weight"
    assert len({s[0].name for s in table.values()}) == len(table) == 686
    plain = read({n: t for n, t in tensors.items() if not n.startswith("model_ema.")})
    assert plain.kind == "sd1"


@pytest.mark.parametrize("kind", ["sdxl", "sdxl-refiner", "sd2"])
def test_no_two_averaged_weights_have_one_name(kind: str, read) -> None:
    names = [n for n in golden_file(kind) if n.startswith("model.diffusion_model.")]
    assert len({n.replace(".", "") for n in names}) == len(names)


def test_averaged_weights_that_are_not_there_are_an_error(read) -> None:
    with pytest.raises(ModelError, match="no averaged weights"):
        read(golden_file("sd2"), Wishes(ema=True))


def test_the_guidance_of_an_lcm_is_found(read) -> None:
    tensors = golden_file("sd1-inpaint")
    name = "model.diffusion_model.time_embed.cond_proj.weight"
    shape = (320, 256)
    tensors[name] = StoredTensor.contiguous(Path("x"), name, "F16", shape, 0)
    contents = read(tensors)
    assert contents.parts["unet"].config["time_cond_proj_dim"] == 256
    assert contents.scheduler_config["_class_name"] == "LCMScheduler"
    assert matched(contents, "unet")[1].missing == []
    assert matched(contents, "unet")[1].unexpected == []


def test_all_that_is_wrong_is_said_at_once(read) -> None:
    tensors = golden_file("sd1-inpaint")
    prefix = "model.diffusion_model."
    for name in (f"{prefix}out.2.bias", f"{prefix}time_embed.0.bias"):
        tensors[f"{name}s"] = tensors.pop(name)
    wide = f"{prefix}input_blocks.3.0.op.bias"
    tensors[wide] = StoredTensor.contiguous(Path("x"), wide, "F16", (321,), 0)
    with pytest.raises(ModelError) as caught:
        matched(read(tensors), "unet")[1].check(Path("x.safetensors"), "unet")
    assert caught.value.message == (
        "x.safetensors: unet: 2 weights are missing (time_embedding.linear_1.bias, conv_out.bias), "
        f"2 are not the model's ({prefix}out.2.biass, {prefix}time_embed.0.biass), "
        f"1 have another shape ({wide}: [321], not [320])"
    )


def test_a_longer_list_is_cut_and_counted(read) -> None:
    tensors = golden_file("sdxl")
    gone = [n for n in tensors if "input_blocks.8.1.transformer_blocks.9." in n]
    for name in gone:
        del tensors[name]
    with pytest.raises(ModelError, match=r"20 weights are missing \(.*, and 17 more\)"):
        matched(read(tensors), "unet")[1].check(Path("x"), "unet")
    assert len(gone) == 20


def test_a_1x1_convolution_may_be_a_linear_layer_but_not_a_wider_one(read) -> None:
    tensors = golden_file("sd1")
    name = "first_stage_model.encoder.mid.attn_1.q.weight"
    for shape, fits in [((512, 512), True), ((512, 512, 1), True), ((512, 512, 3, 3), False)]:
        tensors[name] = StoredTensor.contiguous(Path("x"), name, "F16", shape, 0)
        assert (matched(read(tensors), "vae")[1].wrong_shapes == {}) is fits
