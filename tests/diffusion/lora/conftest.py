import pytest

from tests.diffusion.lora.lora_cases import layers_of_kind


@pytest.fixture(scope="module")
def layers():
    return {kind: layers_of_kind(kind) for kind in ("sd1", "sd2", "xl")}
