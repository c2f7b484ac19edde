"""GGUF, the file of llama.cpp: one file with weights, tokenizer and chat template.

To add an architecture, add its table to ARCHITECTURES: what Hugging Face calls each tensor and what
shape it has. Everything else about the format is in `macai/models/gguf/`.
"""

from pathlib import Path

from macai.files import write_json
from macai.models.converter import Converter, Dtype, Progress
from macai.models.gguf.architecture import Architecture, Slot, choose, config_of, slots_of
from macai.models.gguf.reader import MAGIC, read_gguf
from macai.models.gguf.shards import Output, write_shards
from macai.models.gguf.tokenizer import write_tokenizer
from macai.models.gguf.vocabulary import SpecialIds, read_vocabulary
from macai.models.gguf.weights import computing_dtype, plan, quantization

OUTER = {
    "token_embd.weight": Slot("model.embed_tokens.weight", ("vocab", "hidden")),
    "output_norm.weight": Slot("model.norm.weight", ("hidden",)),
    "output.weight": Slot("lm_head.weight", ("vocab", "hidden")),
}

NORMS = {
    "attn_norm.weight": Slot("input_layernorm.weight", ("hidden",)),
    "ffn_norm.weight": Slot("post_attention_layernorm.weight", ("hidden",)),
}

ATTENTION = {
    "attn_q.weight": Slot("self_attn.q_proj.weight", ("q", "hidden")),
    "attn_k.weight": Slot("self_attn.k_proj.weight", ("kv", "hidden")),
    "attn_v.weight": Slot("self_attn.v_proj.weight", ("kv", "hidden")),
    "attn_output.weight": Slot("self_attn.o_proj.weight", ("hidden", "q")),
}

ATTENTION_BIASES = {
    "attn_q.bias": Slot("self_attn.q_proj.bias", ("q",)),
    "attn_k.bias": Slot("self_attn.k_proj.bias", ("kv",)),
    "attn_v.bias": Slot("self_attn.v_proj.bias", ("kv",)),
}

MLP = {
    "ffn_gate.weight": Slot("mlp.gate_proj.weight", ("ffn", "hidden")),
    "ffn_up.weight": Slot("mlp.up_proj.weight", ("ffn", "hidden")),
    "ffn_down.weight": Slot("mlp.down_proj.weight", ("hidden", "ffn")),
}

MLP_BIASES = {
    "ffn_gate.bias": Slot("mlp.gate_proj.bias", ("ffn",)),
    "ffn_up.bias": Slot("mlp.up_proj.bias", ("ffn",)),
    "ffn_down.bias": Slot("mlp.down_proj.bias", ("hidden",)),
}

# llama.cpp rotates neighbouring values of q and k for this architecture only.
LLAMA_Q_AND_K = {
    "attn_q.weight": Slot("self_attn.q_proj.weight", ("q", "hidden"), heads="q"),
    "attn_k.weight": Slot("self_attn.k_proj.weight", ("kv", "hidden"), heads="kv"),
}

LLAMA_ATTENTION_BIASES = {
    "attn_q.bias": Slot("self_attn.q_proj.bias", ("q",), heads="q"),
    "attn_k.bias": Slot("self_attn.k_proj.bias", ("kv",), heads="kv"),
    "attn_v.bias": Slot("self_attn.v_proj.bias", ("kv",)),
    "attn_output.bias": Slot("self_attn.o_proj.bias", ("hidden",)),
}

HEAD_NORMS = {
    "attn_q_norm.weight": Slot("self_attn.q_norm.weight", ("head",)),
    "attn_k_norm.weight": Slot("self_attn.k_norm.weight", ("head",)),
}

ARCHITECTURES = {
    "llama": Architecture(
        model_type="llama",
        class_name="LlamaForCausalLM",
        tensors=OUTER,
        layer_tensors=NORMS | ATTENTION | LLAMA_Q_AND_K | MLP,
        optional={"attention_bias": LLAMA_ATTENTION_BIASES, "mlp_bias": MLP_BIASES},
        ignored=frozenset({"tensor_data_layout"}),
    ),
    "qwen2": Architecture(
        model_type="qwen2",
        class_name="Qwen2ForCausalLM",
        config={"use_sliding_window": False},
        tensors=OUTER,
        layer_tensors=NORMS | ATTENTION | ATTENTION_BIASES | MLP,
        pre_tokenizers=frozenset({"qwen2", "deepseek-r1-qwen"}),
    ),
    "qwen3": Architecture(
        model_type="qwen3",
        class_name="Qwen3ForCausalLM",
        config={"attention_bias": False, "use_sliding_window": False},
        tensors=OUTER,
        layer_tensors=NORMS | ATTENTION | HEAD_NORMS | MLP,
    ),
}


def matches(path: Path) -> bool:
    """Whether `path` is a file that starts as GGUF does, or is named so."""
    try:
        with path.open("rb") as f:
            return f.read(4) == MAGIC or path.suffix.lower() == ".gguf"
    except OSError:
        return False


def convert(source: Path, out: Path, dtype: Dtype, progress: Progress) -> None:
    """Write the GGUF file `source` as a Hugging Face model directory into the folder `out`.

    Raises:
        FormatError: `source` is not a sound GGUF file.
        ModelError: it holds something that has no place in such a directory.
    """
    gguf = read_gguf(source)
    architecture = choose(gguf, ARCHITECTURES)
    vocabulary = read_vocabulary(gguf)
    config = config_of(gguf, architecture)
    slots = slots_of(gguf, architecture, config)
    outputs = plan(gguf, slots, config, dtype)

    write_tokenizer(gguf, vocabulary, out, max_length=config["max_position_embeddings"])
    tokens = _token_ids(vocabulary.special)
    config |= tokens | {"torch_dtype": computing_dtype(gguf, dtype)}
    packed = quantization(gguf, slots) if dtype == "keep" else None
    if packed is not None:
        # mlx-lm reads the first; the second is where other tools look.
        config |= {"quantization": packed, "quantization_config": packed}
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", tokens)

    written = 0

    def wrote(_: Output) -> None:
        nonlocal written
        written += 1
        progress("writing weights", written, len(outputs))

    write_shards(out, outputs, wrote)


def _token_ids(special: SpecialIds) -> dict[str, int | list[int]]:
    ids: dict[str, int | list[int]] = {}
    if special.bos is not None:
        ids["bos_token_id"] = special.bos
    ids["eos_token_id"] = list(special.ends) if len(special.ends) > 1 else special.ends[0]
    if special.pad is not None:
        ids["pad_token_id"] = special.pad
    return ids


CONVERTER = Converter(
    name="gguf",
    summary="GGUF files of llama.cpp: llama (also Mistral and SmolLM), qwen2, qwen3",
    matches=matches,
    convert=convert,
)
