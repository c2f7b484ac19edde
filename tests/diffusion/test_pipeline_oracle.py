"""Whole pipelines against diffusers': the same weights, prompt and seed give the same picture.

Long because every kind of pipeline takes other arguments in diffusers; all share small networks.
"""

import inspect
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.loading import open_checkpoint
from macai.diffusion.parts import Parts
from macai.diffusion.pipeline import Pipeline, Request
from macai.diffusion.predict import Control
from macai.diffusion.tokenizer import ClipTokenizer

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers', with NumPy 2
]

PROMPT, NEGATIVE = "A cat, in a hat!", "rain"
SIZE = 64


def text_encoder(torch, *, hidden=32, projection=None, act="quick_gelu"):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_act=act,
        projection_dim=projection or 32,
        vocab_size=49408,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def parts(torch, tokenizer_dir: Path, scheduler, **unet):
    """The components of a tiny SD, as diffusers' pipelines take them."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTokenizer

    torch.manual_seed(0)
    options = {
        "sample_size": SIZE // 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 32, 32),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )
    return {
        "unet": UNet2DConditionModel(**(options | unet)).eval(),
        "vae": vae.eval(),
        "text_encoder": text_encoder(torch),
        "tokenizer": CLIPTokenizer.from_pretrained(tokenizer_dir, model_max_length=77),
        "scheduler": scheduler,
    }


def xl_parts(torch, tokenizer_dir: Path, scheduler, *, ids=6, first=True):
    """The components of a tiny SDXL; of its refiner without the first text encoder."""
    from transformers import CLIPTokenizer

    components = parts(
        torch,
        tokenizer_dir,
        scheduler,
        cross_attention_dim=64 if first else 32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * ids + 32,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
    )
    second = text_encoder(torch, projection=32, act="gelu")
    components |= {
        "text_encoder_2": second,
        "tokenizer_2": CLIPTokenizer.from_pretrained(
            tokenizer_dir, model_max_length=77, pad_token="!"
        ),
    }
    if not first:
        components |= {"text_encoder": None, "tokenizer": None}
    return components


def scheduler(name: str, **changed):
    import diffusers

    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    options |= {"steps_offset": 1} | changed
    cls = getattr(diffusers, name)
    if "clip_sample" in inspect.signature(cls.__init__).parameters:
        options["clip_sample"] = False
    return cls(**options)


@pytest.fixture(scope="module")
def torch():
    import torch

    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    ClipTokenizer.shipped().write(folder)
    return folder


@pytest.fixture
def theirs(torch, tmp_path):
    """Save a diffusers pipeline and open it here: their pipeline and ours."""

    def both(cls, components, **options):
        pipe = cls(**components, **options)
        pipe.set_progress_bar_config(disable=True)
        pipe.save_pretrained(tmp_path / "model")
        return pipe, Pipeline(Parts(open_checkpoint(tmp_path / "model")))

    return both


def unchecked(components):
    """For the pipelines that want a content check."""
    return components | {"safety_checker": None, "feature_extractor": None}


def picture(seed: int = 0) -> np.ndarray:
    """A smooth picture, float32 [1, SIZE, SIZE, 3] in [-1, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE * 2 * np.pi
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0, 3, (3, 3))]
    return np.stack(waves, axis=-1)[None].astype(np.float32)


def half_mask() -> np.ndarray:
    mask = np.zeros((1, SIZE, SIZE, 1), np.float32)
    mask[:, SIZE // 2 :, 8:] = 1
    return mask


def to_torch(torch, image: np.ndarray):
    return torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))


def made(pipeline: Pipeline, request: Request) -> np.ndarray:
    *_, last = pipeline.sample(request)
    return pipeline.decode(last.latents)


def psnr(theirs, ours: np.ndarray) -> float:
    """In dB of pictures in [0, 1], theirs as the pipeline returns them."""
    difference = theirs - np.clip(ours / 2 + 0.5, 0, 1)
    return float(10 * np.log10(1 / np.mean(difference**2).clip(1e-20)))


