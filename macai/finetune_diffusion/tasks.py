"""Recipe, base and pictures to what is trained: a LoRA, a U-Net or an autoencoder."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macai.diffusion.conditioning import TextEncoder
from macai.diffusion.latents import Latents
from macai.diffusion.lora.layers import layers_of
from macai.diffusion.lora.names import target_paths
from macai.diffusion.lora.training import add_lora
from macai.diffusion.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from macai.diffusion.models.unet_2d_condition import UNet2DConditionConfig, UNet2DConditionModel
from macai.diffusion.parts import time_ids_of
from macai.diffusion.training.base import Base, require
from macai.diffusion.training.blocks import checkpoint_blocks
from macai.diffusion.training.cache import Cache
from macai.diffusion.training.captions import Captions
from macai.diffusion.training.examples import (
    Batches,
    Example,
    Moments,
    PixelBatches,
    Pixels,
    Randomness,
)
from macai.diffusion.training.losses import Denoising, autoencoder_loss, denoising_loss
from macai.diffusion.training.noising import Noising, TimestepChoice
from macai.errors import ModelError, UsageError
from macai.finetune_diffusion.data import Pictures
from macai.finetune_diffusion.result import (
    BEST,
    DIFFUSERS,
    NAME,
    kohya_file,
    load_best,
    save_best,
    save_lora,
    save_model,
)
from macai.finetune_diffusion.samples import decoder, sampler
from macai.finetune_diffusion.task import Task
from macai.models.arrays import scalar
from macai.recipe import DiffusionRecipe

CACHE = "cache"
SCALED_BY = 256  # pictures that a new autoencoder's scaling_factor is measured with


def make_task(
    recipe: DiffusionRecipe, base: Base, pictures: Pictures, out: Path, side: int, *, workers: int
) -> Task:
    """Return what the recipe trains.

    Args:
        recipe: All of it.
        base: The model.
        pictures: Of the run.
        out: The output folder.
        side: Of the pictures that are sampled.
        workers: Processes that compute; several find what is kept in files, not in memory.

    Raises:
        ModelError: the base has not what is needed.
        UsageError: keys that do not go together.
    """
    if recipe.diffusion.train == "vae":
        return _autoencoder(recipe, base, pictures, out)
    budget = 0 if workers > 1 else int(recipe.data.cache_gib * 2**30)
    return _denoiser(recipe, base, pictures, out, side, Cache(out / CACHE, budget))


def require_parts(recipe: DiffusionRecipe, base: Base) -> None:
    """Raise ModelError or UsageError if the base is not one that the recipe can train."""
    options = recipe.diffusion
    if options.train == "vae":
        if options.vae is not None:
            raise UsageError(
                "diffusion.vae names the autoencoder that a U-Net is trained for",
                hint='with train = "vae" the model itself is the one to start from',
            )
        require(base, "vae")
        return
    require(base, "unet", "vae")
    if not base.text_encoders:
        raise ModelError(f"{base.path}: no text encoder in it", hint="give the whole model")
    config = UNet2DConditionConfig.from_dict(base.configs["unet"])
    latents = AutoencoderKLConfig.from_dict(base.configs["vae"]).latent_channels
    if config.in_channels != latents:
        raise ModelError(
            f"{base.path}: its U-Net takes {config.in_channels} channels, not the {latents} of "
            "latents",
            hint="models for inpainting are not trained; train the model they were made of",
        )
    if config.time_cond_proj_dim is not None:
        raise ModelError(
            f"{base.path}: its U-Net is told the guidance (LCM), which training does not do",
            hint="train the model it was distilled from: the LoRA goes with both",
        )
    if options.train == "lora" and "unet" not in base.weights:
        raise UsageError(
            "a LoRA beside random weights learns nothing", hint='train = "unet" trains them'
        )
    if options.quantize and (options.train != "lora" or options.text_encoder):
        raise UsageError(
            "diffusion.quantize is for weights beside a LoRA", hint="leave it out to train others"
        )


def side_of(base: Base) -> tuple[int, int]:
    """Return the side of the model's own pictures, and of a latent, in pixels."""
    vae = AutoencoderKLConfig.from_dict(base.configs["vae"])
    factor = vae.spatial_scale_factor
    if "unet" in base.configs:
        sample = UNet2DConditionConfig.from_dict(base.configs["unet"]).sample_size or 64
        return factor * (sample if isinstance(sample, int) else max(sample)), factor
    size = vae.sample_size
    return size if isinstance(size, int) else max(size), factor


