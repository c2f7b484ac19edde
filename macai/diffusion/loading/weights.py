"""Open a file of weights, whatever wrote it."""

from dataclasses import dataclass, field
from pathlib import Path

from macai.diffusion.loading.unpickle import LEGACY_START, is_torch_file, read_torch
from macai.errors import FormatError
from macai.models.safetensors import read_safetensors
from macai.models.stored import StoredTensor


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file's tensors by name, what it says of itself, and the whole numbers beside the tensors.

    Only a safetensors file has metadata, only a checkpoint of torch has numbers.
    """

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)


def open_weights(path: Path) -> WeightsFile:
    """Read the header of a safetensors file or of one of torch.save, by what it begins with.

    Raises:
        ModelError: the file wants something run: see `read_torch`.
        FormatError: it is missing, damaged, or neither of both.
    """
    try:
        with path.open("rb") as f:
            beginning = f.read(len(LEGACY_START))
    except OSError as e:
        raise FormatError(f"{path}: cannot be opened: {e.strerror or e}") from e
    if is_torch_file(beginning):
        read = read_torch(path)
        return WeightsFile(read.tensors, numbers=read.numbers)
    if beginning[:1] == b"\x80" and path.suffix != ".safetensors":
        raise FormatError(
            f"{path}: a pickle, but not one that torch.save wrote",
            hint="get the model as .safetensors",
        )
    file = read_safetensors(path)
    return WeightsFile(file.tensors, file.metadata)
