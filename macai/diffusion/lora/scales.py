"""Scales that stand in a PEFT configuration: beside the weights, or in diffusers' metadata."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from macai.diffusion.lora.names import COMPONENTS, TEXT_MODEL, Layer
from macai.models.peft_config import PeftConfig, parse_object, read_config

METADATA_KEY = "lora_adapter_metadata"
CONFIG_FILE = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Scales:
    """The configurations of a file: one for each component, or one for all."""

    by_component: dict[str, PeftConfig] = field(default_factory=dict)
    of_all: PeftConfig | None = None

    def of(self, layer: Layer, rank: int | None) -> float:
        """Return a layer's scale; 1 where the file says nothing."""
        config = self.by_component.get(layer.component, self.of_all)
        if config is None:
            return 1.0
        return config.scale((layer.path, layer.path.removeprefix(TEXT_MODEL)), rank)


def read_scales(file: Path, metadata: Mapping[str, str]) -> Scales:
    """Read what diffusers keeps in the metadata of `file`, or PEFT in adapter_config.json.

    Raises:
        AdapterError: it is no configuration, or of a kind whose layers would come out wrong.
    """
    if METADATA_KEY in metadata:
        where = f"{file}: its {METADATA_KEY}"
        value, configs = parse_object(metadata[METADATA_KEY], where), {}
        for component in COMPONENTS:
            prefix = f"{component}."
            own = {k.removeprefix(prefix): v for k, v in value.items() if k.startswith(prefix)}
            if own:
                configs[component] = read_config(own, where)
        return Scales(by_component=configs)
    config = file.with_name(CONFIG_FILE)
    if file.stem == "adapter_model" and config.is_file():
        text = config.read_text(encoding="utf-8", errors="replace")
        return Scales(of_all=read_config(parse_object(text, str(config)), str(config)))
    return Scales()
