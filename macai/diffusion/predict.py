"""One model call of a denoising step: guidance, control, and what inpainting models see besides."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from macai.diffusion.conditioning import Conditioning
from macai.diffusion.models.controlnet import ControlNetModel
from macai.diffusion.models.unet_2d_condition import UNet2DConditionModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A ControlNet with its picture.

    Attributes:
        net: The network.
        picture: [1, H, W, 3] in [0, 1].
        scale: How much of its residuals is added.
        start: The share of the steps before which it is not asked.
        end: The share of the steps after which it is not asked any more.
    """

    net: ControlNetModel
    picture: mx.array
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """The U-Net with all that stays the same from step to step.

    Attributes:
        unet: The denoiser.
        positive: The prompt.
        negative: What to keep away from; None without classifier-free guidance.
        guidance: Scale of the difference between the two (Ho and Salimans, 2022).
        rescale: Share of the prediction brought back to the spread of the positive one (Lin et
            al., 2023, 3.4).
        serial: Whether the two are computed one after the other: half the memory.
        time_ids: What sizes an XL U-Net is told, for the prompt and for the negative one.
        timestep_cond: [1, N], an LCM's guidance; else None.
        extra: [B, h, w, C] put behind the latents' channels: mask and masked latents of a
            9-channel inpainting model; else None.
        controls: ControlNets; their residuals are summed.
    """

    unet: UNet2DConditionModel
    positive: Conditioning
    negative: Conditioning | None = None
    guidance: float = 1.0
    rescale: float = 0.0
    serial: bool = False
    time_ids: tuple[mx.array, mx.array] | None = None
    timestep_cond: mx.array | None = None
    extra: mx.array | None = None
    controls: Sequence[Control] = field(default=())

    def __call__(
        self, sample: mx.array, timestep: float, done: tuple[float, float] = (0.0, 1.0)
    ) -> mx.array:
        """Return what the model predicts, float32 [B, h, w, C].

        Args:
            sample: Latents, scaled by the scheduler for the model.
            timestep: The scheduler's, as the model is told it.
            done: The share of the steps done before and after this one, for controls that are on
                for a part of them.
        """
        if self.negative is None:
            return self._predict(sample, timestep, done, [self.positive])
        both = [self.negative, self.positive]
        if self.serial:
            negative, positive = (
                self._predict(sample, timestep, done, [one], negative=one is self.negative)
                for one in both
            )
        else:
            negative, positive = mx.split(self._predict(sample, timestep, done, both), 2)
        guided = negative + self.guidance * (positive - negative)
        return _rescaled(guided, positive, self.rescale) if self.rescale else guided

    def _predict(
        self,
        sample: mx.array,
        timestep: float,
        done: tuple[float, float],
        told: Sequence[Conditioning],
        *,
        negative: bool = False,
    ) -> mx.array:
        """Call the model once, with the batch once for each conditioning."""
        batch, dtype = sample.shape[0], self.unet.conv_in.weight.dtype
        latents = mx.concatenate([sample.astype(dtype)] * len(told))
        hidden = _each([one.hidden for one in told], batch).astype(dtype)
        added: dict[str, mx.array] = {}
        if self.time_ids is not None:
            assert all(one.pooled is not None for one in told)
            of_prompt, of_negative = self.time_ids
            ids = [of_negative, of_prompt] if len(told) == 2 else [of_prompt]
            ids = [of_negative] if negative else ids
            pooled = [one.pooled for one in told if one.pooled is not None]
            added = {"text_embeds": _each(pooled, batch), "time_ids": _each(ids, batch)}
        steps = mx.full((latents.shape[0],), timestep, dtype=mx.float32)
        down, middle = self._controlled(latents, steps, hidden, added, done)
        if self.extra is not None:
            extra = mx.concatenate([self.extra.astype(dtype)] * len(told))
            latents = mx.concatenate([latents, extra], axis=-1)
        condition = self.timestep_cond
        if condition is not None:
            condition = mx.broadcast_to(condition, (latents.shape[0], condition.shape[-1]))
        prediction = self.unet(
            latents,
            steps,
            hidden,
            timestep_cond=condition,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            **added,
        )
        return prediction.astype(mx.float32)

    def _controlled(
        self,
        latents: mx.array,
        steps: mx.array,
        hidden: mx.array,
        added: dict[str, mx.array],
        done: tuple[float, float],
    ) -> tuple[list[mx.array] | None, mx.array | None]:
        """Return the summed residuals of the controls that are on now."""
        down: list[mx.array] | None = None
        middle: mx.array | None = None
        for control in self.controls:
            if done[0] < control.start or done[1] > control.end:
                continue
            shape = (latents.shape[0], *control.picture.shape[1:])
            picture = mx.broadcast_to(control.picture.astype(latents.dtype), shape)
            more, at_middle = control.net(
                latents, steps, hidden, picture, conditioning_scale=control.scale, **added
            )
            down = more if down is None else [a + b for a, b in zip(down, more, strict=True)]
            middle = at_middle if middle is None else middle + at_middle
        return down, middle


def _each(rows: Sequence[mx.array], batch: int) -> mx.array:
    """Repeat each [1, ...] row for the pictures of a batch: [len(rows) * batch, ...]."""
    return mx.concatenate([mx.repeat(row, batch, axis=0) for row in rows])


def _rescaled(guided: mx.array, positive: mx.array, share: float) -> mx.array:
    axes = tuple(range(1, guided.ndim))
    # With Bessel's correction, as torch.std has it.
    spread = mx.std(positive, axis=axes, keepdims=True, ddof=1)
    again = guided * (spread / mx.std(guided, axis=axes, keepdims=True, ddof=1))
    return share * again + (1 - share) * guided
