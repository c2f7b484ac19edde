import numpy as np
import pytest
from PIL import Image

from macai.coreml.sd.manifest import read_sd_manifest
from macai.coreml.sd.proof import verify_sd
from macai.coreml.sd.strip import pictures
from macai.coreml.sd.trajectory import Course
from tests.coreml.sd.bundles import export_tiny, lora_file, read, sources


def test_twenty_steps_of_the_packages_end_where_those_of_the_model_do(bundle, model, tmp_path):
    strip = tmp_path / "strip.png"
    manifest = read_sd_manifest(bundle)
    report = verify_sd(manifest, bundle, sources(model), timesteps=1, course=Course(), strip=strip)
    assert report["passed"]
    course = report["trajectory"]
    for precision, least in {"fp32": 65, "fp16": 55}.items():
        assert len(course[precision]["cosine"]) == 21  # Swift's scheduler makes a call more
        assert min(course[precision]["cosine"]) > 0.99999
        assert course[precision]["psnr"] > least
    with Image.open(strip) as picture:
        assert picture.size == (4 * 32, 32)


@pytest.mark.slow
def test_other_weights_lead_astray(model, tmp_path):
    lora = read(model, lora_file(tmp_path / "ink.safetensors"), 20.0)
    manifest, _ = export_tiny(model, tmp_path / "b", loras=[lora], timesteps=0)
    manifest.source["loras"] = []  # as if nothing had been fused
    report = verify_sd(
        manifest, tmp_path / "b", sources(model), timesteps=1, course=Course(steps=4)
    )
    assert not report["passed"]
    assert any("the latents' cosine with the model's is" in p for p in report["problems"])


def test_a_strip_shows_eight_times_what_differs():
    finals = {"model": np.zeros((2, 2, 3)), "fp16": np.full((2, 2, 3), 0.125)}
    strip = pictures(finals, lambda latents: latents)
    assert strip.shape == (2, 6, 3)
    assert np.ptp(strip[:, :2]) == 0
    assert abs(int(strip[0, 4, 0]) - 128) <= 1
