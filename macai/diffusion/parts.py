"""The components of a checkpoint, loaded when they are first asked for and let go when done."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macai.diffusion.conditioning import TextEncoder
from macai.diffusion.loading import Checkpoint
from macai.diffusion.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from macai.diffusion.models.clip_text import CLIPTextConfig
from macai.diffusion.models.sparing import spare_memory
from macai.diffusion.models.tiling import decode_tiled, one_at_a_time
from macai.diffusion.models.unet_2d_condition import UNet2DConditionConfig, UNet2DConditionModel
from macai.diffusion.tokenizer import ClipTokenizer
from macai.errors import ModelError

TEXT = ("text_encoder", "text_encoder_2")
SHARE = 0.6  # of the machine's memory that weights may take before parts are let go
TILE = 64  # latents a side of a tile is long: 512 pixels

Prepare = Callable[[str, nn.Module], None]
"""Component name and module, right after it was loaded: adapters go in here."""


class Parts:
    """A model's components, by the names diffusers gives them."""

    def __init__(
        self,
        source: Checkpoint,
        *,
        vae: Checkpoint | None = None,
        prepare: Prepare | None = None,
        short_memory: bool | None = None,
        tile: bool = False,
    ) -> None:
        """Describe a model; nothing is loaded yet.

        Args:
            source: An opened checkpoint.
            vae: Another checkpoint, whose autoencoder is used instead.
            prepare: Called with every component that is loaded.
            short_memory: Let the text encoders go before the U-Net is loaded, and the U-Net before
                the picture is decoded, and compute piece by piece; None decides by the machine's
                memory.
            tile: Decode large pictures tile by tile.

        Raises:
            ModelError: a part that no picture can be made without is missing.
        """
        if missing := [name for name in ("unet", "vae") if name not in source.configs]:
            raise ModelError(
                f"the checkpoint has no {' and no '.join(missing)}",
                hint="give the folder with model_index.json, or one file with the whole model",
            )
        self.source = source
        if vae is not None and "vae" not in vae.configs:
            raise ModelError(
                f"{vae.path}: no autoencoder in it", hint=f"it has {', '.join(vae.components)}"
            )
        self.scheduler_config = source.scheduler_config
        self.unet_config = UNet2DConditionConfig.from_dict(source.configs["unet"])
        self._vae_source = vae or source
        self.vae_config = AutoencoderKLConfig.from_dict(self._vae_source.configs["vae"])
        self._prepare = prepare
        self._tile = tile
        self._loaded: dict[str, nn.Module] = {}
        self.text_names = [name for name in TEXT if name in source.configs]
        if not self.text_names:
            raise ModelError("the checkpoint has no text encoder", hint="is the copy complete?")
        self.text_configs = [
            CLIPTextConfig.from_dict(source.configs[name]) for name in self.text_names
        ]
        if short_memory is None:
            short_memory = self._bytes() > SHARE * machine_bytes()
        self.short_memory = short_memory

    @property
    def latents_factor(self) -> int:
        """Pixels a latent is wide."""
        return self.vae_config.spatial_scale_factor

    @property
    def latent_channels(self) -> int:
        """Channels of the VAE's latents."""
        return self.vae_config.latent_channels

    @property
    def time_ids(self) -> int | None:
        """How many sizes an XL U-Net is told: 6, or 5 for the refiner; None for other U-Nets."""
        return time_ids_of(self.source.configs, self.text_names)

    @property
    def zeros_without_negative(self) -> bool:
        """Whether the U-Net is told zeros where there is no negative prompt, as SDXL is."""
        index = self.source.configs.get("pipeline", {})
        return self.time_ids is not None and bool(index.get("force_zeros_for_empty_prompt", True))

    @cached_property
    def tokenizers(self) -> Sequence[ClipTokenizer]:
        """The tokenizer of each text encoder."""
        return [self.source.tokenizer(name) for name in self.text_names]

    @property
    def text_encoders(self) -> Sequence[TextEncoder]:
        """The text encoders, one or two."""
        return [self._part(name) for name in self.text_names]  # type: ignore[misc]

    @property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser."""
        return self._part("unet")  # type: ignore[return-value]

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder."""
        return self._part("vae")  # type: ignore[return-value]

    def done_with_text(self) -> None:
        """Let the text encoders go, where memory is short."""
        if self.short_memory:
            self._release(*self.text_names)

    def done_with_unet(self) -> None:
        """Let the U-Net go, where memory is short."""
        if self.short_memory:
            self._release("unet")

    def decode(self, latents: mx.array) -> mx.array:
        """Return pictures [B, H, W, 3] of the VAE's own latents [B, h, w, C]."""
        self.done_with_unet()
        vae = self.vae
        latents = latents.astype(vae.decoder.conv_in.weight.dtype)

        def decode(z: mx.array) -> mx.array:
            return decode_tiled(vae, z, tile=TILE) if self._tile else vae.decode(z)

        return one_at_a_time(decode, latents)

    def _part(self, name: str) -> nn.Module:
        if name not in self._loaded:
            module = self._load_vae() if name == "vae" else self.source.load(name)
            if self._prepare is not None:
                self._prepare(name, module)
            if self.short_memory:
                spare_memory(module)
            self._loaded[name] = module
        return self._loaded[name]

    def _load_vae(self) -> nn.Module:
        source = self._vae_source
        # SDXL's own overflows float16: its config says so, and diffusers decodes in float32.
        overflows = bool(source.configs["vae"].get("force_upcast"))
        if overflows and isinstance(source, Checkpoint) and source.precision.dtype == "float16":
            return source.load("vae", dtype="float32")
        return source.load("vae")

    def _release(self, *names: str) -> None:
        for name in names:
            self._loaded.pop(name, None)
        mx.clear_cache()

    def _bytes(self) -> int:
        names = (*self.text_names, "unet")
        return sum(map(self.source.bytes, names)) + self._vae_source.bytes("vae")


def time_ids_of(configs: Mapping[str, Mapping[str, Any]], text_names: Sequence[str]) -> int | None:
    """Return how many sizes the U-Net of a model with these configs is told; see Parts.time_ids."""
    config = UNet2DConditionConfig.from_dict(configs["unet"])
    if config.addition_embed_type != "text_time":
        return None
    text = configs[text_names[-1]]["projection_dim"]
    assert config.projection_class_embeddings_input_dim is not None
    assert config.addition_time_embed_dim is not None
    rest = config.projection_class_embeddings_input_dim - text
    return int(rest) // config.addition_time_embed_dim


def machine_bytes() -> int:
    """Return the memory that MLX may fill on this machine."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
