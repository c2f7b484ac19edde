"""LoRAs go to diffusers and PEFT and come from them with the same pictures' worth of numbers."""

import dataclasses

import mlx.core as mx
import pytest

from macai.diffusion.lora.apply import attach, fuse, set_strengths
from macai.diffusion.lora.formats import read_lora
from macai.diffusion.lora.layers import layers_of
from macai.diffusion.lora.names import target_paths
from macai.diffusion.lora.save import save_diffusers, save_kohya
from macai.diffusion.lora.training import add_lora, trained_lora
from tests.diffusion.lora.lora_cases import (
    answers_of,
    components_of,
    drawn,
    pairs_of,
    randomise,
    spelled,
    worst,
    write,
)
from tests.diffusion.lora.lora_oracle import (
    ATTENTION,
    TEXT_TARGETS,
    UNET_TARGETS,
    add_adapters,
    load,
    pipeline,
    save,
    torch_answers,
    unet_answers,
    unet_of,
)

pytestmark = [
    pytest.mark.oracle,
    # What torch, diffusers and PEFT say about themselves is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]

LEAST = 80  # dB
KINDS = ["sd1", "sd2", "xl"]


@pytest.fixture(autouse=True)
def one_thread():
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configs(kind, **unet):
    from peft import LoraConfig

    own = {"r": 4, "lora_alpha": 6, "target_modules": UNET_TARGETS} | unet
    found = {
        "unet": LoraConfig(**own),
        "text_encoder": LoraConfig(r=3, lora_alpha=2, target_modules=TEXT_TARGETS),
    }
    if kind == "xl":
        found["text_encoder_2"] = LoraConfig(r=2, lora_alpha=2, target_modules=TEXT_TARGETS)
    return found


def check(ours, theirs, base, record):
    """The two sides agree, and the LoRA changes each model by a lot."""
    found = worst(ours, theirs)
    record("dB", found)
    assert found > LEAST
    assert max(worst({n: theirs[n]}, {n: base[n]}) for n in theirs) < 30


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_diffusers_answers_the_same_here(kind, tmp_path, record_property):
    pipe = pipeline(kind)
    base = torch_answers(pipe, kind)
    patterns = {"rank_pattern": {"to_q": 2, "conv1": 5}, "alpha_pattern": {"to_v": 1, "conv1": 3}}
    add_adapters(pipe, configs(kind, **patterns))
    file = save(pipe, tmp_path)
    components = components_of(kind)
    lora = read_lora(file, layers_of(components))
    assert not lora.unmatched
    attach(components, lora, name="theirs")
    check(answers_of(components, kind), torch_answers(pipe, kind), base, record_property)
    fused = components_of(kind)
    fuse(fused, [(lora, 1.0)])
    assert worst(answers_of(fused, kind), torch_answers(pipe, kind)) > LEAST


@pytest.mark.parametrize("strengths", [{"a": 0.4, "b": -1.5}, {"a": 0.0, "b": 1.0}])
def test_two_files_with_strengths_answer_the_same_here(strengths, tmp_path, record_property):
    pipe, components = pipeline("sd1"), components_of("sd1")
    base, layers, loras = torch_answers(pipe, "sd1"), layers_of(components), []
    for name, rank in (("a", 4), ("b", 2)):
        source = pipeline("sd1")
        add_adapters(source, configs("sd1", r=rank, target_modules=ATTENTION), name)
        file = save(source, tmp_path / name, name)
        load(pipe, file, name)
        loras.append(read_lora(file, layers))
        attach(components, loras[-1], name=name)
    pipe.set_adapters(list(strengths), list(strengths.values()))
    set_strengths(components, strengths)
    theirs = torch_answers(pipe, "sd1")
    check(answers_of(components, "sd1"), theirs, base, record_property)
    fused = components_of("sd1")
    fuse(fused, list(zip(loras, strengths.values(), strict=True)))
    assert worst(answers_of(fused, "sd1"), theirs) > LEAST


@pytest.mark.parametrize(
    ("kind", "spelling"), [("sd1", "kohya"), ("sd2", "kohya"), ("xl", "kohya-sgm")]
)
def test_a_file_of_kohyas_names_answers_as_in_diffusers(kind, spelling, tmp_path, record_property):
    pipe, components = pipeline(kind), components_of(kind)
    base, layers = torch_answers(pipe, kind), layers_of(components)
    tensors = spelled(pairs_of(layers, rank=4, targets="linear"), spelling, layers)
    names = [n.removesuffix(".lora_up.weight") for n in tensors if "lora_up" in n]
    tensors |= {f"{n}.alpha": mx.array(3.0) for n in names}
    file = write(tmp_path / "kohya.safetensors", tensors)
    lora = read_lora(file, layers)
    assert (lora.format, lora.unmatched) == (spelling, ())
    attach(components, lora, name="kohya")
    load(pipe, file)
    check(answers_of(components, kind), torch_answers(pipe, kind), base, record_property)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_diffusers_answers_the_same_with_a_file_of_ours(kind, form, tmp_path, record_property):
    pipe, components = pipeline(kind), components_of(kind)
    base, layers = torch_answers(pipe, kind), layers_of(components)
    for name, model in components.items():
        targets = "conv" if form == "diffusers" else "linear"
        paths = target_paths(layers[name], targets)
        add_lora(model, paths[::2], name="half", rank=3, alpha=4)
        add_lora(model, paths[1::4], name="other half", rank=2, alpha=4)
        randomise(model, name)
    halves = [trained_lora(components, n).modules for n in ("half", "other half")]
    modules = {n: halves[0][n] | halves[1][n] for n in components}
    lora = dataclasses.replace(trained_lora(components, "half"), modules=modules)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    (save_diffusers if form == "diffusers" else save_kohya)(file, lora, layers)
    load(pipe, file)
    check(answers_of(components, kind), torch_answers(pipe, kind), base, record_property)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("how", [{"use_dora": True}, {"use_rslora": True}])
def test_dora_and_rslora_of_diffusers_answer_the_same_here(
    how, strength, tmp_path, record_property
):
    pipe, components = pipeline("sd1"), components_of("sd1")
    base = torch_answers(pipe, "sd1")
    adapters = {"unet": configs("sd1", **how)["unet"]}
    add_adapters(pipe, adapters)
    lora = read_lora(save(pipe, tmp_path), layers_of(components))
    assert not lora.unmatched
    attach(components, lora, name="theirs", strength=strength)
    pipe.unet.set_adapters(["default"], [strength])
    theirs = torch_answers(pipe, "sd1")
    ours = answers_of(components, "sd1")
    check({"unet": ours["unet"]}, {"unet": theirs["unet"]}, base, record_property)
    fused = components_of("sd1")
    fuse(fused, [(lora, strength)])
    assert worst(answers_of(fused, "sd1"), theirs) > LEAST


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("LoHa", {"r": 3, "alpha": 2}),
        ("LoHa", {"r": 3, "alpha": 2, "use_effective_conv2d": True}),
        ("LoKr", {"r": 2, "alpha": 3}),
        ("LoKr", {"r": 2, "alpha": 3, "use_effective_conv2d": True, "decompose_both": True}),
        ("LoKr", {"r": 2, "alpha": 2, "decompose_factor": 4}),
        ("Lora", {"r": 2, "lora_alpha": 3, "use_dora": True, "alpha_pattern": {"conv1": 1}}),
    ],
)
def test_a_folder_of_peft_and_its_tensors_under_kohyas_names_answer_the_same_here(
    kind, more, tmp_path, record_property
):
    import peft
    import torch

    unet, config = unet_of("sd1"), getattr(peft, f"{kind}Config")
    base = unet_answers(unet, "sd1")
    model = peft.get_peft_model(unet, config(target_modules=UNET_TARGETS, **more))
    for key, value in model.named_parameters():
        if value.requires_grad:
            numbers = torch.from_numpy(drawn(key, *value.shape, spread=0.3))
            value.data = value.data * (1 + 0.1 * numbers) if "magnitude" in key else numbers
    model.save_pretrained(tmp_path / "peft")
    theirs = unet_answers(model.eval(), "sd1")
    check(with_lora(tmp_path / "peft"), theirs, base, record_property)
    if kind == "LoKr" and more["alpha"] != more["r"]:
        return  # LyCORIS scales whole factors by 1, PEFT by alpha / rank
    file = write(tmp_path / "kohya.safetensors", kohya_names(tmp_path / "peft", more))
    check(with_lora(file), theirs, base, record_property)


def with_lora(path):
    components = {"unet": components_of("sd1")["unet"]}
    lora = read_lora(path, layers_of(components))
    assert not lora.unmatched
    attach(components, lora, name="lora")
    return answers_of(components, "sd1")


def kohya_names(folder, more):
    """Return PEFT's tensors as kohya and LyCORIS call them; conv1 keeps an alpha of its own."""
    tensors = {}
    for key, value in mx.load(str(folder / "adapter_model.safetensors")).items():
        path = key.removeprefix("base_model.model.")
        path, _, part = path.removesuffix(".weight").rpartition(".")
        name = f"lora_unet_{path.replace('.', '_')}"
        if part == "lora_magnitude_vector":
            part, value = (
                "dora_scale",
                value.reshape(-1, 1, 1, 1) if value.ndim > 1 else value[:, None],
            )
        part = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}.get(part, part)
        alpha = more.get("alpha_pattern", {}).get(path.rpartition(".")[2])
        tensors[f"{name}.{part}"] = value
        tensors[f"{name}.alpha"] = mx.array(
            float(alpha or more.get("alpha", more.get("lora_alpha")))
        )
    return tensors
