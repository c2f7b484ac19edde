"""Packages against diffusers and transformers themselves, the same weights from the same folder."""

import numpy as np
import pytest

from macai.coreml.sd.verify import psnr
from tests.coreml.sd.bundles import run
from tests.coreml.sd.test_export import numbers, unet_inputs

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers', with NumPy 2
]
LEAST = {"fp32": 65, "fp16": 60}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def assert_close(bundle, name, wanted, **given):
    """Run a package in both precisions, and compare with what torch made of the same inputs."""
    for precision, least in LEAST.items():
        got = run(bundle, name, precision, **given)
        assert set(got) == set(wanted)
        assert min(psnr(got[n], wanted[n].numpy()) for n in wanted) > least


def test_the_unet_is_diffusers_unet(torch, bundle, model):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet").eval()
    given = unet_inputs()
    sample, time, states = (torch.from_numpy(given[n]) for n in given)
    with torch.no_grad():
        noise = unet(sample, time, states.squeeze(2).transpose(1, 2)).sample
    assert_close(bundle, "Unet", {"noise_pred": noise}, **given)


def test_the_autoencoder_is_diffusers_autoencoder(torch, bundle, model):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(model, subfolder="vae").eval()
    z, x = numbers(7, 1, 4, 16, 16), np.tanh(numbers(8, 1, 3, 32, 32))
    with torch.no_grad():
        image = vae.decode(torch.from_numpy(z)).sample
        moments = vae.encode(torch.from_numpy(x)).latent_dist.parameters
    assert_close(bundle, "VAEDecoder", {"image": image}, z=z)
    assert_close(bundle, "VAEEncoder", {"latent": moments}, x=x)


def test_the_text_encoder_is_transformers_text_encoder(torch, bundle, model):
    from transformers import CLIPTextModel, CLIPTokenizer

    text = CLIPTextModel.from_pretrained(model, subfolder="text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    ids = tokenizer(
        "a cat, in a hat", padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        out = text(ids)
    wanted = {"last_hidden_state": out.last_hidden_state, "pooled_outputs": out.pooler_output}
    assert_close(bundle, "TextEncoder", wanted, input_ids=ids.numpy().astype(np.float32))


def test_swift_reads_the_vocabulary_that_transformers_reads(bundle, model):
    from transformers import CLIPTokenizer

    files = {name: str(bundle / "Resources" / name) for name in ("vocab.json", "merges.txt")}
    ours = CLIPTokenizer(files["vocab.json"], files["merges.txt"])
    theirs = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    text = "two astronauts riding 3 horses"
    assert ours(text).input_ids == theirs(text).input_ids
