"""Each proof of `macai selftest` holds, and fails with the defect that it is there for."""

import pytest

from macai.errors import TrainingError
from macai.selftest import proofs
from macai.selftest.proof import Finding, Proof, Subject, within
from macai.selftest.proofs import PROOFS, prove
from tests.train import defects

DEFECTS = {
    "reference": [
        defects.compare_no_token_with_the_one_after_it,
        defects.average_the_means_of_micro_batches,
    ],
    "accumulation": [defects.average_the_means_of_micro_batches],
    "recomputing": [defects.draw_dropout_anew_when_recomputing],
    "padding": [defects.train_the_pad_after_each_row],
    "resuming": [
        defects.start_the_optimiser_anew,
        defects.start_the_schedule_anew,
        defects.draw_dropout_from_one_stream,
        defects.draw_the_order_from_one_generator,
    ],
    "workers": [defects.average_the_means_of_workers],
    "masks": [
        defects.train_the_last_turn_only,
        defects.leave_out_the_mark_that_ends_a_turn,
    ],
    "quantised": [defects.dequantise_in_half_precision],
    "adapter": [defects.load_weights_of_zero, defects.load_adapters_of_any_shape],
}
BY_NAME = {proof.name: proof for proof in PROOFS}
CASES = [
    pytest.param(BY_NAME[name], defect, id=f"{name}-{defect.__name__}")
    for name, several in DEFECTS.items()
    for defect in several
]


@pytest.fixture
def subject(tiny_dir, tmp_path):
    return Subject(tiny_dir, tmp_path)


def test_each_proof_has_a_name_of_its_own_and_a_defect_to_find():
    assert list(DEFECTS) == list(BY_NAME) == [proof.name for proof in PROOFS]


@pytest.mark.parametrize("proof", PROOFS, ids=BY_NAME)
def test_it_holds(proof, subject):
    finding = proof.find(subject)
    assert finding.held, finding.measure


@pytest.mark.parametrize(("proof", "defect"), CASES)
def test_it_does_not_hold_with_a_defect(proof, defect, subject, monkeypatch):
    defect(monkeypatch)
    finding = proof.find(subject)
    assert finding.held is False, finding.measure


def test_what_is_no_number_is_not_within_anything():
    assert within(1.0, loss=1.0).held
    assert not within(1.0, loss=float("nan")).held


def test_all_are_made_on_a_tiny_model_and_those_about_models_on_a_given_one(tiny_dir, monkeypatch):
    seen, told = [], []

    def find(subject):
        seen.append(subject)
        if len(seen) == 2:
            raise TrainingError("no more of it")
        return Finding(True, "as it should")

    made = [Proof(name=n, claim=n, find=find, any_model=n != "b") for n in "abc"]
    monkeypatch.setattr(proofs, "PROOFS", tuple(made))
    results = list(prove(tiny_dir, name="m", progress=lambda *told_: told.append(told_)))
    assert [(r.name, r.model, r.held) for r in results] == [
        ("a", "tiny", True),
        ("b", "tiny", False),
        ("c", "tiny", True),
        ("a", "m", True),
        ("c", "m", True),
    ]
    assert results[1].measure == "no more of it"
    assert [s.folder == tiny_dir for s in seen] == [False, False, False, True, True]
    assert len({s.scratch for s in seen}) == 5
    assert not any(s.scratch.exists() for s in seen)
    assert told == [("proving", n, 5) for n in range(6)]
