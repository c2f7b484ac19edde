"""The same function in a louder residual stream: models whose values float16 cannot hold."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from macai.models.load import load_model


def louder(source: Path, folder: Path, factor: float) -> Path:
    """Write a llama whose residual stream is `factor` times as large, and nothing else is.

    What is added to the stream is scaled, and so is the epsilon of the norms that read it; the head
    gets weights of its own, which are the embedding as it was. For a power of two all is exact.
    """
    folder.mkdir()
    weights = dict(tree_flatten(load_model(source).model.parameters()))
    weights["lm_head.weight"] = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    for path, weight in weights.items():
        if path.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            weights[path] = weight * factor
    config = json.loads((source / "config.json").read_text())
    config |= {"tie_word_embeddings": False, "rms_norm_eps": config["rms_norm_eps"] * factor**2}
    config = {k: v for k, v in config.items() if not k.startswith("quantization")}
    (folder / "config.json").write_text(json.dumps(config))
    for file in source.glob("*.json"):
        if file.name not in ("config.json", "model.safetensors.index.json"):
            shutil.copy(file, folder)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder
