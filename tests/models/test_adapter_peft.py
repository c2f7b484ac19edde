"""Adapter files go to PEFT and come from PEFT with the same logits."""

import json

import mlx.core as mx
import numpy as np
import pytest

from macai.errors import AdapterError
from macai.models.adapter import CONFIG, load_adapter
from macai.models.fuse import fuse
from macai.models.load import load_model
from macai.models.lora import add_lora, lora_layers, target_paths
from macai.models.peft_config import PeftConfig
from tests.adapters import ALL, adapt, save

pytestmark = [
    pytest.mark.oracle,
    # What torch, transformers and PEFT say about themselves is not ours to mend.
    pytest.mark.filterwarnings("default"),
]

IDS = [[5, 80, 33, 7, 260, 9], [1, 2, 3, 4, 5, 6]]
TOLERANCE = 1e-4


def torch_model(folder):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def torch_logits(model):
    import torch

    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def difference(ours, theirs):
    return np.abs(np.array(ours) - np.array(theirs)).max()


def test_the_base_models_agree(tiny, tiny_dir):
    assert difference(tiny.model(mx.array(IDS)), torch_logits(torch_model(tiny_dir))) < TOLERANCE


@pytest.mark.parametrize(
    ("targets", "rank", "alpha"),
    [
        (ALL, 4, 6.0),
        (("q_proj", "lm_head"), 3, 8.0),
        (("layers.1.self_attn.q_proj", "layers.0.mlp.up_proj"), 8, 4.0),
    ],
)
def test_peft_reads_what_macai_wrote(tiny, tiny_dir, tmp_path, targets, rank, alpha):
    peft = pytest.importorskip("peft")
    save(adapt(tiny, targets, rank=rank, alpha=alpha), tmp_path)
    model = torch_model(tiny_dir)
    base = torch_logits(model)
    tuned = peft.PeftModel.from_pretrained(model, tmp_path)
    layers = {
        n.removeprefix("base_model.model.")
        for n, m in tuned.named_modules()
        if isinstance(m, peft.tuners.lora.LoraLayer)
    }
    assert layers == lora_layers(tiny.model).keys()
    theirs = torch_logits(tuned)
    assert difference(tiny.model(mx.array(IDS)), theirs) < TOLERANCE
    assert difference(base, theirs) > 1e-2


RICH = [
    {"use_dora": True},
    {"use_rslora": True},
    {"init": "pissa", "use_rslora": True, "rank_pattern": {"q_proj": 2}},
    {"modules_to_save": ("embed_tokens", "lm_head", "model.norm")},
    {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 9}, "alpha_pattern": {"v_proj": 3.0}},
    {
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"layers.0.self_attn.v_proj": 1},
        "modules_to_save": ("lm_head",),
    },
]


@pytest.mark.parametrize("options", RICH)
def test_peft_reads_every_kind_that_macai_writes(tiny, tiny_dir, tmp_path, options):
    peft = pytest.importorskip("peft")
    patterns = options.get("rank_pattern", {}), options.get("alpha_pattern", {})
    sizes = PeftConfig(4, 6.0, *patterns, options.get("use_rslora", False))
    save(adapt(tiny, ("q_proj", "v_proj", "up_proj"), **options), tmp_path, sizes=sizes)
    model = torch_model(tiny_dir)
    base = torch_logits(model)
    theirs = torch_logits(peft.PeftModel.from_pretrained(model, tmp_path).eval())
    assert difference(tiny.model(mx.array(IDS)), theirs) < TOLERANCE
    assert difference(base, theirs) > 1e-2


