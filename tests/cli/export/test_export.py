"""`macai export llm`, as a user meets it."""

import json

import pytest

from macai.models.load import load_model
from tests.adapters import adapt, save
from tests.cli.export.packages import SMALL, names
from tests.tiny import tiny_model_dir


def test_export_prints_the_package_and_how_well_it_agrees(macai, folder, tmp_path):
    out = tmp_path / "out"
    result = macai("export", "llm", "--model", folder, "--out", out, *SMALL)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == f"bundle: {out}"
    assert lines[1].startswith(f"package: {out / 'small.mlpackage'}, ")
    assert lines[-1] == "verified"
    assert any("top-1 100.0%" in line for line in lines)


def test_a_package_for_swift_transformers_is_made_verified_and_talked_to(
    macai, folder, adapter, tmp_path
):
    out, options = tmp_path / "out", ("--max-tokens", 8)
    made = macai(
        *("export", "llm", "--model", folder, "--adapter", adapter, "--out", out),
        *("--profile", "swift-transformers", "--context", 64, "--positions", 12),
    )
    assert made.code == 0, made.err
    lines = made.out.splitlines()
    assert "verified" in lines
    assert "not verified: that Core ML loads and runs it" in lines[lines.index("verified") + 1]
    tuned = macai("generate", "Hello", "--model", folder, "--adapter", adapter, *options)
    ours = macai("run", out, "--prompt", "Hello", *options)
    assert (ours.code, ours.out) == (0, tuned.out)
    checked = macai("verify", out, "--against", folder, "--adapter", adapter, "--positions", 12)
    assert (checked.code, checked.out.splitlines()[-1]) == (0, "verified")
    assert macai("doctor", out).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--profile", "tpu"), "unknown profile 'tpu'"),
        (("--profile", "swift-transformers", "--prefill", 8), "any number of tokens at once"),
    ],
)
def test_a_profile_that_there_is_not_or_that_has_no_such_functions_is_told(
    macai, folder, tmp_path, options, message
):
    result = macai("export", "llm", "--model", folder, "--out", tmp_path / "o", *options)
    assert result.code == 1
    assert message in result.err
    assert not (tmp_path / "o").exists()


def test_export_json_is_one_line_with_manifest_and_verification(macai, folder, tmp_path):
    result = macai("export", "llm", "--model", folder, "--out", tmp_path / "o", *SMALL, "--json")
    assert result.out.count("\n") == 1
    value = json.loads(result.out)
    assert value["verify"]["model"]["passed"]
    assert value["context"] == 64
    assert value["out"] == str(tmp_path / "o")


def test_packages_for_the_neural_engine_are_used_as_one_and_tell_what_nobody_tried(
    macai, folder, adapter, calibrate, tmp_path
):
    out = tmp_path / "out"
    options = ("--profile", "ane", "--chunks", 2, "--adapter", adapter, *calibrate)
    result = macai("export", "llm", "--model", folder, "--out", out, *SMALL, *options)
    assert result.code == 0, result.err
    assert [line for line in result.out.splitlines() if line.startswith("package: ")] == [
        f"package: {out / f'small-{n}of2.mlpackage'}, 0 MB, palette6-16" for n in (1, 2)
    ]
    assert "\nverified\nnot verified: that Core ML loads it" in result.out
    assert macai("verify", out, "--against", folder, "--adapter", adapter).code == 0
    assert macai("doctor", out).code == 0
    said = macai("run", out, "--prompt", "Hello", "--max-tokens", 4)
    assert (said.code, bool(said.out)) == (0, True)


def test_without_verification_it_says_so(macai, folder, tmp_path):
    out = tmp_path / "o"
    result = macai("export", "llm", "--model", folder, "--out", out, *SMALL, "--no-verify")
    assert result.code == 0
    assert "not verified" in result.err
    assert json.loads((out / "verify.json").read_text()) == {}


def test_a_package_that_does_not_agree_is_not_kept(macai, folder, tmp_path, monkeypatch):
    from macai.coreml import verify

    monkeypatch.setitem(verify.LIMITS, "cosine", 1.1)
    out = tmp_path / "o"
    result = macai("export", "llm", "--model", folder, "--out", out, *SMALL)
    assert (result.code, result.out) == (1, "")
    assert "error: the package does not agree with the model: model: prefill: cosine" in result.err
    assert names(tmp_path) == []


def test_an_existing_output_is_refused_before_anything_is_opened(macai, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine").write_text("old")
    result = macai("export", "llm", "--model", "no-such-model", "--out", tmp_path / "o")
    assert result.code == 1
    assert "exists already" in result.err
    assert names(tmp_path / "o") == ["mine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--context", 100), "a context of 100 is no multiple of 32"),
        (("--prefill", 1), "a prefill of 1 tokens"),
        (("--precision", "int8"), "unknown precision 'int8'"),
        (("--weights", "int3"), "unknown weight compression 'int3'"),
        (("--weights", "int8", "--bits-per-weight", 4), "--bits-per-weight chooses the weights"),
        (("--bits-per-weight", 1), "1 bits per weight are fewer"),
        (("--slot-target", "q_proj"), "--slot-target is of a slot"),
        (("--adapter-slot", 4, "--slot-target", "x"), "no linear layer is called 'x'"),
        (("--adapter-slot", 4, "--adapter", "a"), "a package with a slot takes adapters at run"),
        (("--calibrate", "nowhere.txt"), "nowhere.txt: cannot be read"),
        (("--profile", "tpu"), "unknown profile 'tpu'"),
        (("--chunks", 2), "profile gpu has all layers in one package"),
        (("--profile", "ane", "--chunks", 3, "--weights", "full"), "3 chunks of a model with 2"),
        (("--profile", "ane", "--weights", "int4-32"), "--weights int4-32 is not for the Neural"),
    ],
)
def test_wrong_values_are_one_error_and_leave_nothing(macai, folder, tmp_path, options, message):
    result = macai("export", "llm", "--model", folder, "--out", tmp_path / "o", *options)
    assert (result.code, result.out) == (1, "")
    assert f"error: {message}" in result.err
    assert names(tmp_path) == []


