"""`macai export llm` in fewer bits."""

import json

import pytest

from macai.coreml.session import open_bundle
from tests.cli.export.packages import SMALL, names


def test_weights_in_fewer_bits_take_an_adapter_too(macai, folder, calibrate, tmp_path):
    options = (*SMALL, "--weights", "int8", "--adapter-slot", 2, "--slot-target", "q_proj")
    options = (*options, *calibrate, "--json")
    result = macai("export", "llm", "--model", folder, "--out", tmp_path / "o", *options)
    assert result.code == 0, result.err
    value = json.loads(result.out)
    assert value["verify"]["slot"]["passed"]
    assert list(value["slot"]["layers"]) == [f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)]
    assert value["verify"]["compression"]["bits_per_weight"] < 9


@pytest.mark.parametrize("weights", ["int8", "uint4-32", "palette4-32"])
def test_weights_in_fewer_bits_are_smaller_and_compared_as_they_are(
    macai, folder, bundle, calibrate, tmp_path, weights
):
    out = tmp_path / "o"
    options = (*SMALL, "--weights", weights, *calibrate, "--json")
    result = macai("export", "llm", "--model", folder, "--out", out, *options)
    assert result.code == 0, result.err
    value = json.loads(result.out)
    assert value["weights"] == weights
    assert value["bytes"] < open_bundle(bundle)[1].size_bytes
    assert value["verify"]["model"]["exact"]
    price = value["verify"]["compression"]
    assert price["bits_per_weight"] < 16
    # 476 rows of the embedding are no multiple of 32, which palettes want.
    assert bool(price["left_as_they_are"]) == weights.startswith("palette")
    again = macai("verify", out, "--against", folder, "--positions", 12, "--json")
    assert again.code == 0
    assert not json.loads(again.out)["exact"]


def test_bits_are_spent_to_a_mean(macai, folder, calibrate, tmp_path):
    options = (*SMALL, "--bits-per-weight", 5, *calibrate, "--json")
    result = macai("export", "llm", "--model", folder, "--out", tmp_path / "o", *options)
    assert result.code == 0, result.err
    price = json.loads(result.out)["verify"]["compression"]
    assert 4 < price["bits_per_weight"] <= 5


def test_what_costs_too_much_is_not_kept(macai, folder, calibrate, tmp_path, monkeypatch):
    from macai.coreml import export_llm

    measured = iter([10.0, 12.0])  # of a random model it may as well fall
    monkeypatch.setattr(export_llm, "perplexity", lambda model, ids: next(measured))
    options = ("--weights", "int8", "--largest-increase", 0.1, *calibrate)
    result = macai("export", "llm", "--model", folder, "--out", tmp_path / "o", *SMALL, *options)
    assert (result.code, result.out) == (1, "")
    assert "the perplexity of a text rises by 20.0%, and 10% is the limit" in result.err
    assert names(tmp_path) == []
