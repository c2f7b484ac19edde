"""What a picture will look like while it is made, in terminals that show pictures."""

import base64
import io
import os
from collections.abc import Callable, Mapping

import mlx.core as mx
import numpy as np
from PIL import Image

from macai.diffusion.latents import Latents
from macai.diffusion.models.autoencoder_kl import AutoencoderKL
from macai.diffusion.models.autoencoder_tiny import AutoencoderTiny

SIDE = 4  # of the flat latents whose colours make the linear preview
STEP = 1.0  # in latents as the U-Net sees them, whose spread is about 1
CHUNK = 4096  # bytes of base64 in one kitty escape

Preview = Callable[[mx.array], np.ndarray]
"""Latents [B, h, w, C] as the U-Net sees them -> uint8 [h, w, 3] or larger, of the first."""


def linear_preview(vae: AutoencoderKL) -> Preview:
    """Return a preview that takes each latent for one colour, linear in its channels.

    The colours are the decoder's own: of flat latents, at zero and one step up each channel.
    """
    scaled, channels = Latents(vae), vae.config.latent_channels
    probes = mx.concatenate([mx.zeros((1, channels)), STEP * mx.eye(channels)])
    flat = mx.broadcast_to(probes[:, None, None], (channels + 1, SIDE, SIDE, channels))
    dtype = vae.decoder.conv_in.weight.dtype
    decoded = vae.decode(scaled.restore(flat).astype(dtype)).astype(mx.float32)
    colours = np.array(decoded.mean(axis=(1, 2)))
    base, slopes = colours[0], (colours[1:] - colours[0]) / STEP

    def preview(latents: mx.array) -> np.ndarray:
        return _bytes(np.array(latents[0]) @ slopes + base)

    return preview


def tiny_preview(vae: AutoencoderTiny) -> Preview:
    """Return a preview that decodes with TAESD, which takes the U-Net's latents as they are."""

    def preview(latents: mx.array) -> np.ndarray:
        decoded = vae.decode(latents[:1].astype(vae.decoder.layers[0].weight.dtype))
        return _bytes(np.array(decoded[0].astype(mx.float32)))

    return preview


def inline_image(
    picture: np.ndarray, *, rows: int = 12, environment: Mapping[str, str] | None = None
) -> str | None:
    """Return what shows a picture in this terminal; None if it is not known to show any.

    Args:
        picture: uint8 [H, W, 3].
        rows: How many lines of text it is high.
        environment: To tell the terminal by; this process's if None.

    Sources: iTerm2's inline images protocol, kitty's terminal graphics protocol.
    """
    kind = _protocol(os.environ if environment is None else environment)
    if kind is None:
        return None
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    data = base64.standard_b64encode(file.getvalue()).decode()
    if kind == "iterm":
        return f"\x1b]1337;File=inline=1;height={rows};size={len(file.getvalue())}:{data}\a\n"
    chunks = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
    head = f"a=T,f=100,r={rows},"
    escapes = [
        f"\x1b_G{head if i == 0 else ''}m={int(i + 1 < len(chunks))};{chunk}\x1b\\"
        for i, chunk in enumerate(chunks)
    ]
    return "".join(escapes) + "\n"


def _protocol(environment: Mapping[str, str]) -> str | None:
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if environment.get("TMUX") or term.startswith(("screen", "tmux")):
        return None  # they swallow what they do not know
    if "kitty" in term or term == "xterm-ghostty" or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "vscode", "mintty"):
        return "iterm"
    return None


def _bytes(x: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] -> uint8."""
    return np.round(np.clip(np.nan_to_num(x) / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
