from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.conditioning import encode
from macai.diffusion.prompt import chunk_prompts
from macai.diffusion.training.losses import (
    Denoising,
    DenoisingBatch,
    PixelBatch,
    autoencoder_loss,
    denoising_loss,
    gradient_error,
    text_states,
)
from tests.diffusion.training.small import models, tokenizer


def test_errors_are_means_over_a_picture_weighted_and_summed():
    given = {}

    def predict(noisy, timesteps, hidden, **added):
        given.update(timesteps=timesteps, hidden=hidden, **added)
        return noisy

    model = SimpleNamespace(unet=predict, text_encoders=[])
    noisy = mx.stack([mx.full((2, 2, 4), 1.0), mx.full((2, 2, 4), 3.0)])
    batch = DenoisingBatch(
        noisy=noisy,
        target=mx.zeros((2, 2, 2, 4)),
        timesteps=mx.array([1.0, 2.0]),
        weights=mx.array([1.0, 0.5]),
        hidden=mx.zeros((2, 3, 4)),
        pooled=None,
        ids=(),
        time_ids=None,
        images=1,
    )
    assert denoising_loss(model, batch).item() == 1 + 0.5 * 9
    assert given["timesteps"].tolist() == [1, 2]
    assert given["text_embeds"] is None
    assert batch.computed == 2


def test_states_of_a_batch_are_those_of_its_captions():
    made = models()
    encoder, own = made.models["text_encoder"], tokenizer()
    ids = mx.array(own.ids(["red", "blue apple", ""]))
    hidden, pooled = text_states([encoder], [ids], xl=False)
    assert pooled is None
    for i, caption in enumerate(["red", "blue apple", ""]):
        alone = encode(
            [encoder], [chunk_prompts([caption], [own], weights=False)[0][0]], pooled=False
        )
        assert mx.allclose(hidden[i], alone.hidden[0], atol=1e-6)


def test_ids_and_states_give_the_same_loss():
    made = models()
    unet, encoder = made.models["unet"], made.models["text_encoder"]
    ids = mx.array(tokenizer().ids(["red", "blue"]))
    hidden, _ = text_states([encoder], [ids], xl=False)
    mx.random.seed(0)
    both = {
        "noisy": mx.random.normal((2, 8, 8, 4)),
        "target": mx.random.normal((2, 8, 8, 4)),
        "timesteps": mx.array([10.0, 600.0]),
        "weights": mx.array([1.0, 2.0]),
        "pooled": None,
        "time_ids": None,
        "images": 2,
    }
    of_states = denoising_loss(Denoising(unet, []), DenoisingBatch(**both, hidden=hidden, ids=()))
    of_ids = denoising_loss(
        Denoising(unet, [encoder]), DenoisingBatch(**both, hidden=None, ids=[ids])
    )
    assert abs(of_states.item() - of_ids.item()) < 1e-5


def test_a_flat_error_has_no_gradient_and_a_checkerboard_only_the_finest():
    flat = mx.full((1, 8, 8, 3), 0.5)
    assert gradient_error(flat, mx.zeros((1, 8, 8, 3))).tolist() == [0.0]
    y, x = np.mgrid[0:8, 0:8]
    board = mx.array(((x + y) % 2).astype(np.float32))[None, :, :, None]
    # Full size: each difference is 1; at half and quarter size all means are equal.
    assert gradient_error(board, mx.zeros_like(board)).item() == pytest.approx(2 / 6)


def test_a_ramp_has_the_gradient_of_its_slope_at_every_size():
    ramp = mx.broadcast_to(mx.arange(16.0)[None, None, :, None], (2, 16, 16, 3))
    # Across 1, 2 and 4, down 0: six terms.
    assert gradient_error(ramp, mx.zeros_like(ramp)).tolist() == pytest.approx([7 / 6, 7 / 6])


def test_the_autoencoder_s_loss_is_the_sum_of_its_terms():
    vae = models().models["vae"]
    mx.random.seed(0)
    batch = PixelBatch(
        pixels=mx.random.uniform(-1, 1, (2, 16, 16, 3)), noise=mx.random.normal((2, 8, 8, 4))
    )
    posterior = vae.encode(batch.pixels)
    made = vae.decode(posterior.mean + mx.exp(posterior.logvar / 2) * batch.noise)
    error = mx.abs(made - batch.pixels).mean(axis=(1, 2, 3)).sum().item()
    kl = posterior.kl().sum().item() / (16 * 16 * 3)
    gradient = gradient_error(made, batch.pixels).sum().item()
    for kl_weight, gradient_weight in ((0, 0), (0.5, 0), (0, 2.0), (0.5, 2.0)):
        loss = autoencoder_loss(vae, batch, kl_weight=kl_weight, gradient_weight=gradient_weight)
        wanted = error + kl_weight * kl + gradient_weight * gradient
        assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert batch.images == batch.computed == 2
