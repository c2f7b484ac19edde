import json
import random
from pathlib import Path

import pytest
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

from macai.coreml.bundle import write_bundle
from macai.coreml.slot import SlotOptions
from macai.errors import PackageError
from macai.mil.lint import RULES, lint
from macai.mil.lint.operations import FIRST_VERSION
from macai.mil.lint.page import page
from macai.models.load import load_model
from tests.mil.lint_build import MODEL, copied, of_json
from tests.mil.lint_cases import CASES, PLAIN, STATES
from tests.mil.mutate import change_program


@pytest.fixture(scope="session")
def bundle(tiny_dir, tmp_path_factory):
    """What macai export llm writes of the tiny model, with the licence that it has not."""
    folder = tmp_path_factory.mktemp("lint") / "Tiny"
    folder.mkdir()
    loaded = load_model(tiny_dir, as_stored=True)
    write_bundle(loaded, folder, name="Tiny", source={"model": "tiny"}, context=64, prefill=(8,))
    (folder / "LICENSE").write_text("MIT\n")
    (folder / "verify.json").write_text(json.dumps({"model": {"passed": True}}))
    return folder


def found(path) -> dict[str, str]:
    """Return the rules that apply and their severity."""
    return {a.rule.id: a.severity for a in lint(path).applied}


def test_every_rule_has_a_case():
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_applies_to_what_it_is_about(rule, tmp_path, bundle):
    bad, _ = CASES[rule]
    assert rule in found(bad(tmp_path, bundle))


@pytest.mark.parametrize("rule", [r for r, (_, good) in CASES.items() if good.__name__ != "clean"])
def test_a_rule_does_not_apply_to_what_only_looks_like_it(rule, tmp_path, bundle):
    _, good = CASES[rule]
    assert rule not in found(good(tmp_path, bundle))


def test_a_bundle_of_macai_has_no_errors_and_no_warnings(bundle):
    notes = found(bundle)
    assert set(notes.values()) == {"note"}, notes
    # float32 norms and two states are meant; the tiny heads are 16 wide.
    assert set(notes) <= {
        "attention-on-neural-engine",
        "fp32-operations",
        "known-contract",
        "many-states",
        "missing-metadata",
        "state-width",
    }


def test_a_slot_that_does_not_fit_is_told_of(tmp_path, bundle):
    def messages(folder, **slot):
        report = lint(of_json("macai.json", slot=slot)(folder, bundle))
        (applied,) = [a for a in report.applied if a.rule.id == "bundle-slot"]
        return [f.message for f in applied.findings]

    whole = {"rank": 2, "state": "keyCache", "shape": [2, 16], "base": {}}
    layers = {"x": {"inputs": 8, "outputs": 8, "a": 0, "b": 20}}
    found = messages(tmp_path / "1", **whole, layers=layers)
    assert found[0] == "x is at 20 to 36 of 32"
    assert "it is written to" in found[1:]
    assert messages(tmp_path / "2", rank=2, layers={}) == [
        "macai.json does not describe it: KeyError: 'shape'"
    ]


def test_a_bundle_with_a_slot_has_no_errors(tmp_path, tiny_dir):
    folder = tmp_path / "Tiny"
    folder.mkdir()
    write_bundle(
        load_model(tiny_dir, as_stored=True),
        folder,
        name="Tiny",
        source={"model": "tiny"},
        context=64,
        slot=SlotOptions(rank=4),
    )
    assert "error" not in found(folder).values()


def test_rules_about_the_neural_engine_are_warnings_where_the_bundle_runs_there(tmp_path, bundle):
    assert found(bundle)["many-states"] == "note"
    changed = of_json("macai.json", compute_units="cpuAndNeuralEngine")(tmp_path, bundle)
    assert found(changed)["many-states"] == "warning"


def test_a_finding_names_function_and_operation(tmp_path, bundle):
    bad, _ = STATES["stale-state"]
    report = lint(bad(tmp_path, bundle))
    (applied,) = [a for a in report.applied if a.rule.id == "stale-state"]
    (finding,) = applied.findings
    assert (finding.function, finding.operation[:3]) == ("main", "mul")
    assert "state x1" in finding.message
    (row,) = [r for r in report.to_json()["findings"] if r["rule"] == "stale-state"]
    assert (row["severity"], row["function"]) == ("warning", "main")
    assert json.dumps(report.to_json())


def test_errors_come_first(tmp_path, bundle):
    changed = of_json("macai.json", contract=2)(tmp_path, bundle)
    severities = [a.severity for a in lint(changed).applied]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert severities[0] == "error"


def test_a_folder_with_one_package_is_that_package(tmp_path, bundle):
    PLAIN(tmp_path / "in", bundle)
    assert lint(tmp_path / "in").functions == ("main",)
    with pytest.raises(PackageError, match=r"neither macai.json nor Manifest.json"):
        lint(tmp_path)


def test_a_broken_manifest_is_an_error_and_all_else_is_still_examined(tmp_path, bundle):
    changed = copied(tmp_path, bundle)
    (changed / "macai.json").write_text("{")
    assert {"bundle-manifest", "many-states"} <= set(found(changed))


def test_a_manifest_that_names_another_folder_is_refused(tmp_path, bundle):
    changed = of_json("macai.json", package="../Tiny.mlpackage")(tmp_path, bundle)
    (changed / "Tiny.mlpackage").rename(changed / "Other")
    with pytest.raises(PackageError, match="names no package beside it"):
        lint(changed)


def test_damaged_packages_give_findings_or_one_error(tmp_path, bundle):
    package = copied(tmp_path, bundle) / "Tiny.mlpackage"
    model = (package / MODEL).read_bytes()
    refused = 0
    for seed in range(60):
        (package / MODEL).write_bytes(change_program(model, random.Random(seed)))
        try:
            lint(package.parent)
        except PackageError:
            refused += 1
    assert 0 < refused < 60


def test_the_versions_of_operations_are_those_of_coremltools():
    first = {
        name: min(versions, key=lambda target: target.value).value
        for name, versions in SSAOpRegistry.core_ops.items()
    }
    known = {name: version for version, names in FIRST_VERSION.items() for name in names}
    # What a saved state operation is called is not in the builder's table.
    saved = {"write_state", "coreml_update_state"}
    assert {n: v for n, v in first.items() if v > 6} == {
        n: v for n, v in known.items() if n not in saved
    }


def test_the_page_is_what_the_rules_say_of_themselves():
    file = Path(__file__).parents[2] / "docs" / "lint.md"
    hint = "run: python -m macai.mil.lint.page > docs/lint.md"
    assert file.read_text(encoding="utf-8") == page(), hint


def test_every_rule_says_why_and_what_to_do():
    for rule in RULES.values():
        assert not rule.title.endswith("."), rule.id
        assert rule.why.endswith("."), rule.id
        assert rule.fix, rule.id
