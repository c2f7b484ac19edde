"""A complete model directory made in a few milliseconds: random weights, real tokenizer."""

from pathlib import Path

import mlx.core as mx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from macai.files import write_json
from macai.models.arrays import named_arrays, save_arrays

BEGIN, END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
VOCAB_SIZE = 512
CONTEXT = 512

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

CORPUS = (
    "user system assistant The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "Set an alarm for half past six. Turn on the light in the kitchen. Play some music.",
    '{"intent":"alarm.set","time":"06:30","day":"tomorrow"} {"intent":"light.on"}',
    "def total(values):\n    return sum(value for value in values)\n",
    "Größe, naïve, été, 日本語のテスト, привет мир, 🙂🐋🎉 numbers 0123456789",
)


def tiny_model_dir(path: Path, *, seed: int = 0) -> Path:
    """Write a llama of 2 layers and width 64 with a byte-level BPE tokenizer and a ChatML template.

    Its embeddings are not tied: a random model with tied ones only repeats the last token.
    """
    from mlx_lm.models.llama import Model, ModelArgs

    path.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(path / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    end, begin = tokenizer.token_to_id(END), tokenizer.token_to_id(BEGIN)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": size,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": begin,
        "eos_token_id": end,
        "torch_dtype": "float32",
    }
    write_json(path / "config.json", config)
    write_json(path / "generation_config.json", {"bos_token_id": begin, "eos_token_id": end})
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END_OF_TEXT}
    write_json(
        path / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHATML, **special},
    )
    mx.random.seed(seed)
    model = Model(ModelArgs.from_dict(config))
    save_arrays(path / "model.safetensors", named_arrays(model.parameters()), {"format": "pt"})
    return path


def tiny_tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer: every text survives a round trip through its ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer
