import json
import signal
import subprocess
import sys
import time

import pytest

from macai.finetune_diffusion.result import DIFFUSERS
from macai.train.checkpoint import FILE
from tests.diffusion.training.small import config_dir, model_dir, picture_dir

SUMMARY = {
    *("adapter", "model", "steps", "epochs", "train_loss", "valid_loss", "best_valid_loss"),
    *("images", "images_per_second", "workers", "peak_memory_bytes", "seconds"),
}
SMALL = (
    *("--set", "lora.rank=2", "--set", "batch.images=2", "--set", "train.steps=3"),
    *("--set", "sample.every=2", "--set", "sample.steps=1"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_dir(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return picture_dir(tmp_path_factory.mktemp("pictures") / "p")


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_a_recipe_for_pictures_ends_with_a_line_of_json_and_lora_files(
    macai, folder, data, tmp_path
):
    out = tmp_path / "style"
    command = ("train", "sd-lora", "--model", folder, "--data", data, "--out", out, *SMALL)
    result = macai(*command, "--set", "data.valid_share=0.25", "--json")
    assert result.code == 0
    assert result.out.count("\n") == 1
    summary = json.loads(result.out)
    assert summary.keys() == SUMMARY
    assert (summary["adapter"], summary["model"], summary["steps"]) == (str(out), None, 3)
    assert "3 pictures to learn from, 1 to check with; 4 of 16x16" in result.err
    assert "encoding pictures: 4 of 4" in result.err
    assert f"step 2: {out}/samples/step-000002.png" in result.err
    assert "step 3: validation loss" in result.err
    assert "done: 3 steps" in result.err
    assert names(out) == sorted(
        [
            *(FILE, "metrics.jsonl", DIFFUSERS, "recipe.toml", "report.html", "run.json"),
            *("samples", "style.kohya.safetensors"),
        ]
    )
    assert (out / "report.html").read_text().count("<img") == 2
    made = tmp_path / "x.png"
    for lora in (DIFFUSERS, "style.kohya.safetensors"):
        image = macai(
            "image",
            "red",
            "--model",
            folder,
            "--lora",
            out / lora,
            "--steps",
            1,
            "--out",
            made,
            "--force",
        )
        assert image.code == 0, image.err
        assert "32 of unet matched" in image.err


def test_a_new_model_is_trained_part_by_part(macai, data, tmp_path):
    configs = config_dir(tmp_path / "configs")
    common = ("--model", configs, "--data", data, *SMALL, "--set", "diffusion.init=random")
    vae, model = tmp_path / "vae", tmp_path / "model"
    result = macai("train", "sd-lora", *common, "--out", vae, "--set", "diffusion.train=vae")
    assert (result.code, result.out) == (0, f"model: {vae}/model\n")
    assert "random weights: vae" in result.err
    changes = (f"diffusion.vae={vae}/model", "diffusion.train=unet", "diffusion.text_encoder=true")
    sets = [word for change in changes for word in ("--set", change)]
    result = macai("train", "sd-lora", *common, "--out", model, *sets)
    assert (result.code, result.out) == (0, f"model: {model}/model\n")
    assert "random weights: unet, text_encoder" in result.err
    image = macai(
        "image", "red", "--model", model / "model", "--steps", 2, "--out", tmp_path / "x.png"
    )
    assert image.code == 0, image.err


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--set", "lora.rnak=8"], "unknown key 'rnak'", "did you mean 'rank'?"),
        (["--set", "adapter.rank=8"], "unknown table 'adapter'", "known here: "),
        (["--data", "gone"], "gone: no such folder", "give a folder of pictures"),
        (["--resume"], "no checkpoint to resume from", "leave out --resume"),
        (["--model", "gone/gone/gone"], "is not a path on this disk", "give a folder"),
        (["--set", "data.resolution=-1"], "data.resolution: must be at least 0", ""),
    ],
)
def test_a_wrong_word_is_one_message_with_a_hint(
    macai, folder, data, tmp_path, arguments, message, hint
):
    out = tmp_path / "run"
    result = macai("train", "sd-lora", "--model", folder, "--data", data, "--out", out, *arguments)
    assert (result.code, result.out) == (1, "")
    first, *rest = result.err.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert hint in "\n".join(rest)
    assert not out.exists()


def test_without_data_one_is_told_how_to_give_it(macai, folder, tmp_path):
    result = macai("train", "sd-lora", "--model", folder, "--out", tmp_path / "run")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(
        "error: no data to learn from\nhint: give --data and a folder of pictures"
    )


def test_a_stopped_run_goes_on_where_it_was(macai, folder, data, tmp_path):
    out = tmp_path / "run"
    command = ["sd-lora", "--model", folder, "--data", data, "--out", out, *SMALL]
    command += ["--set", "train.steps=100000", "--set", "sample.every=0"]
    command += ["--set", "train.workers=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "macai", "train", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log, deadline = out / "metrics.jsonl", time.monotonic() + 300
    while not log.is_file() or log.read_text().count('"loss"') < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    printed, err = process.communicate(timeout=120)
    assert (process.returncode, printed) == (143, "")
    stopped = log.read_text().count('"loss"')
    assert f"stopped after step {stopped}; go on with the same command and --resume" in err
    different = macai("train", *command, "--set", f"train.steps={stopped + 1}", "--resume")
    assert different.code == 1
    assert f"train.steps = 100000 there, {stopped + 1} here" in different.err
