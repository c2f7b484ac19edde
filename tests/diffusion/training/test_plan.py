from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.diffusion.training.buckets import Size, bucket_sizes, choose
from macai.diffusion.training.plan import Planner


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (768, 64), (64, 32), (1024, 64)])
def test_buckets_have_about_the_area_of_the_square(resolution, step):
    sizes = bucket_sizes(resolution, step=step, max_aspect=2.0)
    assert Size(resolution, resolution) in sizes
    assert {Size(s.height, s.width) for s in sizes} == set(sizes)
    for size in sizes:
        assert size.width % step == size.height % step == 0
        area = size.width * size.height / resolution**2
        assert 1 - step / min(size.width, size.height) <= area <= 1
        assert 0.5 <= size.width / size.height <= 2


def test_the_buckets_of_512_pixels_are_these():
    sizes = bucket_sizes(512, step=64, max_aspect=2.0)
    wide = [(640, 384), (576, 448)]
    assert {(s.width, s.height) for s in sizes} == {*wide, (512, 512), (448, 576), (384, 640)}


def test_without_buckets_there_is_the_square_alone():
    assert bucket_sizes(512, step=64, max_aspect=1.0) == [Size(512, 512)]
    assert bucket_sizes(500, step=64, max_aspect=1.0) == [Size(448, 448)]
    assert bucket_sizes(20, step=64, max_aspect=1.0) == [Size(64, 64)]


def test_a_picture_gets_the_size_of_its_shape():
    sizes = bucket_sizes(512, step=64, max_aspect=2.0)
    assert choose(sizes, 4000, 4000) == Size(512, 512)
    assert choose(sizes, 600, 400) == Size(640, 384)
    assert choose(sizes, 1000, 3000) == Size(384, 640)
    assert choose(sizes, 1100, 1000) == Size(512, 512)


SIZES = st.lists(
    st.sampled_from([Size(64, 64), Size(96, 32), Size(32, 96)]), min_size=1, max_size=30
)


@given(SIZES, st.integers(1, 7), st.integers(0, 4), st.integers(1, 3), st.integers(0, 5))
def test_an_epoch_has_every_picture_as_often_as_it_is_repeated(sizes, images, micro, repeats, seed):
    planner = Planner(sizes, images=images, micro_images=micro, repeats=repeats, seed=seed)
    per_epoch = planner.steps_per_epoch
    for epoch in range(2):
        steps = list(planner.steps(epoch * per_epoch, (epoch + 1) * per_epoch))
        slots = [slot for _, parts in steps for part in parts for slot in part]
        assert Counter(slot.picture for slot in slots) == dict.fromkeys(range(len(sizes)), repeats)
        counts = [sum(map(len, parts)) for _, parts in steps]
        assert sorted(counts)[1:] == [images] * (per_epoch - 1)
        for _, parts in steps:
            numbers = sorted(slot.number for part in parts for slot in part)
            assert numbers == list(range(len(numbers)))
            for part in parts:
                assert len({sizes[slot.picture] for slot in part}) == 1
                assert len(part) <= (micro or images)


def test_steps_follow_from_their_number_alone():
    sizes = [Size(64, 64)] * 5 + [Size(96, 32)] * 4
    whole = list(Planner(sizes, images=2, seed=3).steps(0, 12))
    assert list(Planner(sizes, images=2, seed=3).steps(7, 12)) == whole[7:]
    assert list(Planner(sizes, images=2, seed=4).steps(0, 12)) != whole
    first, second = whole[:5], whole[5:10]
    assert [parts for _, parts in first] != [parts for _, parts in second]


def test_most_steps_are_of_one_size():
    sizes = [Size(64, 64)] * 17 + [Size(96, 32)] * 15
    steps = list(Planner(sizes, images=4, seed=0).steps(0, 8))
    assert sum(len(parts) == 1 for _, parts in steps) == 7


def test_a_step_has_as_many_class_pictures_as_others_and_takes_them_in_turn():
    sizes, of_class = [Size(64, 64)] * 4, [Size(64, 64), Size(96, 32), Size(64, 64)]
    planner = Planner(sizes, images=2, class_sizes=of_class, seed=1)
    seen = Counter()
    for _, parts in planner.steps(0, 6):
        slots = [slot for part in parts for slot in part]
        assert [slot.of_class for slot in sorted(slots, key=lambda s: s.number)] == [False] * 2 + [
            True
        ] * 2
        for part in parts:
            assert len({(of_class if s.of_class else sizes)[s.picture] for s in part}) == 1
        seen.update(slot.picture for slot in slots if slot.of_class)
    assert seen == {0: 4, 1: 4, 2: 4}
