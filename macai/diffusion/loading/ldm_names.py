"""What the original implementations (ldm, sgm, cldm) call the parameters of a model.

Every name is made from the model's own parameters, whose names are diffusers'; no name of a file is
taken apart. Blocks are numbered through: down_blocks.1.attentions.0 is input_blocks.4.1.
"""

from collections.abc import Iterable, Iterator

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_DENOISER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",  # an LCM's, in ComfyUI's files
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.attentions.0": "middle_block.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_mid_block": "middle_block_out.0",
}
_VAE = {
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
    **{
        f"{side}.{ours}": f"{side}.{theirs}"
        for side in ("encoder", "decoder")
        for ours, theirs in {
            "conv_in": "conv_in",
            "conv_norm_out": "norm_out",
            "conv_out": "conv_out",
            "mid_block.resnets.0": "mid.block_1",
            "mid_block.resnets.1": "mid.block_2",
            "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
            "mid_block.attentions.0.to_q": "mid.attn_1.q",
            "mid_block.attentions.0.to_k": "mid.attn_1.k",
            "mid_block.attentions.0.to_v": "mid.attn_1.v",
            "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
        }.items()
    },
}


def denoiser_names(parameters: Iterable[str]) -> dict[str, str]:
    """Return the name of each parameter of a U-Net or ControlNet, without the file's prefix.

    A parameter that the original implementations do not have is left out.
    """
    parameters = list(parameters)
    paths = _paths(parameters)
    modules = dict(_DENOISER)
    number = 1
    for i in _count(paths, "down_blocks"):
        for j in _count(paths, f"down_blocks.{i}.resnets"):
            modules |= _resnet(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{number}.0")
            modules[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{number}.1"
            number += 1
        if f"down_blocks.{i}.downsamplers" in paths:
            modules[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    for i in range(2):
        modules |= _resnet(f"mid_block.resnets.{i}", f"middle_block.{2 * i}")
    number = 0
    for i in _count(paths, "up_blocks"):
        attends = f"up_blocks.{i}.attentions" in paths
        for j in _count(paths, f"up_blocks.{i}.resnets"):
            modules |= _resnet(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{number}.0")
            modules[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{number}.1"
            number += 1
        last = f"output_blocks.{number - 1}.{2 if attends else 1}"
        modules[f"up_blocks.{i}.upsamplers.0.conv"] = f"{last}.conv"
    return _renamed(parameters, modules | dict(_hint_blocks(paths)))


def vae_names(parameters: Iterable[str]) -> dict[str, str]:
    """Return the name of each parameter of an AutoencoderKL, without the file's prefix."""
    parameters = list(parameters)
    paths = _paths(parameters)
    modules = dict(_VAE)
    for side, kind, short, size in (
        ("encoder", "down_blocks", "down", "downsample"),
        ("decoder", "up_blocks", "up", "upsample"),
    ):
        blocks = list(_count(paths, f"{side}.{kind}"))
        for i in blocks:
            # The decoder's are numbered by size, as the encoder's: the first to run is the last.
            number = i if kind == "down_blocks" else len(blocks) - 1 - i
            ours, theirs = f"{side}.{kind}.{i}", f"{side}.{short}.{number}"
            for j in _count(paths, f"{ours}.resnets"):
                modules[f"{ours}.resnets.{j}"] = f"{theirs}.block.{j}"
                modules[f"{ours}.resnets.{j}.conv_shortcut"] = f"{theirs}.block.{j}.nin_shortcut"
            modules[f"{ours}.{size}rs.0.conv"] = f"{theirs}.{size}.conv"
    return _renamed(parameters, modules)


def _hint_blocks(paths: set[str]) -> Iterator[tuple[str, str]]:
    """Yield a ControlNet's own: convolutions stand at even places, activations between them."""
    for i in _count(paths, "controlnet_down_blocks"):
        yield f"controlnet_down_blocks.{i}", f"zero_convs.{i}.0"
    blocks = list(_count(paths, "controlnet_cond_embedding.blocks"))
    for i in blocks:
        yield f"controlnet_cond_embedding.blocks.{i}", f"input_hint_block.{2 * i + 2}"
    last = 2 * len(blocks) + 2
    yield "controlnet_cond_embedding.conv_out", f"input_hint_block.{last}"


def _resnet(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in _RESNET.items()}


def _paths(parameters: Iterable[str]) -> set[str]:
    """Return the paths of all modules and lists of modules that hold the parameters."""
    found: set[str] = set()
    for name in parameters:
        parts = name.split(".")
        found.update(".".join(parts[:n]) for n in range(1, len(parts)))
    return found


def _count(paths: set[str], parent: str) -> Iterator[int]:
    number = 0
    while f"{parent}.{number}" in paths:
        yield number
        number += 1


def _renamed(parameters: Iterable[str], modules: dict[str, str]) -> dict[str, str]:
    """Put in place of each parameter's longest known beginning what `modules` says."""
    result = {}
    for name in parameters:
        parts = name.split(".")
        for n in range(len(parts) - 1, 0, -1):
            if theirs := modules.get(".".join(parts[:n])):
                result[name] = ".".join([theirs, *parts[n:]])
                break
    return result
