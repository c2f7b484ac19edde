"""config.json of the U-Nets and ControlNets of Stable Diffusion, as diffusers 0.42 reads it.

A key that changes what these models compute, and has a value that is not supported, is an error.
Keys that only other families' blocks read (cross_attention_norm, resnet_out_scale_factor, ...) are
ignored: those blocks themselves are refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from macai.diffusion.models.configs import read_config, unsupported
from macai.diffusion.models.resnet import ACTIVATIONS
from macai.errors import ModelError

T = TypeVar("T")
PerLayer = int | tuple[int, ...]  # of each layer of a block, or one for all

# What a key may be; anything else is another model's.
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
    "act_fn": tuple(ACTIVATIONS),
    "class_embed_type": (None, "timestep", "identity", "projection"),
    "addition_embed_type": (None, "text_time"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
}
_PER_BLOCK = (
    "down_block_types",
    "up_block_types",
    "only_cross_attention",
    "layers_per_block",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "attention_head_dim",
    "num_attention_heads",
)
_POSITIVE = (
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "attention_head_dim",
    "norm_num_groups",
    "conv_in_kernel",
    "conv_out_kernel",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserConfig:
    """The keys that a U-Net and a ControlNet have in common, with diffusers' defaults.

    attention_head_dim is the NUMBER of heads: an old mistake of diffusers that all files repeat.
    """

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = _SUPPORTED

    in_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    dropout: float = 0.0
    act_fn: str = "silu"
    norm_num_groups: int | None = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[PerLayer, ...] = 1
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    use_linear_projection: bool = False
    class_embed_type: str | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    num_class_embeds: int | None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: str = "default"
    projection_class_embeddings_input_dim: int | None = None

    def __post_init__(self) -> None:
        model = type(self).__name__.removesuffix("Config")
        for key, known in self.supported.items():
            value = getattr(self, key)
            if any(v not in known for v in (value if isinstance(value, tuple) else (value,))):
                raise unsupported(model, key, value, known=", ".join(map(str, known)))
        wrong = list(self._wrong()) or list(self._disagreeing())
        if wrong:
            raise ModelError(f"{model}'s config.json: {'; '.join(wrong)}", hint="is it whole?")

    def _wrong(self) -> Iterator[str]:
        """Yield what is wrong in a key by itself."""
        blocks = len(self.block_out_channels)
        if not blocks:
            yield "block_out_channels is empty"
        for key in _PER_BLOCK:
            value = getattr(self, key, None)
            if isinstance(value, tuple) and len(value) != blocks:
                yield f"{key} has {len(value)} entries for {blocks} of block_out_channels"
        for key in _POSITIVE:
            value = getattr(self, key, 1)
            if any(not v or v < 1 for v in (value if isinstance(value, tuple) else (value,))):
                yield f"{key} is {value}"

    def _disagreeing(self) -> Iterator[str]:
        """Yield which keys do not go together."""
        channels = list(self.block_out_channels)
        if any(c % self.groups for c in channels):
            yield f"norm_num_groups {self.groups} does not divide block_out_channels {channels}"
        if any(h > c for h, c in zip(self.heads, channels, strict=True)):
            yield f"more heads (attention_head_dim) than block_out_channels {channels}"
        yield from _too_short(self, "transformer_layers_per_block", self.layers)
        text_time = self.addition_embed_type == "text_time"
        projected = self.class_embed_type in ("projection", "simple_projection")
        needed = {
            "addition_time_embed_dim": text_time,
            "projection_class_embeddings_input_dim": text_time or projected,
            "encoder_hid_dim": self.encoder_hid_dim_type is not None,
        }
        yield from (f"{k} is missing" for k, n in needed.items() if n and getattr(self, k) is None)

    @property
    def groups(self) -> int:
        """Groups of every norm."""
        assert self.norm_num_groups is not None
        return self.norm_num_groups

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each block."""
        return self.per_block(self.num_attention_heads or self.attention_head_dim)

    @property
    def layers(self) -> tuple[int, ...]:
        """Residual blocks of each block on the way down."""
        return self.per_block(self.layers_per_block)

    @property
    def transformer_layers(self) -> tuple[tuple[int, ...], ...]:
        """Transformer blocks of each layer of each block on the way down."""
        values: tuple[PerLayer, ...] = self.per_block(self.transformer_layers_per_block)
        return _per_layer(values, self.layers)

    @property
    def time_width(self) -> int:
        """Width of the time embedding."""
        return self.block_out_channels[0] * 4

    @property
    def blocks_time_width(self) -> int:
        """Width of the embedding that the blocks are given."""
        return self.time_width

    def per_block(self, value: T | tuple[T, ...]) -> tuple[T, ...]:
        """Return a value for each block, whether the config has a list or one for all."""
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)


