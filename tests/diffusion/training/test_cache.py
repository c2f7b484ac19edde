import numpy as np

from macai.diffusion.training.cache import Cache


def entry(value: float):
    return {"mean": np.full((1, 4), value, np.float32), "std": np.ones((1, 4), np.float32)}


def never():
    raise AssertionError("it is kept already")


def test_what_fits_the_budget_is_kept_in_memory_and_the_rest_in_files(tmp_path):
    cache = Cache(tmp_path / "cache", budget_bytes=70)
    for i in range(4):
        cache.get(str(i), lambda i=i: entry(i))
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["2.npz", "3.npz"]
    for i in range(4):
        assert cache.get(str(i), never)["mean"][0, 0] == i


def test_files_serve_the_next_run_and_damaged_ones_are_made_again(tmp_path):
    Cache(tmp_path, 0).get("a", lambda: entry(1))
    assert Cache(tmp_path, 0).get("a", never)["mean"][0, 0] == 1
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    assert Cache(tmp_path, 0).get("a", lambda: entry(2))["mean"][0, 0] == 2
    assert Cache(tmp_path, 0).get("a", never)["mean"][0, 0] == 2


def test_a_cache_without_a_folder_makes_again_what_is_beyond_the_budget():
    cache = Cache(None, 40)
    made = []
    for _ in range(2):
        for name in ("a", "b"):
            cache.get(name, lambda name=name: (made.append(name), entry(0))[1])
    assert made == ["a", "b", "b"]
