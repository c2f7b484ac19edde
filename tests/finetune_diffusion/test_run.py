"""Whole runs on a model of a few thousand weights."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from macai.diffusion.images import upright_size
from macai.diffusion.loading import open_checkpoint
from macai.diffusion.lora.formats import read_lora
from macai.diffusion.lora.layers import layers_of
from macai.diffusion.training.base import open_base
from macai.errors import TrainingError
from macai.finetune_diffusion import finetune_diffusion
from macai.finetune_diffusion.events import Preparing, Sampled, Started, Summary
from macai.finetune_diffusion.job import workers_for
from macai.finetune_diffusion.result import BEST, DIFFUSERS
from macai.models.arrays import load_arrays
from macai.recipe.diffusion import (
    Autoencoder,
    Batch,
    Data,
    Diffusion,
    Lora,
    Loss,
    Optimizer,
    Sample,
    Schedule,
    Train,
)
from macai.train.checkpoint import FILE
from macai.train.events import Stopped, Validated
from macai.train.loop import Report
from macai.train.optimizer import joined
from tests.diffusion.training.small import config_dir, model_dir, picture, xl_dir
from tests.finetune_diffusion.runs import LORA, UNET, VAE, after, of, run, same, trained


def test_a_lora_run_tells_what_happens_and_leaves_both_files(model, data, tmp_path):
    out = tmp_path / "style"
    recipe = replace(LORA, data=Data(valid_share=0.25), train=Train(steps=4, eval_every=2))
    events = run(recipe, model, data, out)
    assert [type(e).__name__ for e in of(events, Started | Preparing)] == ["Started"] + [
        "Preparing"
    ] * 4
    (started,), (summary,) = of(events, Started), of(events, Summary)
    assert (started.train_images, started.valid_images, started.steps) == (3, 1, 4)
    assert started.sizes == {"16x16": 4}
    assert [v.step for v in of(events, Validated)] == [2, 4]
    assert (summary.adapter, summary.model, summary.steps) == (str(out), None, 4)
    assert summary.images == 6  # of three pictures a step of two and one of one
    assert {f.name for f in out.iterdir()} == {
        *("recipe.toml", "metrics.jsonl", FILE, DIFFUSERS, "style.kohya.safetensors")
    }
    base = open_checkpoint(model)
    layers = layers_of({"unet": base.load("unet"), "text_encoder": base.load("text_encoder")})
    for name, form in ((DIFFUSERS, "peft"), ("style.kohya.safetensors", "kohya")):
        lora = read_lora(out / name, layers)
        assert lora.format == form
        assert len(lora.modules["unet"]) == 48
        assert any(mx.abs(u.factors.up).max().item() > 0 for u in lora.modules["unet"].values())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4]
    assert lines[0].keys() >= {"loss", "learning_rate", "grad_norm", "images", "seconds"}
    assert "learnt_tokens" not in lines[0]


EVERYTHING = replace(
    LORA,
    diffusion=Diffusion(text_encoder=True, ema_decay=0.9),
    lora=Lora(rank=2, alpha=2, dropout=0.3),
    loss=Loss(noise_offset=0.1, timesteps="logit-normal", prior_weight=0.5),
    batch=Batch(images=3, micro_images=2, checkpointing="all"),
    data=Data(flip=True, caption_dropout=0.3, valid_share=0.25, cache_gib=0.0),
    train=Train(steps=5, save_every=2, eval_every=2),
    sample=Sample(every=2, steps=2, prompts=("red",)),
)


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(model, data, tmp_path):
    recipe = replace(
        EVERYTHING, data=replace(EVERYTHING.data, class_path=data, class_prompt="a thing")
    )
    whole, parts = tmp_path / "whole" / "r", tmp_path / "parts" / "r"
    events = run(recipe, model, data, whole)
    stopped = run(recipe, model, data, parts, until=after(3))
    assert stopped[-1] == Stopped(step=3)
    resumed = run(recipe, model, data, parts, resume=True)
    same(trained(whole), trained(parts))
    for name in (DIFFUSERS, "r.kohya.safetensors", "samples/step-000004.png"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    losses = [[r.loss for r in of(e, Report)] for e in (events, stopped, resumed)]
    assert losses[0] == losses[1] + losses[2]
    assert [v.loss for v in of(events, Validated)][1:] == [v.loss for v in of(resumed, Validated)]
    assert any((whole / "cache").iterdir())
    assert len({s.file for s in of(events, Sampled)}) == 3


def test_a_run_may_be_stopped_while_pictures_are_encoded(model, data, tmp_path):
    recipe = replace(UNET, data=Data(cache_gib=0.0))
    run(recipe, model, data, tmp_path / "whole")
    stopped = run(
        recipe,
        model,
        data,
        tmp_path / "parts",
        until=lambda events: len(of(events, Preparing)) == 2,
    )
    assert stopped[1:] == [Preparing(done=1, total=4), Preparing(done=2, total=4), Stopped(step=0)]
    assert len(list((tmp_path / "parts" / "cache").iterdir())) == 2
    run(recipe, model, data, tmp_path / "parts", resume=True)
    same(trained(tmp_path / "whole"), trained(tmp_path / "parts"))


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(model, data, tmp_path):
    recipe = replace(UNET, train=Train(steps=4, save_every=2))
    run(recipe, model, data, tmp_path / "whole")
    steps = finetune_diffusion(recipe, model, data=data, out=tmp_path / "parts")
    while not (isinstance(event := next(steps), Report) and event.step == 3):
        pass
    steps.close()
    (tmp_path / "parts" / ".best.0123.partial.safetensors").write_bytes(b"x")
    (tmp_path / "parts" / ".model.0123.partial").mkdir()
    resumed = run(recipe, model, data, tmp_path / "parts", resume=True)
    assert of(resumed, Started)[0].first_step == 2
    same(trained(tmp_path / "whole"), trained(tmp_path / "parts"))
    assert not list((tmp_path / "parts").glob(".*"))


@pytest.mark.parametrize("kind", [UNET, VAE], ids=["unet", "vae"])
def test_accumulated_parts_are_one_batch(kind, model, data, tmp_path):
    kind = replace(kind, diffusion=replace(kind.diffusion, init="weights"), train=Train(steps=2))
    results = []
    for name, micro in (("whole", 0), ("parts", 1)):
        recipe = replace(kind, batch=Batch(images=4, micro_images=micro))
        events = run(recipe, model, data, tmp_path / name)
        results.append([(r.loss, r.grad_norm) for r in of(events, Report)])
    assert np.allclose(*results, rtol=2e-5)


@pytest.mark.parametrize("recipe", [UNET, EVERYTHING], ids=["unet", "lora"])
def test_two_processes_compute_what_one_does_and_are_resumed_bit_for_bit(
    recipe, model, data, tmp_path
):
    lora = replace(recipe.lora, dropout=0.0)  # each part draws its own
    recipe = replace(recipe, lora=lora, sample=Sample(), batch=replace(recipe.batch, images=3))

    def of_workers(count):
        return replace(recipe, train=Train(steps=4, save_every=0, workers=count))

    one = run(of_workers(1), model, data, tmp_path / "one" / "r")
    two = run(of_workers(2), model, data, tmp_path / "two" / "r")
    assert (of(one, Started)[0].workers, of(two, Started)[0].workers) == (1, 2)
    assert of(two, Summary)[0].workers == 2
    for a, b in zip(of(one, Report), of(two, Report), strict=True):
        assert (a.loss, a.grad_norm) == pytest.approx((b.loss, b.grad_norm), rel=1e-3)
        assert a.real_tokens == b.real_tokens
    parts = tmp_path / "parts" / "r"
    run(of_workers(2), model, data, parts, until=after(2))
    run(of_workers(2), model, data, parts, resume=True)
    same(trained(tmp_path / "two" / "r"), trained(parts))
    if recipe.diffusion.train == "lora":
        assert len(list((parts / "cache").iterdir())) >= 8  # encoded once, for both


def test_a_short_run_and_one_on_a_gpu_have_one_process(monkeypatch, tmp_path):
    base = open_base(config_dir(tmp_path / "configs"), random=True)
    monkeypatch.setattr("macai.finetune_diffusion.job.cores", lambda: 2)

    def count(images=4, workers=0, steps=500, before=0):
        recipe = replace(UNET, batch=Batch(images=images), train=Train(workers=workers))
        return workers_for(recipe, base, steps=steps, before=before)

    assert (count(), count(steps=499), count(images=1, steps=9999)) == (2, 1, 1)
    assert (count(workers=3), count(steps=1, before=2), count(before=4)) == (3, 2, 2)
    monkeypatch.setattr("macai.finetune_diffusion.job.available_bytes", lambda: 0)
    assert count() == 2  # of a model without weights there is little
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    assert count(workers=3) == 1


def test_a_small_model_learns_four_pictures_by_heart(data, tmp_path):
    recipe = replace(
        UNET,
        diffusion=Diffusion(
            train="unet", init="random", text_encoder=True, vae=model_dir(tmp_path / "with-vae")
        ),
        optimizer=Optimizer(learning_rate=1e-2),
        schedule=Schedule(name="cosine", warmup_steps=5),
        batch=Batch(images=4),
        train=Train(steps=60, save_every=0),
    )
    configs = config_dir(tmp_path / "configs", "unet", "text_encoder")
    events = run(recipe, configs, data, tmp_path / "out")
    losses = [r.loss for r in of(events, Report)]
    assert of(events, Started)[0].random == ("unet", "text_encoder")
    assert np.mean(losses[-20:]) < 0.4 * np.mean(losses[:5])
    whole = open_checkpoint(tmp_path / "out" / "model")
    assert set(whole.components) == {"unet", "vae", "text_encoder"}
    assert whole.tokenizer("text_encoder").size == 514


def test_an_autoencoder_learns_to_give_pictures_back(data, tmp_path):
    recipe = replace(
        VAE,
        optimizer=Optimizer(learning_rate=1e-2),
        train=Train(steps=60, eval_every=20),
        sample=Sample(every=30),
        data=Data(valid_path=data),
    )
    events = run(recipe, config_dir(tmp_path / "configs", "vae"), data, tmp_path / "out")
    losses = [v.loss for v in of(events, Validated)]
    first = of(events, Report)[0].loss
    assert losses[-1] < 0.35 * first
    checkpoint = open_checkpoint(tmp_path / "out" / "model")
    assert checkpoint.components == ("vae",)
    sheet = np.asarray(Image.open(tmp_path / "out" / "samples" / "step-000060.png"))
    assert sheet.shape == (32, 64, 3)
    error = np.abs(sheet[:16].astype(int) - sheet[16:]).mean()
    assert error < 40
    # Latents of the pictures have about a deviation of 1 with the new scale.
    vae, scale = checkpoint.load("vae"), checkpoint.configs["vae"]["scaling_factor"]
    pixels = mx.array(np.stack([np.asarray(picture(c)) for c in ((230, 20, 20), (90, 90, 90))]))
    posterior = vae.encode(pixels / 127.5 - 1)
    assert 0.5 < mx.std(posterior.mean).item() * scale < 1.5


def test_a_decoder_alone_is_trained_when_asked_for(model, data, tmp_path):
    recipe = replace(
        VAE, diffusion=Diffusion(train="vae"), autoencoder=Autoencoder(parts="decoder")
    )
    run(recipe, model, data, tmp_path / "out")
    before = open_checkpoint(model).load("vae")
    after = open_checkpoint(tmp_path / "out" / "model")
    assert set(after.components) == {"unet", "vae", "text_encoder"}
    assert after.configs["vae"]["scaling_factor"] == 1.0
    vae = after.load("vae")
    assert mx.array_equal(vae.encoder.conv_in.weight, before.encoder.conv_in.weight)
    assert mx.array_equal(vae.quant_conv.weight, before.quant_conv.weight)
    assert not mx.array_equal(vae.decoder.conv_in.weight, before.decoder.conv_in.weight)


def test_the_averaged_weights_are_the_result(model, data, tmp_path):
    recipe = replace(UNET, diffusion=Diffusion(train="unet", ema_decay=0.5), train=Train(steps=2))
    run(recipe, model, data, tmp_path / "out")
    arrays, _ = load_arrays(tmp_path / "out" / FILE)
    saved = open_checkpoint(tmp_path / "out" / "model").load("unet")
    assert mx.array_equal(joined(saved.parameters()), arrays["extra.average"])
    assert not mx.array_equal(saved.conv_in.weight, arrays["model.unet.conv_in.weight"])


def test_the_best_weights_are_kept_not_the_last(model, data, tmp_path):
    recipe = replace(
        UNET,
        optimizer=Optimizer(learning_rate=0.3),
        data=Data(valid_share=0.25),
        train=Train(steps=6, eval_every=1, save_every=0),
    )
    events = run(recipe, model, data, tmp_path / "out")
    validated = of(events, Validated)
    assert not validated[-1].best
    last, (best, _) = trained(tmp_path / "out"), load_arrays(tmp_path / "out" / BEST)
    assert any(np.abs(np.array(a) - last[f"model.{n}"]).max() > 1e-3 for n, a in best.items())
    assert of(events, Summary)[0].best_valid_loss == min(v.loss for v in validated)


def test_numbers_that_are_none_stop_the_run_and_are_not_saved(model, data, tmp_path):
    recipe = replace(
        UNET, optimizer=Optimizer(learning_rate=1e30, max_grad_norm=0), train=Train(steps=9)
    )
    with pytest.raises(TrainingError, match="the loss is"):
        run(recipe, model, data, tmp_path / "out")
    assert not (tmp_path / "out" / "model").exists()
    assert not (tmp_path / "out" / BEST).exists()


@pytest.mark.parametrize("text_encoder", [False, True])
def test_a_lora_for_sdxl_is_told_pooled_text_and_sizes(text_encoder, data, tmp_path):
    model, out = xl_dir(tmp_path / "xl"), tmp_path / "out"
    recipe = replace(
        LORA,
        diffusion=Diffusion(text_encoder=text_encoder),
        sample=Sample(every=4, steps=1),
        data=Data(caption_dropout=0.5),
    )
    losses = [r.loss for r in of(run(recipe, model, data, out), Report)]
    base = open_checkpoint(model)
    names = [n for n in base.components if n != "vae"]
    lora = read_lora(out / DIFFUSERS, layers_of({n: base.load(n) for n in names}))
    assert set(lora.modules) == (set(names) if text_encoder else {"unet"})
    # Text that is encoded in the step is text that was encoded before it.
    other = replace(recipe, diffusion=Diffusion(text_encoder=not text_encoder))
    again = of(run(other, model, data, tmp_path / "other"), Report)
    assert losses[0] == pytest.approx(again[0].loss, rel=1e-5)


def test_any_resolution_is_brought_to_what_a_latent_is_wide(model, data, tmp_path):
    recipe = replace(
        LORA,
        data=Data(resolution=21, bucket_step=2),
        sample=Sample(every=1, steps=1),
        train=Train(steps=1),
    )
    events = run(recipe, model, data, tmp_path / "out")
    assert of(events, Started)[0].sizes == {"20x20": 4}
    assert upright_size(tmp_path / "out" / "samples" / "step-000001.png") == (40, 40)