@dataclass(frozen=True, slots=True, kw_only=True)
class UNet2DConditionConfig(DenoiserConfig):
    """The keys of a U-Net's config.json that its computation depends on."""

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = _SUPPORTED | {
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "mid_block_type": (*_SUPPORTED["mid_block_type"], None),
        "class_embed_type": (*_SUPPORTED["class_embed_type"], "simple_projection"),
        "num_attention_heads": (None,),
        "dual_cross_attention": (False,),
        "attention_type": ("default",),
        "time_embedding_type": ("positional",),
        "time_embedding_act_fn": (None, *ACTIVATIONS),
        "timestep_post_act": (None, *ACTIVATIONS),
    }

    sample_size: int | tuple[int, ...] | None = None
    out_channels: int = 4
    center_input_sample: bool = False
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    reverse_transformer_layers_per_block: tuple[PerLayer, ...] | None = None
    dual_cross_attention: bool = False
    attention_type: str = "default"
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    time_embedding_act_fn: str | None = None
    timestep_post_act: str | None = None
    time_cond_proj_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    class_embeddings_concat: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "UNet2DConditionConfig":
        """Read a config.json; ModelError names what is wrong in it or not supported."""
        return read_config(cls, config)

    def _disagreeing(self) -> Iterator[str]:
        # Not super(): a dataclass with slots is another class than the one a method closes over.
        yield from DenoiserConfig._disagreeing(self)
        per_block = self.transformer_layers_per_block
        reverse = "reverse_transformer_layers_per_block"
        if self.reverse_transformer_layers_per_block is not None:
            yield from _too_short(self, reverse, self.up_layers)
        elif isinstance(per_block, tuple) and any(isinstance(v, tuple) for v in per_block):
            yield f"{reverse} is missing, and transformer_layers_per_block has lists in it"

    @property
    def up_layers(self) -> tuple[int, ...]:
        """Residual blocks of each block on the way up."""
        return tuple(n + 1 for n in reversed(self.layers))

    @property
    def up_transformer_layers(self) -> tuple[tuple[int, ...], ...]:
        """Transformer blocks of each layer of each block on the way up."""
        down: tuple[PerLayer, ...] = self.per_block(self.transformer_layers_per_block)
        up = self.reverse_transformer_layers_per_block or down[::-1]
        return _per_layer(up, self.up_layers)

    @property
    def time_width(self) -> int:
        """Width of the time embedding."""
        return self.time_embedding_dim or self.block_out_channels[0] * 4

    @property
    def blocks_time_width(self) -> int:
        """Width of the embedding that the blocks are given."""
        return self.time_width * (2 if self.class_embeddings_concat else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlNetConfig(DenoiserConfig):
    """The keys of a ControlNet's config.json that its computation depends on."""

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = _SUPPORTED | {
        "class_embed_type": (None, "identity", "projection"),
        "controlnet_conditioning_channel_order": ("rgb", "bgr"),
    }

    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: str = "rgb"
    global_pool_conditions: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "ControlNetConfig":
        """Read a config.json; ModelError names what is wrong in it or not supported."""
        return read_config(cls, config)


def _per_layer(
    values: tuple[PerLayer, ...], layers: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    return tuple(
        value[:n] if isinstance(value, tuple) else (value,) * n
        for value, n in zip(values, layers, strict=True)
    )


def _too_short(config: DenoiserConfig, key: str, layers: tuple[int, ...]) -> Iterator[str]:
    values: tuple[PerLayer, ...] = config.per_block(getattr(config, key))
    for value, n in zip(values, layers, strict=True):
        if isinstance(value, tuple) and len(value) < n:
            yield f"{key} has {list(value)} for {n} layers"
