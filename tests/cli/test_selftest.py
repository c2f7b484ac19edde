import json

import pytest

from macai.selftest import proofs
from macai.selftest.proof import Finding, Proof
from macai.selftest.proofs import PROOFS


@pytest.fixture
def finding(monkeypatch):
    """Let all proofs find something that took no time to find."""

    def finding(*held):
        made = [
            Proof(name=f"p{n}", claim=f"claim {n}", find=lambda s, f=f: f, any_model=True)
            for n, f in enumerate(Finding(h, f"measure {n}") for n, h in enumerate(held))
        ]
        monkeypatch.setattr(proofs, "PROOFS", tuple(made))

    return finding


@pytest.fixture(autouse=True)
def no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MACAI_HOME", str(tmp_path / "home"))


def test_all_that_hold_are_a_table_and_exit_code_0(macai, finding):
    finding(True, None)
    result = macai("selftest")
    assert result.code == 0
    header, first, second, last = (line.split() for line in result.out.splitlines())
    assert header == ["claim", "model", "found", "seconds"]
    assert first == ["held", "claim", "0", "tiny", "measure", "0", "0.0"]
    assert second == ["not", "here", "claim", "1", "tiny", "measure", "1", "0.0"]
    assert last[:6] == ["1", "of", "2", "held,", "0", "failed,"]
    assert result.err.splitlines() == ["proving: 0 of 2", "proving: 2 of 2"]


def test_one_that_fails_is_named_and_exit_code_1(macai, finding):
    finding(True, False)
    result = macai("selftest")
    assert result.code == 1
    assert result.out.splitlines()[2].split()[:3] == ["FAILED", "claim", "1"]
    assert result.out.splitlines()[-1].startswith("1 of 2 held, 1 failed, in 0 s")


def test_json_is_one_line_with_the_machine(macai, finding):
    finding(True, False)
    result = macai("selftest", "--json")
    assert (result.code, result.out.count("\n")) == (1, 1)
    value = json.loads(result.out)
    assert set(value) == {"machine", "versions", "device", "proofs"}
    assert [p["held"] for p in value["proofs"]] == [True, False]
    assert set(value["proofs"][0]) == {"name", "claim", "model", "held", "measure", "seconds"}


def test_a_model_that_is_given_is_proved_on_as_well(macai, finding, tiny_dir):
    finding(True)
    result = macai("selftest", "--model", tiny_dir, "--json")
    models = [p["model"] for p in json.loads(result.out)["proofs"]]
    assert models == ["tiny", str(tiny_dir)]


def test_a_model_that_is_not_there_is_one_message(macai, tmp_path):
    result = macai("selftest", "--model", tmp_path / "nowhere")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ")


@pytest.mark.slow
@pytest.mark.long
def test_everything_holds_here_on_a_real_model(macai, smollm2_dir):
    result = macai("selftest", "--model", smollm2_dir, "--json")
    value = json.loads(result.out)
    wrong = [p for p in value["proofs"] if not p["held"]]
    assert (result.code, wrong) == (0, [])
    assert len(value["proofs"]) == len(PROOFS) + sum(p.any_model for p in PROOFS)
