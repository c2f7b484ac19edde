import numpy as np
import pytest
from PIL import Image

from macai.diffusion.images import read_control, read_mask, read_picture, to_bytes

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def noise(path, width, height, mode):
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def nhwc(tensor):
    return tensor.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA", "1"])
def test_pictures_are_those_of_diffusers_image_processor(diffusers, mode, tmp_path):
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.utils import load_image

    path = noise(tmp_path / "a.png", 48, 32, mode)
    expected = nhwc(VaeImageProcessor().preprocess(load_image(str(path))))
    assert np.array_equal(read_picture(path), expected)
    half = VaeImageProcessor().preprocess(load_image(str(path)), 16, 24)  # the same proportions
    assert np.array_equal(read_picture(path, (24, 16)), nhwc(half))
    processor = VaeImageProcessor(do_convert_rgb=True, do_normalize=False)
    assert np.array_equal(read_control(path), nhwc(processor.preprocess(load_image(str(path)))))


@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_masks_are_those_of_diffusers_image_processor(diffusers, mode, tmp_path):
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.utils import load_image

    path = noise(tmp_path / "a.png", 48, 32, mode)
    options = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
    processor = VaeImageProcessor(**options)
    assert np.array_equal(read_mask(path), nhwc(processor.preprocess(load_image(str(path)))))


def test_bytes_are_those_of_diffusers_image_processor(diffusers):
    import torch
    from diffusers.image_processor import VaeImageProcessor

    values = np.random.default_rng(1).normal(0, 0.7, (2, 64, 64, 3)).astype(np.float32)
    steps = np.linspace(-1.2, 1.2, 64 * 64 * 3, dtype=np.float32).reshape(1, 64, 64, 3)
    pictures = np.concatenate([values, steps])
    tensor = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())
    expected = VaeImageProcessor().postprocess(tensor, output_type="pil")
    assert np.array_equal(to_bytes(pictures), np.stack([np.asarray(p) for p in expected]))