def _dtype(recipe: DiffusionRecipe) -> str:
    if recipe.diffusion.dtype != "auto":
        return recipe.diffusion.dtype
    return "float32" if mx.default_device() == mx.cpu else "bfloat16"


def _start(recipe: DiffusionRecipe, base: Base, component: str) -> nn.Module:
    """Return a component whose weights are trained themselves."""
    seed = recipe.train.seed + list(base.components).index(component)
    return base.start(component, seed=seed)


def _denoiser(
    recipe: DiffusionRecipe, base: Base, pictures: Pictures, out: Path, side: int, cache: Cache
) -> Task:
    modules = _modules(recipe, base)
    texts = [modules[name] for name in base.text_encoders]
    options = recipe.diffusion
    trained = ["unet", *(base.text_encoders if options.text_encoder else [])]
    if options.train == "lora":
        _add_lora(recipe, {name: modules[name] for name in trained})
    encoders = cast("Sequence[TextEncoder]", texts)
    model = Denoising(
        cast(UNet2DConditionModel, modules["unet"]), encoders if options.text_encoder else []
    )
    checkpoint_blocks(model, recipe.batch.checkpointing)
    captions, batches, moments = _batches(recipe, base, modules, encoders, cache)
    # Of a model whose text encoders stay, the lines that the U-Net reads are computed once.
    flips = [False, True] if recipe.data.flip else [False]
    images = recipe.batch.micro_images or recipe.batch.images
    names = {name: modules[name] for name in trained}
    if options.train == "lora":
        save = partial(save_lora, out, {n: m for n, m in modules.items() if n != "vae"})
        finish = _nothing
    else:
        save, finish = partial(save_best, out, model), partial(_finish, out, model, base, names)
    shown = [e.picture.caption for e in pictures.all]
    texts_of = {caption for e in pictures.all for caption in e.picture.captions}
    return Task(
        model=model,
        loss=denoising_loss,
        part=lambda step, slots: batches.training(step, slots, pictures.learnt, pictures.of_class),
        validation=list(batches.validation(pictures.held, recipe.data.valid_draws, images)),
        prepare=[partial(moments, e, flipped=f) for e in pictures.all for f in flips],
        sample=sampler(base, modules, recipe.sample, shown, side),
        save=save,
        finish=finish,
        files=(DIFFUSERS, kohya_file(out)) if options.train == "lora" else (BEST,),
        random=tuple(name for name in trained if name not in base.weights),
        cut_captions=sum(map(captions.is_cut, texts_of)),
        name=base.name("unet", "vae", *base.text_encoders),
    )


def _modules(recipe: DiffusionRecipe, base: Base) -> dict[str, nn.Module]:
    """Return the components, those that stay as they are frozen."""
    options, dtype = recipe.diffusion, _dtype(recipe)
    # SDXL's autoencoder overflows float16, and none takes much.
    modules = {"vae": base.load("vae")}
    whole = ["unet"] if options.train == "unet" else []
    if options.text_encoder and options.train == "unet":
        whole += base.text_encoders
    for name in ("unet", *base.text_encoders):
        modules[name] = (
            _start(recipe, base, name)
            if name in whole
            else base.load(name, dtype=dtype, quantize=options.quantize)
        )
    for name, module in modules.items():
        module.eval()
        if name not in whole:
            module.freeze()
    return modules


def _add_lora(recipe: DiffusionRecipe, components: Mapping[str, nn.Module]) -> None:
    options = recipe.lora
    for number, (name, model) in enumerate(components.items()):
        add_lora(
            model,
            target_paths(layers_of({name: model})[name], options.targets),
            name=NAME,
            rank=options.rank,
            alpha=options.alpha,
            start=options.start,
            dropout=options.dropout,
            seed=recipe.train.seed + number,
        )


