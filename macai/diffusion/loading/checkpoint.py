"""Open a Stable Diffusion checkpoint of any kind and load its components."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn

from macai.diffusion.loading import known_configs
from macai.diffusion.loading.build import BITS, DTYPES, Precision, build, memory_bytes
from macai.diffusion.loading.contents import TOKENIZERS, Contents, Part
from macai.diffusion.loading.folder import read_folder
from macai.diffusion.loading.single_file import Wishes, read_single_file
from macai.diffusion.models.clip_text import CLIPTextConfig
from macai.diffusion.tokenizer import ClipTokenizer
from macai.errors import ModelError, UsageError

# What an autoencoder computes in 8 bits is visible, and it is small.
_QUANTISABLE = ("unet", "controlnet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose configs and headers were read; its weights are still in their files.

    Attributes:
        path: The folder or file.
        contents: What is in it.
        precision: How `load` keeps the weights.
    """

    path: Path
    contents: Contents
    precision: Precision

    @property
    def kind(self) -> str:
        """Return "sd1", "sd2", "sdxl", "sdxl-refiner", or "custom" for other sizes."""
        return self.contents.kind

    @property
    def components(self) -> tuple[str, ...]:
        """Which components `load` knows: of unet, vae, text_encoder(_2) and controlnet."""
        return tuple(self.contents.parts)

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """The config of each component in diffusers' form; of "pipeline", model_index.json's."""
        configs = {name: dict(part.config) for name, part in self.contents.parts.items()}
        return configs | {"pipeline": dict(self.contents.pipeline_config)}

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The scheduler_config.json; empty for a component alone."""
        return dict(self.contents.scheduler_config)

    @property
    def tokenizer_folders(self) -> Mapping[str, Path | None]:
        """The folder of "tokenizer" and "tokenizer_2"; None where the file brings none."""
        return self.contents.tokenizers

    @property
    def ignored(self) -> Mapping[str, int]:
        """How many tensors, or folders, are of none of the components, by why or by name."""
        return self.contents.ignored

    def load(
        self, component: str, *, dtype: str | None = None, quantize: int | None = None
    ) -> nn.Module:
        """Return a component with its weights computed, in the mode to evaluate in.

        Args:
            component: One of `components`.
            dtype: Another type than the one the checkpoint was opened with.
            quantize: Other bits.

        Raises:
            ModelError: there is no such component, or its weights are not all there, are not the
                model's, are not finite or do not fit the type.
        """
        precision = self._precision(component, dtype, quantize)
        return build(component, self._part(component), precision)

    def bytes(self, component: str) -> int:
        """Return how much memory the weights of a component take once loaded."""
        part = self._part(component)
        return memory_bytes(component, part, self._precision(component, None, None))

    def tokenizer(self, component: str) -> ClipTokenizer:
        """Return the tokenizer of a text encoder: the folder's own, or CLIP's.

        Args:
            component: "text_encoder" or "text_encoder_2".

        Raises:
            ModelError: it is no tokenizer, or has more tokens than the encoder knows.
        """
        found = self._tokenizer(TOKENIZERS[component])
        known = CLIPTextConfig.from_dict(self.configs[component]).vocab_size
        if found.size > known:  # MLX would read past the end of the table
            raise ModelError(
                f"{self.path}: its tokenizer has {found.size:,} tokens, "
                f"and its {component} knows {known:,}",
                hint="was one of them copied from another model?",
            )
        return found

    def _tokenizer(self, name: str) -> ClipTokenizer:
        folder = self.contents.tokenizers.get(name)
        if folder is not None:
            return ClipTokenizer.from_folder(folder)
        known = known_configs.TOKENIZERS.get(self.kind, {}).get(name)
        return (
            ClipTokenizer.shipped()
            if known is None
            else ClipTokenizer.shipped(padding=known["pad_token"])
        )

    def _part(self, component: str) -> Part:
        part = self.contents.parts.get(component)
        if part is None:
            raise ModelError(
                f"{self.path}: no {component} in it",
                hint=f"it has {', '.join(self.components)}",
            )
        return part

    def _precision(self, component: str, dtype: str | None, quantize: int | None) -> Precision:
        bits = self.precision.bits if quantize is None else quantize
        bits = bits if component in _QUANTISABLE else None
        return _checked(dtype or self.precision.dtype, bits)


def open_checkpoint(
    path: Path,
    *,
    dtype: str = "float32",
    variant: str | None = None,
    quantize: int | None = None,
    kind: str | None = None,
    prediction_type: str | None = None,
    ema: bool = False,
) -> Checkpoint:
    """Read the configs and headers of a checkpoint; its weights stay in their files.

    Args:
        path: A folder that diffusers saved (a pipeline or one component), or a .safetensors, .ckpt,
            .pt or .bin file: a whole model in the original layout, a ControlNet, or a VAE.
        dtype: "float32", "float16" or "bfloat16", of weights and so of what is computed.
        variant: Which files of a folder are wanted, such as "fp16".
        quantize: 8 or 4 bits for the linear layers of U-Net, ControlNet and text encoders.
        kind: Of a VAE file, the version it is for: its latents' scale is not in it.
        prediction_type: "epsilon", "v_prediction" or "sample", if the checkpoint says otherwise or
            nothing: a single file of SD2 is taken for the 768 model unless it says it is the base.
        ema: Take the averaged weights of a single file's U-Net.

    Raises:
        ModelError: no such checkpoint, a kind that is not known, a file that wants code to be run,
            or a part that is missing.
        FormatError: a file is damaged.
        UsageError: an argument is not one of those above.
    """
    path = Path(path)
    precision = _checked(dtype, quantize)
    wishes = Wishes(kind, prediction_type, ema)
    if path.is_dir():
        contents = _wished(read_folder(path, variant=variant), path, wishes)
    elif path.is_file():
        if variant is not None:
            raise UsageError(f"{path} is a file: only folders have variants")
        contents = read_single_file(path, wishes)
    else:
        raise ModelError(f"{path}: no such file or folder", hint="is the path right?")
    return Checkpoint(path, contents, precision)


def _wished(contents: Contents, path: Path, wishes: Wishes) -> Contents:
    if wishes.ema:
        raise UsageError(
            f"{path} is a folder: averaged weights are a variant of it",
            hint="non_ema is often the name of the other",
        )
    if wishes.prediction_type is None:
        return contents
    scheduler = {**contents.scheduler_config, "prediction_type": wishes.prediction_type}
    return dataclasses.replace(contents, scheduler_config=scheduler)


def _checked(dtype: str, bits: int | None) -> Precision:
    if dtype not in DTYPES:
        raise UsageError(f"{dtype!r} is no type of weights", hint=f"known: {', '.join(DTYPES)}")
    if bits not in (None, *BITS):
        raise UsageError(f"{bits} bits cannot be had", hint="8 and 4 can")
    return Precision(dtype, bits)