def test_the_adapter_of_another_base_is_refused(macai, adapter, tmp_path):
    other = tiny_model_dir(tmp_path / "other", seed=5)
    result = macai("export", "llm", "--model", other, "--adapter", adapter, "--out", tmp_path / "o")
    assert result.code == 1
    assert "trained on another base" in result.err
    assert names(tmp_path) == ["other"]


def test_several_adapters_are_functions_that_share_the_model(macai, folder, tmp_path):
    adapters = [
        save(adapt(load_model(folder), seed=seed), tmp_path / name)
        for seed, name in ((1, "first"), (2, "second"))
    ]
    out = tmp_path / "o"
    options = [a for adapter in adapters for a in ("--adapter", adapter)]
    result = macai("export", "llm", "--model", folder, "--out", out, *SMALL, *options)
    assert result.code == 0, result.err
    assert set(json.loads((out / "verify.json").read_text())) == {"model", "first", "second"}
    assert result.out.count("verified") == 3
    ask = ("--prompt", "Hello", "--max-tokens", 8)
    said = [macai("run", out, *ask).out]
    said += [macai("run", out, *ask, "--adapter", name).out for name in ("first", "second")]
    generate = ("generate", "Hello", "--model", folder, "--max-tokens", 8)
    expected = [macai(*generate).out]
    expected += [macai(*generate, "--adapter", adapter).out for adapter in adapters]
    assert said == expected
    assert len(set(said)) == 3
    wrong = macai("run", out, *ask, "--adapter", "third")
    assert (wrong.code, wrong.out) == (1, "")
    assert "hint: it has first, second" in wrong.err
    verify = ("verify", out, "--against", folder, "--positions", 12, "--adapter", adapters[0])
    assert macai(*verify, "--functions-of", "first").code == 0
    assert macai(*verify, "--functions-of", "second").code == 1


def test_two_adapters_of_one_name_are_refused(macai, folder, adapter, tmp_path):
    options = ("--adapter", adapter, "--adapter", adapter)
    result = macai("export", "llm", "--model", folder, "--out", tmp_path / "o", *options)
    assert result.code == 1
    assert "two adapters have one name" in result.err


def test_an_adapter_is_loaded_into_a_slot_at_run_time(macai, folder, adapter, tmp_path):
    out, file = tmp_path / "o", tmp_path / "mine.macaiadapter"
    result = macai("export", "llm", "--model", folder, "--adapter-slot", 4, "--out", out, *SMALL)
    assert result.code == 0, result.err
    assert "slot: an adapter of rank 4 at most, for 14 layers" in result.out
    assert set(json.loads((out / "verify.json").read_text())) == {"model", "slot"}
    write = ("export", "adapter", "--adapter", adapter, "--for", out, "--out", file)
    result = macai(*write, "--name", "mine", "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert (facts["name"], facts["rank"], facts["layers"]) == ("mine", 4, 14)
    assert facts["bytes"] == file.stat().st_size
    ask = ("--prompt", "Hello", "--max-tokens", 8)
    said = [macai("run", out, *ask, *a).out for a in ((), ("--adapter", file))]
    said += [macai("run", out, *ask, "--adapter", adapter).out]
    generate = ("generate", "Hello", "--model", folder, "--max-tokens", 8)
    tuned = macai(*generate, "--adapter", adapter).out
    assert said == [macai(*generate).out, tuned, tuned]
    assert said[0] != said[1]
    verify = ("verify", out, "--against", folder, "--positions", 12)
    assert macai(*verify).code == 0
    assert macai(*verify, "--adapter", adapter).code == 0
    assert macai(*verify, "--adapter", file).code == 0
    assert "name    mine\n" in macai("doctor", file).out
    assert json.loads(macai("doctor", file, "--json").out)["rank"] == 4
    again = macai(*write)
    assert (again.code, again.out) == (1, "")
    assert "exists already" in again.err
    file.write_bytes(file.read_bytes()[:-1])
    for command in (("doctor", file), ("run", out, *ask, "--adapter", file)):
        broken = macai(*command)
        assert (broken.code, broken.out) == (1, "")
        assert "no adapter file, or a damaged one" in broken.err
    assert macai(*write, "--force").code == 0
    assert macai("doctor", file).code == 0


def test_an_adapter_is_not_written_for_a_bundle_without_a_slot(macai, bundle, adapter, tmp_path):
    file = tmp_path / "a"
    result = macai("export", "adapter", "--adapter", adapter, "--for", bundle, "--out", file)
    assert (result.code, result.out) == (1, "")
    assert "hint: export it with --adapter-slot RANK" in result.err
    assert not file.exists()
