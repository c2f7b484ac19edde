"""`macai verify`, `macai run` and `macai doctor` of what was exported."""

import json
import shutil
import sys

import numpy as np
import pytest


def test_an_exported_package_says_what_the_tuned_model_says(macai, folder, adapter, bundle):
    options = ("--max-tokens", 8)
    tuned = macai("generate", "Hello", "--model", folder, "--adapter", adapter, *options)
    plain = macai("generate", "Hello", "--model", folder, *options)
    ours = macai("run", bundle, "--prompt", "Hello", *options)
    assert (ours.code, ours.out) == (0, tuned.out)
    assert ours.out != plain.out
    report = json.loads((bundle / "verify.json").read_text())
    assert report["model"]["passed"]


def test_doctor_takes_a_verified_bundle_for_one(macai, bundle):
    def rules():
        found = json.loads(macai("doctor", bundle, "--json").out)
        return {f["rule"] for f in found["findings"]}

    assert not rules() & {"bundle-verification", "duplicate-weights", "bundle-manifest"}
    (bundle / "verify.json").write_text("{}")
    assert "bundle-verification" in rules()


def test_verify_tells_the_right_model_from_another(macai, folder, adapter, bundle):
    good = macai(
        "verify", bundle, "--against", folder, "--adapter", adapter, "--positions", 12, "--json"
    )
    assert good.code == 0
    assert json.loads(good.out)["passed"]
    bad = macai("verify", bundle, "--against", folder, "--positions", 12)
    assert bad.code == 1
    assert "FAILED: " in bad.out


def test_verify_takes_a_text(macai, folder, adapter, bundle, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Turn on the light in the kitchen, and play some music.")
    options = ("--against", folder, "--adapter", adapter, "--text", text, "--json")
    assert json.loads(macai("verify", bundle, *options).out)["passed"]
    missing = macai("verify", bundle, "--against", folder, "--text", tmp_path / "none")
    assert (missing.code, missing.out) == (1, "")
    assert f"error: {tmp_path}/none: cannot be read: No such file or directory\n" in missing.err
    text.write_bytes(b"caf\xe9")
    latin = macai("verify", bundle, "--against", folder, "--text", text)
    assert f"error: {text}: not UTF-8 at byte 3\n" in latin.err


def test_run_measures_with_json_and_stops_at_a_string(macai, bundle):
    options = ("--prompt", "Hello", "--max-tokens", 6, "--json")
    value = json.loads(macai("run", bundle, *options).out)
    assert value["generated_tokens"] <= 6
    assert value["finish_reason"] in ("stop", "length")
    whole = value["text"]
    stop = whole[len(whole) // 2]
    value = json.loads(macai("run", bundle, *options, "--stop", stop).out)
    assert value["text"] == whole[: whole.index(stop)]


def test_run_with_a_seed_repeats_itself(macai, bundle):
    options = ("--prompt", "Hello", "--max-tokens", 8, "--temperature", 1.5, "--seed", 7)
    assert macai("run", bundle, *options).out == macai("run", bundle, *options).out


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is there")
def test_core_ml_is_asked_for_on_a_mac_only(macai, folder, bundle):
    for command in (("run", "--prompt", "x"), ("verify", "--against", folder)):
        result = macai(command[0], bundle, *command[1:], "--runtime", "coreml")
        assert (result.code, result.out) == (1, "")
        assert "Core ML runs on macOS only" in result.err


@pytest.mark.parametrize("command", ["run", "verify"])
@pytest.mark.parametrize("what", ["missing", "no manifest", "no package", "no weights", "garbage"])
def test_a_broken_bundle_is_one_clear_error(macai, folder, bundle, tmp_path, command, what):
    data = bundle / "small.mlpackage/Data/com.apple.CoreML"
    if what == "missing":
        bundle = tmp_path / "none"
    elif what == "no manifest":
        (bundle / "macai.json").unlink()
    elif what == "no package":
        shutil.rmtree(bundle / "small.mlpackage")
    elif what == "no weights":
        shutil.rmtree(data / "weights")
    else:
        (data / "model.mlmodel").write_bytes(np.random.default_rng(0).bytes(5000))
    options = ("--prompt", "x") if command == "run" else ("--against", folder)
    result = macai(command, bundle, *options)
    assert (result.code, result.out) == (1, "")
    assert result.err.count("error: ") == 1


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("verify", ["--lora", "ink.safetensors"]),
        ("verify", ["--trajectory", "4"]),
        ("run", ["--image", "photo.png"]),
        ("run", ["--steps", "3"]),
    ],
)
def test_what_is_for_pictures_alone_is_refused(macai, folder, bundle, command, options):
    own = {"verify": ["--against", folder], "run": ["--prompt", "Hello"]}[command]
    result = macai(command, bundle, *own, *options)
    assert (result.code, result.out) == (1, "")
    assert f"error: {options[0]} is not for a language model\n" in result.err


def test_a_file_is_not_called_a_missing_folder(macai, bundle):
    result = macai("run", bundle / "macai.json", "--prompt", "Hello")
    assert (result.code, "a file, not a folder" in result.err) == (1, True)


def test_a_context_beyond_the_models_own_is_refused(macai, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    known = config["max_position_embeddings"]
    options = ["--model", folder, "--out", tmp_path / "b", "--no-verify"]
    result = macai("export", "llm", *options, "--context", known + 32)
    assert result.code == 1
    assert f"this model is made for {known} tokens" in result.err
    assert not (tmp_path / "b").exists()