def generators(torch, count: int, seed: int):
    return [torch.Generator().manual_seed(seed + k) for k in range(count)]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("PNDMScheduler", {"skip_prk_steps": True}),
        ("DDIMScheduler", {"set_alpha_to_one": False}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("HeunDiscreteScheduler", {}),
    ],
)
def test_text_to_image_is_diffusers(torch, theirs, tokenizer_dir, name, ours):
    from diffusers import StableDiffusionPipeline

    components = parts(torch, tokenizer_dir, scheduler(name, **ours))
    pipe, pipeline = theirs(StableDiffusionPipeline, unchecked(components))
    result = pipe(
        [PROMPT] * 2,
        negative_prompt=[NEGATIVE] * 2,
        num_inference_steps=6,
        generator=generators(torch, 2, 7),
        output_type="np",
    ).images
    request = Request(prompt=PROMPT, negative=NEGATIVE, steps=6, seed=7, count=2)
    assert psnr(result, made(pipeline, request)) >= 60


@pytest.mark.parametrize("serial", [False, True])
def test_guidance_and_clip_skip_are_diffusers(torch, theirs, tokenizer_dir, serial, monkeypatch):
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    # diffusers asks for the norm where transformers 4 had it.
    monkeypatch.setattr(CLIPTextModel, "text_model", property(lambda self: self), raising=False)

    components = parts(torch, tokenizer_dir, scheduler("DDIMScheduler"))
    pipe, pipeline = theirs(StableDiffusionPipeline, unchecked(components))
    pipeline.serial = serial
    result = pipe(
        PROMPT,
        num_inference_steps=4,
        guidance_scale=5.0,
        guidance_rescale=0.7,
        clip_skip=1,
        height=SIZE + 8,
        width=SIZE - 16,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images
    request = Request(
        prompt=PROMPT,
        steps=4,
        guidance=5.0,
        rescale=0.7,
        clip_skip=1,
        seed=3,
        height=SIZE + 8,
        width=SIZE - 16,
    )
    assert psnr(result, made(pipeline, request)) >= 60


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
def test_image_to_image_is_diffusers(torch, theirs, tokenizer_dir, strength):
    from diffusers import StableDiffusionImg2ImgPipeline

    components = parts(torch, tokenizer_dir, scheduler("PNDMScheduler", skip_prk_steps=True))
    pipe, pipeline = theirs(StableDiffusionImg2ImgPipeline, unchecked(components))
    result = pipe(
        PROMPT,
        image=to_torch(torch, picture() / 2 + 0.5),
        strength=strength,
        num_inference_steps=10,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    request = Request(prompt=PROMPT, steps=10, seed=5, picture=picture(), strength=strength)
    assert psnr(result, made(pipeline, request)) >= 60


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
def test_inpainting_is_diffusers(torch, theirs, tokenizer_dir, channels, strength, name):
    from diffusers import StableDiffusionInpaintPipeline

    components = parts(torch, tokenizer_dir, scheduler(name), in_channels=channels)
    pipe, pipeline = theirs(StableDiffusionInpaintPipeline, unchecked(components))
    result = pipe(
        PROMPT,
        image=to_torch(torch, picture() / 2 + 0.5),
        mask_image=to_torch(torch, half_mask()),
        height=SIZE,
        width=SIZE,
        strength=strength,
        num_inference_steps=6,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    request = Request(
        prompt=PROMPT, steps=6, seed=5, picture=picture(), mask=half_mask(), strength=strength
    )
    assert psnr(result, made(pipeline, request)) >= 60


def test_control_is_diffusers(torch, theirs, tokenizer_dir, tmp_path):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    components = parts(torch, tokenizer_dir, scheduler("DDIMScheduler"))
    torch.manual_seed(1)
    nets = []
    for _ in range(2):
        net = ControlNetModel.from_unet(
            components["unet"], conditioning_embedding_out_channels=(8, 16, 16, 32)
        )
        for parameter in net.parameters():  # the layers that end one begin as zeros
            parameter.data += 0.02 * torch.randn_like(parameter)
        nets.append(net.eval())
    pipe, pipeline = theirs(
        StableDiffusionControlNetPipeline, unchecked(components) | {"controlnet": nets}
    )
    conditions = [picture(k) / 2 + 0.5 for k in (1, 2)]
    result = pipe(
        PROMPT,
        image=[to_torch(torch, c) for c in conditions],
        num_inference_steps=5,
        controlnet_conditioning_scale=[0.7, 1.2],
        control_guidance_start=[0.0, 0.2],
        control_guidance_end=[0.6, 1.0],
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    controls = []
    for k, (net, start, end, scale) in enumerate(
        [(nets[0], 0.0, 0.6, 0.7), (nets[1], 0.2, 1.0, 1.2)]
    ):
        net.save_pretrained(tmp_path / f"control{k}")
        ours = open_checkpoint(tmp_path / f"control{k}").load("controlnet")
        shown = conditions[k]
        controls.append(
            Control(net=ours, picture=mx.array(shown), scale=scale, start=start, end=end)
        )
    request = Request(prompt=PROMPT, steps=5, seed=5, controls=controls)
    assert psnr(result, made(pipeline, request)) >= 60


@pytest.mark.parametrize("negative", [None, "", NEGATIVE])
def test_xl_is_diffusers_with_and_without_a_negative_prompt(torch, theirs, tokenizer_dir, negative):
    from diffusers import StableDiffusionXLPipeline

    components = xl_parts(torch, tokenizer_dir, scheduler("EulerDiscreteScheduler"))
    pipe, pipeline = theirs(StableDiffusionXLPipeline, components, add_watermarker=False)
    result = pipe(
        PROMPT,
        negative_prompt=negative,
        guidance_scale=5.0,
        num_inference_steps=5,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    request = Request(prompt=PROMPT, negative=negative, guidance=5.0, steps=5, seed=5)
    assert psnr(result, made(pipeline, request)) >= 60


def test_a_refiner_goes_on_where_the_base_ended(torch, theirs, tokenizer_dir, tmp_path):
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

    euler = scheduler("EulerDiscreteScheduler")
    base, ours = theirs(
        StableDiffusionXLPipeline, xl_parts(torch, tokenizer_dir, euler), add_watermarker=False
    )
    components = xl_parts(torch, tokenizer_dir, euler, ids=5, first=False)
    refiner = StableDiffusionXLImg2ImgPipeline(
        **components, requires_aesthetics_score=True, add_watermarker=False
    )
    refiner.set_progress_bar_config(disable=True)
    refiner.save_pretrained(tmp_path / "refiner")
    latents = base(
        PROMPT,
        denoising_end=0.6,
        num_inference_steps=10,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images
    result = refiner(
        PROMPT,
        image=latents,
        denoising_start=0.6,
        num_inference_steps=10,
        guidance_scale=5.0,
        output_type="np",
    ).images
    request = Request(prompt=PROMPT, guidance=5.0, steps=10, seed=5, end=0.6)
    *_, last = ours.sample(request)
    second = Pipeline(Parts(open_checkpoint(tmp_path / "refiner")))
    request = Request(
        prompt=PROMPT, guidance=5.0, steps=10, seed=5, latents=last.latents, start=0.6
    )
    assert psnr(result, made(second, request)) >= 60


def test_a_latent_consistency_model_is_told_its_guidance(torch, theirs, tokenizer_dir):
    from diffusers import LatentConsistencyModelPipeline

    components = parts(torch, tokenizer_dir, scheduler("LCMScheduler"), time_cond_proj_dim=16)
    pipe, pipeline = theirs(
        LatentConsistencyModelPipeline, unchecked(components), requires_safety_checker=False
    )
    result = pipe(
        PROMPT,
        num_inference_steps=4,
        guidance_scale=8.5,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    request = Request(prompt=PROMPT, steps=4, guidance=8.5, seed=5)
    assert psnr(result, made(pipeline, request)) >= 60


@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_a_latent_consistency_model_takes_all_its_steps_from_a_picture(
    torch, theirs, tokenizer_dir, strength
):
    from diffusers import LatentConsistencyModelImg2ImgPipeline

    components = parts(torch, tokenizer_dir, scheduler("LCMScheduler"), time_cond_proj_dim=16)
    pipe, pipeline = theirs(
        LatentConsistencyModelImg2ImgPipeline,
        unchecked(components),
        requires_safety_checker=False,
    )
    result = pipe(
        PROMPT,
        image=to_torch(torch, picture() / 2 + 0.5),
        strength=strength,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    request = Request(
        prompt=PROMPT, steps=4, guidance=8.5, seed=5, picture=picture(), strength=strength
    )
    assert psnr(result, made(pipeline, request)) >= 60
