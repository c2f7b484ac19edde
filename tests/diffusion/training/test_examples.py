from collections import Counter
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from macai.diffusion.latents import Latents
from macai.diffusion.training.buckets import Size
from macai.diffusion.training.cache import Cache
from macai.diffusion.training.captions import Captions
from macai.diffusion.training.draws import generator, order
from macai.diffusion.training.examples import (
    Batches,
    Moments,
    PixelBatches,
    Pixels,
    Randomness,
    examples,
)
from macai.diffusion.training.noising import Noising
from macai.diffusion.training.pictures import read_pictures
from macai.diffusion.training.plan import Slot
from tests.diffusion.tiny import SCHEDULER
from tests.diffusion.training.small import COLOURS, models, picture, picture_dir, tokenizer

FIELDS = ("noisy", "target", "timesteps", "weights", "hidden")


@pytest.fixture(scope="module")
def made():
    return models()


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    folder = picture_dir(tmp_path_factory.mktemp("pictures") / "p")
    return examples(read_pictures(folder), [Size(16, 16)])


@pytest.fixture
def batches(made, tmp_path):
    def batches(*, trained=False, gamma=0.0, prior=1.0, **random):
        cache = Cache(tmp_path / "cache", 1 << 30)
        latents = Latents(made.models["vae"])
        captions = Captions(
            [tokenizer()],
            [made.models["text_encoder"]],
            trained=trained,
            time_ids=None,
            cache=cache,
            encoders_name="text",
        )
        moments = Moments(cache, Pixels(cache, background="white"), latents, "vae")
        return Batches(
            moments,
            captions,
            latents,
            Noising(SCHEDULER),
            Randomness(**{"seed": 0} | random),
            min_snr_gamma=gamma,
            prior_weight=prior,
        )

    return batches


def slots(*pictures, **options):
    return [Slot(number, picture, **options) for number, picture in enumerate(pictures)]


def equal(a, b):
    return all(mx.array_equal(getattr(a, f), getattr(b, f)).item() for f in FIELDS)


def test_a_stream_belongs_to_what_it_is_for():
    assert (
        generator(1, "noise", 2).random(3).tolist() == generator(1, "noise", 2).random(3).tolist()
    )
    streams = {
        float(generator(*what).random()) for what in ((1, 2), (2, 1), (1, "2"), (12,), (1, 2, 0))
    }
    assert len(streams) == 5
    assert sorted(order(10, "x")) == list(range(10))


def test_what_is_drawn_follows_from_seed_step_and_place(batches, learnt):
    own, others = batches(), batches(seed=1)
    first = own.training(3, slots(0, 1, 2), learnt)
    assert equal(batches().training(3, slots(0, 1, 2), learnt), first)
    for other in (
        own.training(4, slots(0, 1, 2), learnt),
        others.training(3, slots(0, 1, 2), learnt),
        own.training(3, slots(1, 0, 2), learnt),
    ):
        assert not mx.array_equal(other.noisy, first.noisy)
        assert not mx.array_equal(other.timesteps, first.timesteps)


def test_the_parts_of_a_step_are_those_of_the_whole(batches, learnt):
    own, places = batches(caption_dropout=0.5, noise_offset=0.1, gamma=5.0), slots(2, 0, 1, 3)
    whole = own.training(7, places, learnt)
    parts = [own.training(7, part, learnt) for part in (places[:1], places[1:])]
    for field in FIELDS:
        joined = mx.concatenate([getattr(part, field) for part in parts])
        assert mx.array_equal(joined, getattr(whole, field))
    assert (whole.images, whole.computed) == (4, 4)


def test_latents_are_drawn_anew_around_the_same_mean(batches, learnt, made):
    def latents(step):
        batch = batches().training(step, slots(0), learnt)
        signal = Noising(SCHEDULER)._roots(np.array(batch.timesteps, np.int64))
        return (batch.noisy - signal[1] * batch.target) / signal[0]

    drawn = [latents(step) for step in range(3)]
    assert mx.abs(drawn[0] - drawn[1]).max().item() > 1e-3
    posterior = made.models["vae"].encode(
        mx.array(Pixels(Cache(None, 0), background="white")(learnt[0]))
    )
    for one in drawn:
        assert mx.abs((one - posterior.mean) / posterior.std).max().item() < 5.5


def test_so_many_captions_are_left_out(batches, learnt):
    own, empty = batches(caption_dropout=0.25, trained=True), tokenizer().ids([""])[0].tolist()
    places = slots(*[0] * 400)
    ids = own.training(0, places, learnt).ids[0].tolist()
    assert 0.18 < sum(row == empty for row in ids) / 400 < 0.32
    assert (
        sum(
            row == empty
            for row in batches(trained=True).training(0, places, learnt).ids[0].tolist()
        )
        == 0
    )


