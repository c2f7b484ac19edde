"""The same models in transformers and diffusers; torch is imported when one is made."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.diffusion.models.text_vae_cases import random_weights


def text_encoder(config: Mapping[str, Any]) -> tuple[Any, dict[str, np.ndarray]]:
    """Return transformers' model of a config and its random weights, by its own names."""
    import transformers

    keys = {k: v for k, v in config.items() if k != "architectures"}
    text_config = transformers.CLIPTextConfig(**keys, attn_implementation="eager")
    return _with_random_weights(getattr(transformers, config["architectures"][0])(text_config))


def text_states(model: Any, ids: np.ndarray) -> dict[str, Any]:
    """Return what transformers computes of ids int [B, L], by the names of CLIPTextOutput."""
    import torch

    with torch.no_grad():
        out = model(torch.from_numpy(ids).long(), output_hidden_states=True)
    states = {"last_hidden_state": out.last_hidden_state.numpy()}
    states["hidden_states"] = [state.numpy() for state in out.hidden_states]
    if "pooler_output" in out:
        states["pooled_output"] = out.pooler_output.numpy()
    if "text_embeds" in out:
        states["text_embeds"] = out.text_embeds.numpy()
    return states


def autoencoder(config: Mapping[str, Any]) -> tuple[Any, dict[str, np.ndarray]]:
    """Return diffusers' model of a config and its random weights, by its own names."""
    import diffusers

    return _with_random_weights(getattr(diffusers, config["_class_name"]).from_config(config))


def encoded(model: Any, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Return mean, and logvar if there is one, [B, h, w, C], of pictures [B, H, W, 3]."""
    import torch

    with torch.no_grad():
        out = model.encode(nchw(pictures))
    if "latents" in out:
        return {"mean": nhwc(out.latents)}
    return {"mean": nhwc(out.latent_dist.mean), "logvar": nhwc(out.latent_dist.logvar)}


def decoded(model: Any, latents: np.ndarray) -> np.ndarray:
    """Return the pictures [B, H, W, 3] of latents [B, h, w, C]."""
    import torch

    with torch.no_grad():
        return nhwc(model.decode(nchw(latents)).sample)


def nchw(x: np.ndarray) -> Any:
    """Return a torch tensor [B, C, H, W] of x [B, H, W, C]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def nhwc(tensor: Any) -> np.ndarray:
    """Return an array [B, H, W, C] of a torch tensor [B, C, H, W]."""
    return np.ascontiguousarray(np.moveaxis(tensor.numpy(), 1, -1))


def _with_random_weights(model: Any) -> tuple[Any, dict[str, np.ndarray]]:
    import torch

    torch.set_num_threads(1)
    weights = random_weights({n: tuple(t.shape) for n, t in model.state_dict().items()})
    tensors = {n: torch.from_numpy(a) for n, a in weights.items()}
    model.load_state_dict(tensors, assign=True)  # no second copy of a full-size model
    return model.eval(), weights