def _batches(
    recipe: DiffusionRecipe,
    base: Base,
    modules: Mapping[str, nn.Module],
    encoders: Sequence[TextEncoder],
    cache: Cache,
) -> tuple[Captions, Batches, Moments]:
    """Return what makes batches, and its parts that are computed beforehand."""
    loss, data = recipe.loss, recipe.data
    latents = Latents(cast(AutoencoderKL, modules["vae"]))
    captions = Captions(
        [base.tokenizer(name) for name in base.text_encoders],
        encoders,
        trained=recipe.diffusion.text_encoder,
        time_ids=time_ids_of(base.configs, base.text_encoders),
        cache=cache,
        encoders_name=f"{base.name(*base.text_encoders)[:16]}-{_dtype(recipe)}",
    )
    # The pixels themselves are read once, to be encoded: nothing is gained by keeping them.
    pixels = Pixels(Cache(None, 0), background=data.background)
    moments = Moments(cache, pixels, latents, base.name("vae"))
    randomness = Randomness(
        seed=recipe.train.seed,
        timesteps=TimestepChoice(name=loss.timesteps, mean=loss.logit_mean, std=loss.logit_std),
        noise_offset=loss.noise_offset,
        caption_dropout=data.caption_dropout,
        flip=data.flip,
    )
    batches = Batches(
        moments,
        captions,
        latents,
        Noising(base.scheduler_config),
        randomness,
        min_snr_gamma=loss.min_snr_gamma,
        prior_weight=loss.prior_weight,
    )
    return captions, batches, moments


def _autoencoder(recipe: DiffusionRecipe, base: Base, pictures: Pictures, out: Path) -> Task:
    vae = cast(AutoencoderKL, _start(recipe, base, "vae"))
    options = recipe.autoencoder
    if options.parts == "decoder":
        for name, module in vae.children().items():
            if name not in ("decoder", "post_quant_conv"):
                cast(nn.Module, module).freeze()
    checkpoint_blocks(vae, recipe.batch.checkpointing)
    pixels = Pixels(
        Cache(None, int(recipe.data.cache_gib * 2**30)),
        background=recipe.data.background,
    )
    batches = PixelBatches(
        pixels,
        factor=vae.config.spatial_scale_factor,
        channels=vae.config.latent_channels,
        seed=recipe.train.seed,
        flip=recipe.data.flip,
    )
    random = "vae" not in base.weights
    examples = pictures.held or pictures.learnt

    def finish() -> None:
        load_best(out, vae)
        vae.eval()
        changed: dict[str, dict[str, Any]] = {}
        if random:
            factor = _scaling_factor(vae, pixels, pictures.learnt[:SCALED_BY])
            changed["vae"] = {**base.configs["vae"], "scaling_factor": factor}
        save_model(out, base, {"vae": vae}, changed)

    return Task(
        model=vae,
        loss=partial(
            autoencoder_loss,
            kl_weight=options.kl_weight,
            gradient_weight=options.gradient_weight,
        ),
        part=lambda step, slots: batches.training(step, slots, pictures.learnt),
        validation=list(
            batches.validation(pictures.held, recipe.batch.micro_images or recipe.batch.images)
        ),
        prepare=(),
        sample=decoder(vae, pixels, examples),
        save=partial(save_best, out, vae),
        finish=finish,
        files=(BEST,),
        random=("vae",) if random else (),
        cut_captions=0,
        name=base.name("vae"),
    )


def _scaling_factor(vae: AutoencoderKL, pixels: Pixels, examples: Sequence[Example]) -> float:
    """Return what brings the latents to a deviation of 1, as a U-Net wants them."""
    total, squares, count = 0.0, 0.0, 0
    for example in examples:
        posterior = vae.encode(mx.array(pixels(example)))
        # Of samples, not of means: those are what a U-Net learns from.
        second = posterior.mean.square() + mx.exp(posterior.logvar)
        total += scalar(posterior.mean.sum())
        squares += scalar(second.sum())
        count += posterior.mean.size
    deviation = float(np.sqrt(squares / count - (total / count) ** 2))
    return float(f"{1 / deviation:.6g}")


def _finish(out: Path, model: nn.Module, base: Base, trained: Mapping[str, nn.Module]) -> None:
    load_best(out, model)
    save_model(out, base, trained)


def _nothing() -> None:
    pass
