"""A recipe that tunes Stable Diffusion, or trains a small one from random weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from macai.recipe.fields import (
    LOG,
    OPTIMIZER,
    SCHEDULE,
    Optimizer,
    Schedule,
    Strings,
    number,
    strings,
)

_PROMPTS = Strings(
    what="prompt", one="prompt", example='write ["a red apple", "a cat"]', may_be_empty=True
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diffusion:
    """What is trained, and from what.

    Attributes:
        train: A LoRA beside the U-Net, the whole U-Net, or the autoencoder. The files of a LoRA are
            small and go with other models of the version; a whole U-Net can learn anything, and
            takes 16 bytes of memory a weight.
        init: What becomes of a trained part that the model has no weights of: "weights" refuses it,
            "random" draws them. Parts that have weights start from them in any case.
        text_encoder: Whether the text encoders are trained along. It learns new words better, and
            forgets others sooner; a text encoder of random weights needs it.
        vae: A model, the autoencoder of which takes the place of the model's own. Relative as
            `data.path` is.
        dtype: Of weights that are not trained, and so of what is computed beside them; "auto" is
            bfloat16 on a GPU and float32 on a CPU. Trained weights are float32.
        quantize: Bits of the U-Net's and the text encoder's weights beside a LoRA; 0 keeps them.
            8 takes a quarter of float32's memory, 4 an eighth, for slower steps and small errors.
        ema_decay: How much of the running average of the weights is kept at a step, such as 0.999;
            samples and result are of the average. For runs of thousands of steps from random
            weights; 0 does without.
    """

    train: Literal["lora", "unet", "vae"] = "lora"
    init: Literal["weights", "random"] = "weights"
    text_encoder: bool = False
    vae: Path | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantize: Literal[0, 8, 4] = 0
    ema_decay: float = number(0.0, 0, 1, high_included=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """The LoRA, for train = "lora".

    Attributes:
        rank: Columns of the low-rank factors: higher holds more, in a file of so much more.
        alpha: The update is scaled by alpha / rank.
        dropout: Probability that an input of the LoRA is zeroed while training.
        targets: "attention" is what diffusers' scripts train, "linear" what kohya's do: all of the
            transformers' layers. "conv" adds the other convolutions, as LoCon.
        start: How the first factor is drawn: as diffusers' or as kohya's scripts do.
    """

    rank: int = number(16, 1)
    alpha: float = number(16.0, 0, low_included=False)
    dropout: float = number(0.0, 0, 1, high_included=False)
    targets: Literal["attention", "linear", "conv"] = "attention"
    start: Literal["gaussian", "kaiming"] = "gaussian"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What is minimised by a LoRA and a U-Net: the squared error of the prediction.

    Attributes:
        min_snr_gamma: Caps the weight of little noise (Hang et al., arXiv:2303.09556): 5 learns
            faster, above all from random weights; 0 weighs all noise alike, as diffusers does.
        noise_offset: Share of noise that is the same in a whole channel: 0.05 to 0.1 lets a model
            make darker and brighter pictures than it was first trained to.
        timesteps: "uniform", or "logit-normal", which prefers those in the middle.
        logit_mean: Centre of "logit-normal": above 0 prefers more noise.
        logit_std: Its spread.
        prior_weight: Weight of the class pictures of DreamBooth (`data.class_path`): more keeps the
            model as it was, less learns the subject sooner.
    """

    min_snr_gamma: float = number(5.0, 0)
    noise_offset: float = number(0.0, 0, 1)
    timesteps: Literal["uniform", "logit-normal"] = "uniform"
    logit_mean: float = number(0.0, -10, 10)
    logit_std: float = number(1.0, 0, 10, low_included=False)
    prior_weight: float = number(1.0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoencoder:
    """What is minimised by an autoencoder: mean absolute error, and what is added to it.

    Attributes:
        parts: "decoder" leaves the latents as they are, so that U-Nets made for them go on working.
        kl_weight: Of the latents' divergence from the standard normal, in nats over the values of
            the picture, as in the LDM paper: more makes latents easier to learn for a U-Net, and
            pictures softer.
        gradient_weight: Of the error of differences between neighbouring pixels, at full, half and
            quarter size: more makes edges sharper.
    """

    parts: Literal["all", "decoder"] = "all"
    kl_weight: float = number(1e-6, 0)
    gradient_weight: float = number(1.0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """How many pictures make a step.

    Attributes:
        images: Of a step; of DreamBooth's class pictures there are as many besides.
        micro_images: Computed at once, which decides the memory needed and nothing else: the
            gradients of a step's parts are added. 0: all of a step that have one size.
        checkpointing: What is computed again for the gradient instead of being kept: "transformers"
            or "all" blocks. A step takes up to a third longer and a fraction of the memory.
    """

    images: int = number(1, 1, 4096)
    micro_images: int = number(0, 0)
    checkpointing: Literal["none", "transformers", "all"] = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is learnt from.

    Attributes:
        path: A folder of PNG, JPEG or WebP pictures. Captions are the rows {"file_name", "text"} of
            its metadata.jsonl, or files of the pictures' names that end in .txt. Of a picture's
            several rows one is drawn each time. Relative to the recipe's file when written in one;
            None: it must come from --data.
        prompt: The caption of pictures that have none: DreamBooth's instance prompt.
        valid_path: A folder of pictures to validate on.
        valid_share: Else the share of the pictures that is held back for that: 0 for none.
        valid_draws: Noises that each of them is validated with; more make the loss steadier.
        class_path: A folder of other pictures of the subject's class (DreamBooth), which the model
            shall go on making.
        class_prompt: Their caption, such as "a dog".
        resolution: Side of a square of as many pixels as a picture is scaled to; 0: the model's.
        buckets: Whether pictures keep about their aspect ratio; else a square is cut out of them.
        bucket_step: Sides are multiples of so many pixels; 0: 8 latents.
        max_aspect: Longest over shortest side of a bucket.
        repeats: How often a picture is seen in an epoch.
        flip: Whether each is mirrored half of the time: not with letters or faces that matter.
        caption_dropout: Share of captions left out, which guidance needs: 0.1 when training from
            random weights.
        background: What shows through where a picture is transparent: a name or "#rrggbb".
        cache_gib: Latents and text states are kept in memory up to so many GiB, beyond it on disk.
    """

    path: Path | None = None
    prompt: str | None = None
    valid_path: Path | None = None
    valid_share: float = number(0.0, 0, 0.5)
    valid_draws: int = number(4, 1, 100)
    class_path: Path | None = None
    class_prompt: str | None = None
    resolution: int = number(0, 0, 8192)
    buckets: bool = True
    bucket_step: int = number(0, 0, 1024)
    max_aspect: float = number(2.0, 1, 16)
    repeats: int = number(1, 1, 100_000)
    flip: bool = False
    caption_dropout: float = number(0.0, 0, 1)
    background: str = "white"
    cache_gib: float = number(2.0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """How long the run is and when it looks up.

    Attributes:
        epochs: Passes over the pictures.
        steps: The length of the run in steps instead; 0: it follows from `epochs`.
        seed: Decides order, noise, random weights and the LoRA's start.
        eval_every: Steps between two validations; 0 is once an epoch.
        save_every: Steps between two checkpoints to resume from; 0 is only the last one.
        workers: Processes that each compute a part of every step; they change its time, and its
            result by rounding only (a LoRA's dropout aside). 0: as many as machine and run have use
            for: 2 where MLX computes on the CPU and the run is not short. On a GPU always 1.
        log: Other programs that the run is written for, besides its own report: "tensorboard" and
            "wandb", each with the extra of its name: pip install 'macai[tensorboard]'.
    """

    epochs: float = number(10.0, 0, low_included=False)
    steps: int = number(0, 0)
    seed: int = number(0, 0, 2**32 - 1)
    eval_every: int = number(0, 0)
    save_every: int = number(100, 0)
    workers: int = number(0, 0, 64)
    log: tuple[Literal["tensorboard", "wandb"], ...] = strings((), LOG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Pictures made on the way, to see what is learnt.

    Attributes:
        every: Steps between two; 0: none.
        prompts: What they show; of an autoencoder pictures are decoded instead.
        steps: Of the model's scheduler, for each.
        guidance: As `macai image --guidance`.
        seed: Of the first; the next ones have the numbers after it.
    """

    every: int = number(0, 0)
    prompts: tuple[str, ...] = strings((), _PROMPTS)
    steps: int = number(25, 1, 1000)
    guidance: float = number(7.5, 0)
    seed: int = number(0, 0, 2**32 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionRecipe:
    """One training run, checked.

    Attributes:
        model: What `macai.catalog.locate_pipeline` takes: a folder of diffusers' layout, a
            checkpoint file or a hub id. With `diffusion.init = "random"` the folder may have
            config.json files without weights. A value that starts with ./ or ../ is relative as
            `data.path` is.
        kind: The kind of model.
    """

    model: str
    kind: Literal["diffusion"] = "diffusion"
    diffusion: Diffusion = Diffusion()
    lora: Lora = Lora()
    loss: Loss = Loss()
    autoencoder: Autoencoder = Autoencoder()
    optimizer: Optimizer = OPTIMIZER
    schedule: Schedule = SCHEDULE
    batch: Batch = Batch()
    data: Data = Data()
    train: Train = Train()
    sample: Sample = Sample()
