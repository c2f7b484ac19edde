"""Combinations that are known to fail on a device, refused before an hour is spent on them."""

from macai.coreml.sd.form import Configs, Form, picture_size, time_ids
from macai.errors import UsageError

_XL_MOST_PIXELS = 768 * 768


def preflight(configs: Configs, form: Form, *, text_bits: float | None = None) -> None:
    """Refuse what is known to fail on the Neural Engine.

    Sources: issues 228, 254, 255 and 369 of apple/ml-stable-diffusion (SDXL at 1024 pixels:
    "ANECCompile() FAILED (11)", or hours of it); Apple's guide: the Neural Engine computes in
    float16 alone.

    Args:
        configs: By diffusers' names of the model's parts.
        form: What was chosen.
        text_bits: Of the text encoders' weights, if these are palettes.

    Raises:
        UsageError: such a combination; the hint says what goes.
    """
    if form.attention == "original":
        return
    if form.precision == "fp32":
        raise UsageError(
            f"{form.attention} is for the Neural Engine, which has no float32",
            hint="--attention original for a GPU; or leave out --precision",
        )
    width, height = picture_size(configs, form)
    if time_ids(configs) is not None and width * height > _XL_MOST_PIXELS:
        raise UsageError(
            f"{form.attention} of SDXL at {width}x{height} pixels: the Neural Engine's compiler "
            "fails on it, or takes hours (ml-stable-diffusion's issues 228, 254, 255, 369)",
            hint="--size 768x768; or --attention original for a GPU",
        )
    if time_ids(configs) is not None and text_bits is not None:
        raise UsageError(
            f"{form.attention} of SDXL with palettes in its text encoders: the second one "
            "crashes on the Neural Engine (ml-stable-diffusion's issues 228, 254, 255, 369)",
            hint="leave out --text-bits; or --attention original for a GPU",
        )