def test_pissa_starts_where_pefts_does(tiny, tiny_dir):
    """Theirs is the exact decomposition, ours a fast one: what is left is nearly as little."""
    peft = pytest.importorskip("peft")
    options = {"init_lora_weights": "pissa", "target_modules": ["v_proj", "up_proj"]}
    config = peft.LoraConfig(r=6, lora_alpha=9, task_type="CAUSAL_LM", **options)
    theirs = dict(peft.get_peft_model(torch_model(tiny_dir), config).named_modules())
    paths = target_paths(tiny.model, ["v_proj", "up_proj"])
    add_lora(tiny.model, paths, rank=6, alpha=9, init="pissa")
    for path, layer in lora_layers(tiny.model).items():
        other = theirs[f"base_model.model.{path}"]
        a, b = other.lora_A["default"].weight, other.lora_B["default"].weight
        weight = np.array(layer.linear.weight)
        least = np.linalg.norm(weight - 1.5 * (b @ a).detach().numpy())
        ours = np.linalg.norm(weight - 1.5 * np.array(layer.lora_B @ layer.lora_A))
        assert least <= ours * (1 + 1e-6) < 1.01 * least < 0.98 * np.linalg.norm(weight), path


@pytest.mark.parametrize("options", [o for o in RICH if "init" not in o])
def test_macai_reads_every_kind_that_peft_writes(tiny, tiny_dir, tmp_path, options):
    peft = pytest.importorskip("peft")
    import torch

    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "up_proj"]
    config = peft.LoraConfig(
        r=6, lora_alpha=9, task_type="CAUSAL_LM", target_modules=targets, **options
    )
    tuned = peft.get_peft_model(torch_model(tiny_dir), config).eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    tuned.save_pretrained(tmp_path)
    before = tiny.model(mx.array(IDS))
    load_adapter(tiny, tmp_path)
    ours = tiny.model(mx.array(IDS))
    assert difference(ours, torch_logits(tuned)) < TOLERANCE
    assert difference(ours, before) > 1e-2
    fuse(tiny)
    assert difference(tiny.model(mx.array(IDS)), torch_logits(tuned)) < TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
        {"target_modules": ["v_proj"], "lora_dropout": 0.1},
        {"target_modules": ["v_proj"], "layers_to_transform": [1]},
        {"target_modules": r".*layers\.0\.mlp\.(up|gate)_proj", "init_lora_weights": "gaussian"},
    ],
)
def test_macai_reads_what_peft_wrote(tiny, tiny_dir, tmp_path, options):
    peft = pytest.importorskip("peft")
    import torch

    torch.manual_seed(0)
    config = peft.LoraConfig(r=6, lora_alpha=9, task_type="CAUSAL_LM", **options)
    tuned = peft.get_peft_model(torch_model(tiny_dir), config).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(tmp_path)
    before = tiny.model(mx.array(IDS))
    read = load_adapter(tiny, tmp_path)
    assert (read.sizes.rank, read.base) == (6, None)
    ours = tiny.model(mx.array(IDS))
    assert difference(ours, torch_logits(tuned)) < TOLERANCE
    assert difference(ours, before) > 1e-2


@pytest.mark.parametrize(
    "options",
    [
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"init_lora_weights": "pissa"},
        {"trainable_token_indices": [1, 2]},
    ],
)
def test_what_macai_cannot_represent_is_refused(tiny, tiny_dir, tmp_path, options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)
    peft.get_peft_model(torch_model(tiny_dir), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError):
        load_adapter(tiny, tmp_path)


@pytest.mark.parametrize("copied", [True, False])
def test_an_adapted_head_loads_unless_peft_put_a_copy_of_the_base_head_beside_it(
    tiny, tiny_dir, tmp_path, copied
):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(torch_model(tiny_dir), config)
    tuned.save_pretrained(tmp_path, save_embedding_layers=copied)
    if copied:
        with pytest.raises(AdapterError, match=r"lm_head\.base_layer\.weight is no A or B"):
            load_adapter(tiny, tmp_path)
    else:
        load_adapter(tiny, tmp_path)
        assert list(lora_layers(tiny.model)) == ["lm_head"]


def test_a_file_of_pefts_gets_no_identity_and_keeps_its_base_name(tiny_dir, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(torch_model(tiny_dir), config).save_pretrained(tmp_path)
    assert "macai" not in json.loads((tmp_path / CONFIG).read_text())
    read = load_adapter(load_model(tiny_dir), tmp_path)
    assert (read.base, read.base_name) == (None, str(tiny_dir))
