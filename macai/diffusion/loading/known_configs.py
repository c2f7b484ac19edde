"""The configs that a single file does not bring: those of the published models of each version.

Facts from the config.json files of the models' own diffusers folders; what has diffusers' default
there and changes nothing here is left out.
"""

from typing import Any

Config = dict[str, Any]

KINDS = ("sd1", "sd2", "sdxl", "sdxl-refiner")
"""Versions with known configs; a folder of other sizes is "custom"."""

_UNET: Config = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
}
_CROSS = {"down": "CrossAttnDownBlock2D", "up": "CrossAttnUpBlock2D"}
_FOUR: Config = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*[_CROSS["down"]] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *[_CROSS["up"]] * 3],
}
_XL: Config = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "sample_size": 128,
    "use_linear_projection": True,
}
UNETS: dict[str, Config] = {
    "sd1": _UNET | _FOUR | {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
    "sd2": _UNET
    | _FOUR
    | {
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "sample_size": 96,
        "upcast_attention": True,
        "use_linear_projection": True,
    },
    "sdxl": _UNET
    | _XL
    | {
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", _CROSS["down"], _CROSS["down"]],
        "projection_class_embeddings_input_dim": 2816,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": [_CROSS["up"], _CROSS["up"], "UpBlock2D"],
    },
    "sdxl-refiner": _UNET
    | _XL
    | {
        "attention_head_dim": [6, 12, 24, 24],
        "block_out_channels": [384, 768, 1536, 1536],
        "cross_attention_dim": 1280,
        "down_block_types": ["DownBlock2D", _CROSS["down"], _CROSS["down"], "DownBlock2D"],
        "projection_class_embeddings_input_dim": 2560,
        "transformer_layers_per_block": 4,
        "up_block_types": ["UpBlock2D", _CROSS["up"], _CROSS["up"], "UpBlock2D"],
    },
}
_UP_ONLY = ("center_input_sample", "out_channels", "sample_size", "up_block_types")


def controlnet(kind: str) -> Config:
    """Return the config of a ControlNet for a version: its U-Net's, and of the hint's embedding."""
    unet = {k: v for k, v in UNETS[kind].items() if k not in _UP_ONLY}
    return unet | {
        "_class_name": "ControlNetModel",
        "conditioning_embedding_out_channels": [16, 32, 96, 256],
        "controlnet_conditioning_channel_order": "rgb",
    }


def vae(kind: str) -> Config:
    """Return the config of a version's autoencoder: they differ in the scale of their latents."""
    xl = kind.startswith("sdxl")
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "force_upcast": xl,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 1024 if xl else 512,
        "scaling_factor": 0.13025 if xl else 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }


_TEXT: Config = {
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "pad_token_id": 1,
    "vocab_size": 49408,
}
_VIT_L: Config = _TEXT | {
    "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
_BIG_G: Config = _TEXT | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
TEXT_ENCODERS: dict[str, dict[str, Config]] = {
    "sd1": {"text_encoder": _VIT_L},
    "sd2": {
        # OpenCLIP's H without its last layer, which SD2 does not use.
        "text_encoder": _VIT_L
        | {
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 23,
            "projection_dim": 512,
        },
    },
    "sdxl": {"text_encoder": _VIT_L, "text_encoder_2": _BIG_G},
    "sdxl-refiner": {"text_encoder_2": _BIG_G},
}
"""The text encoders of each version by component."""

_END, _ZERO = {"pad_token": "<|endoftext|>"}, {"pad_token": "!"}
TOKENIZERS: dict[str, dict[str, Config]] = {
    "sd1": {"tokenizer": _END},
    "sd2": {"tokenizer": _ZERO},
    "sdxl": {"tokenizer": _END, "tokenizer_2": _ZERO},
    "sdxl-refiner": {"tokenizer_2": _ZERO},
}
"""What a version's tokenizers pad with; the vocabulary is CLIP's in all of them."""

PIPELINES: dict[str, Config] = {
    "sd1": {"_class_name": "StableDiffusionPipeline"},
    "sd2": {"_class_name": "StableDiffusionPipeline"},
    "sdxl": {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
    },
    "sdxl-refiner": {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "force_zeros_for_empty_prompt": False,
        "requires_aesthetics_score": True,
    },
}

_SCHEDULE: Config = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
SCHEDULERS: dict[str, Config] = {
    "sd1": _SCHEDULE | {"_class_name": "PNDMScheduler"},
    "sd2": _SCHEDULE | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "sdxl": _SCHEDULE
    | {
        "_class_name": "EulerDiscreteScheduler",
        "interpolation_type": "linear",
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
}
SCHEDULERS["sdxl-refiner"] = SCHEDULERS["sdxl"]
LCM: Config = _SCHEDULE | {
    "_class_name": "LCMScheduler",
    "original_inference_steps": 50,
    "set_alpha_to_one": True,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
}
"""The scheduler of a model distilled to a few steps (arXiv:2310.04378), whatever its version."""