def test_of_several_captions_each_is_drawn_about_equally_often(batches, learnt):
    several = replace(learnt[0], picture=replace(learnt[0].picture, captions=("a", "b", "cc")))
    places, own = slots(*[0] * 300), batches(trained=True)
    rows = own.training(0, places, [several]).ids[0].tolist()
    seen = Counter(map(tuple, rows))
    assert set(seen) == {tuple(tokenizer().ids([c])[0].tolist()) for c in ("a", "b", "cc")}
    assert min(seen.values()) > 60
    for validated in own.validation([several], 4, 4):
        assert set(map(tuple, validated().ids[0].tolist())) == {
            tuple(tokenizer().ids(["a"])[0].tolist())
        }


def test_half_of_the_pictures_are_mirrored_when_asked_for(made, tmp_path):
    image = np.array(picture((255, 0, 0)))
    image[:, :8] = 0
    from PIL import Image

    Image.fromarray(image).save(tmp_path / "a.png")
    learnt = examples(read_pictures(tmp_path, captions=False), [Size(16, 16)])
    for flip, sides in ((False, {-1.0}), (True, {-1.0, 1.0})):
        pixels = Pixels(Cache(tmp_path, 1 << 20), background="white")
        own = PixelBatches(pixels, factor=2, channels=4, seed=0, flip=flip)
        batch = own.training(0, slots(*[0] * 40), learnt)
        left = batch.pixels[:, 0, 0, 0].tolist()
        assert set(left) == sides
        assert not flip or 10 < Counter(left)[1.0] < 30
    assert batch.noise.shape == (40, 8, 8, 4)


def test_class_pictures_weigh_as_asked_and_do_not_count(batches, learnt):
    places = [*slots(0, 1), Slot(2, 0, of_class=True), Slot(3, 1, of_class=True)]
    batch = batches(prior=0.3).training(0, places, learnt[:2], learnt[2:])
    assert batch.weights.tolist() == pytest.approx([1, 1, 0.3, 0.3])
    assert (batch.images, batch.computed) == (2, 4)
    alone = batches().training(0, slots(0, 1), learnt[:2])
    assert mx.array_equal(batch.noisy[:2], alone.noisy)


def test_min_snr_goes_into_the_weights(batches, learnt):
    batch = batches(gamma=5.0).training(0, slots(*[0, 1, 2, 3] * 8), learnt)
    wanted = Noising(SCHEDULER).weights(np.array(batch.timesteps, np.int64), 5.0)
    assert np.allclose(np.array(batch.weights), wanted)
    assert min(wanted) < 0.1
    assert max(wanted) == 1


def test_an_offset_moves_whole_channels(batches, learnt):
    plain = batches().training(0, slots(0), learnt)
    moved = batches(noise_offset=0.5).training(0, slots(0), learnt)
    difference = np.array(moved.target - plain.target)
    assert np.ptp(difference, axis=(1, 2)).max() < 1e-6
    assert np.abs(difference).max() > 0.01


def test_validation_is_always_the_same_and_spread_over_the_timesteps(batches, learnt):
    options = {"caption_dropout": 1.0, "noise_offset": 0.5, "flip": True}
    first = [make() for make in batches(**options).validation(learnt, 4, 3)]
    again = [make() for make in batches(seed=9).validation(learnt, 4, 3)]
    assert [b.images for b in first] == [3, 3, 3, 3, 3, 1]
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    times = np.concatenate([np.array(b.timesteps) for b in first]).reshape(4, 4)
    assert (times // 250 == [0, 1, 2, 3]).all()


def test_an_xl_model_is_told_the_size_and_what_was_cut_off(made, tmp_path):
    picture((1, 2, 3), 40, 20).save(tmp_path / "wide.png")
    (example,) = examples(read_pictures(tmp_path, captions=False), [Size(16, 16)])

    class Encoder:
        def __call__(self, ids):
            return made.models["text_encoder"](ids)

    def told(count):
        captions = Captions(
            [tokenizer()],
            [Encoder()],
            trained=True,
            time_ids=count,
            cache=Cache(tmp_path, 0),
            encoders_name="x",
        )
        return captions([""], [example]).time_ids.tolist()

    assert told(6) == [[20, 40, 0, 8, 16, 16]]
    assert told(5) == [[20, 40, 0, 8, 6]]


def test_another_file_of_the_same_name_has_other_latents(batches, learnt, tmp_path):
    folder = picture_dir(tmp_path / "p")
    own = batches()
    before = own.training(0, slots(0), examples(read_pictures(folder), [Size(16, 16)]))
    picture(COLOURS["red"]).save(folder / "blue.png")
    (changed,) = [p for p in read_pictures(folder) if p.caption == "blue"]
    after = own.training(0, slots(0), examples([changed], [Size(16, 16)]))
    assert not mx.array_equal(before.noisy, after.noisy)
    assert replace(changed, captions=("x",)).digest == changed.digest
