"""Core ML as what runs a bundle: on a Mac the real one, elsewhere a stand-in for coremltools'."""

import sys
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest

from macai.coreml.bundle import write_bundle
from macai.coreml.device import CoreMLRunner
from macai.coreml.session import ReferenceRunner, Session, open_bundle
from macai.coreml.verify import verify_package
from macai.mil import open_package
from macai.models.load import load_model

IDS = [5, 80, 33, 7, 260, 9, 41, 17, 300, 77, 120, 8, 55, 401, 3]


@pytest.fixture(scope="module")
def bundle(tiny_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("device") / "b"
    folder.mkdir()
    write_bundle(
        load_model(tiny_dir, as_stored=True),
        folder,
        name="Tiny",
        source={"model": "tiny"},
        context=64,
        prefill=[8],
    )
    return folder


class StandIn:
    """coremltools' MLModel as documented, run by the reference runtime."""

    def __init__(self, path, *, compute_units, function_name):
        self._package = open_package(path_of(path))
        self._name, self.units = function_name, compute_units

    def make_state(self):
        return self._package.make_state(self._name)

    def predict(self, data, state=None):
        assert state is not None
        return self._package.functions[self._name].run(data, state=state).outputs


def path_of(path):
    assert isinstance(path, str)
    return Path(path)


def test_a_conversation_is_the_same_by_either_runtime(bundle, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ct.models, "MLModel", StandIn)
    manifest, package = open_bundle(bundle)
    runner = CoreMLRunner(bundle, manifest)
    assert {m.units for [m] in runner._models.values()} == {ct.ComputeUnit.CPU_AND_GPU}
    ours, theirs = Session(manifest, ReferenceRunner(package)), Session(manifest, runner)
    assert np.array_equal(ours.feed(IDS[:11]), theirs.feed(IDS[:11]))
    assert np.array_equal(ours.feed(IDS[11:]), theirs.feed(IDS[11:]))
    theirs.reset()
    np.testing.assert_allclose(theirs.feed(IDS), ours.last, atol=1e-3)  # in other chunks


@pytest.mark.mac
def test_core_ml_computes_what_the_model_does(bundle, tiny):
    manifest, package = open_bundle(bundle)
    runner = CoreMLRunner(bundle, manifest, "cpuOnly")
    report = verify_package(tiny, manifest, package, IDS, tokens=8, runner=runner)
    assert report["passed"], report["problems"]
