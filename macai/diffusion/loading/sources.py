"""From which tensors of a file each parameter of a model may come: a table for each naming."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from macai.diffusion.loading.ldm_names import denoiser_names, vae_names

TEXT_MODEL = "text_model."
EMA = "model_ema."
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_THIRDS = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of a file that a parameter comes from.

    Attributes:
        name: Of the tensor.
        third: Which third of its rows, where queries, keys and values are one tensor.
        transposed: Whether the parameter is its transpose.
    """

    name: str
    third: int | None = None
    transposed: bool = False


Table = Mapping[str, tuple[Source, ...]]
"""For each parameter its sources, of which the first that a file has counts."""
MakeTable = Callable[[Iterable[str]], Table]


def diffusers_table(parameters: Iterable[str]) -> Table:
    """Return the sources in a file of diffusers or transformers: new names, then older ones.

    The autoencoder's attention had other names before diffusers 0.17; transformers 5 writes
    CLIPTextModel's without "text_model.".
    """
    return {name: tuple(map(Source, (name, *_other_names(name)))) for name in parameters}


def ldm_denoiser_table(prefix: str, *, ema: bool = False) -> MakeTable:
    """Return what makes the table of a U-Net or ControlNet whose names in the file have `prefix`.

    With `ema` the averaged weights are meant: there a name has no dots and not its first part.
    """

    def make(parameters: Iterable[str]) -> Table:
        names = {p: prefix + n for p, n in denoiser_names(parameters).items()}
        if ema:
            names = {p: EMA + n.partition(".")[2].replace(".", "") for p, n in names.items()}
        return {p: (Source(n),) for p, n in names.items()}

    return make


def ldm_vae_table(prefix: str) -> MakeTable:
    """Return what makes the table of an AutoencoderKL whose names in the file have `prefix`."""
    return lambda parameters: {p: (Source(prefix + n),) for p, n in vae_names(parameters).items()}


def clip_table(prefix: str) -> MakeTable:
    """Return what makes the table of a text encoder of transformers inside a single file."""

    def make(parameters: Iterable[str]) -> Table:
        return {
            p: tuple(Source(prefix + s.name) for s in sources)
            for p, sources in diffusers_table(parameters).items()
        }

    return make


def open_clip_table(prefix: str) -> MakeTable:
    """Return what makes the table of a text encoder of OpenCLIP inside a single file."""

    def make(parameters: Iterable[str]) -> Table:
        found = {p: _open_clip(p.removeprefix(TEXT_MODEL)) for p in parameters}
        return {
            p: tuple(Source(prefix + s.name, s.third, s.transposed) for s in sources)
            for p, sources in found.items()
            if sources
        }

    return make


def _open_clip(name: str) -> tuple[Source, ...]:
    if name in _OPEN_CLIP:
        return (Source(_OPEN_CLIP[name]),)
    if name == "text_projection.weight":
        return (Source("text_projection", transposed=True), Source(name))
    parts = name.split(".")
    if parts[:2] != ["encoder", "layers"]:
        return ()
    block = f"transformer.resblocks.{parts[2]}"
    module, kind = ".".join(parts[3:-1]), parts[-1]
    if module in _THIRDS:
        return (Source(f"{block}.attn.in_proj_{kind}", third=_THIRDS[module]),)
    return (Source(f"{block}.{_OPEN_CLIP_LAYER[module]}.{kind}"),)


def _other_names(name: str) -> list[str]:
    if name.startswith(TEXT_MODEL):
        return [name.removeprefix(TEXT_MODEL)]
    module, _, kind = name.rpartition(".")
    for new, old in _OLD_ATTENTION.items():
        if module.endswith(f".mid_block.attentions.0.{new}"):
            return [f"{module.removesuffix(new)}{old}.{kind}"]
    return []
