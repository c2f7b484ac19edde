"""The Swift package of a bundle: its contract, its templates, and that both parse.

Long because one contract in Python and one in Swift are held against each other here.
"""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macai.bench.report.document import SCHEMA
from macai.coreml.adapter_file import AdapterFile, write_adapter_file
from macai.coreml.calls import DECODE_AT_MOST
from macai.coreml.manifest import CONTRACT, Manifest
from macai.coreml.slot import Place, Slot
from macai.coreml.swift import write_swift_package
from macai.coreml.swift.contract import contract_source, package_source
from macai.coreml.swift.names import module_name, number, string
from macai.coreml.swift.package import PLACEHOLDER, TEMPLATES
from macai.errors import OutputError, UsageError

ON_LINUX = Path(__file__).parent / "swift_on_linux"
STATE = [2, 1, 1, 128, 4]
SLOT = Slot(
    rank=2,
    state="adapter",
    shape=(6, 8),
    base={"weights": "aa", "tokenizer": "bb"},
    layers={
        "model.layers.0.q_proj": Place(inputs=4, outputs=6, a=0, b=16),
        "model.layers.0.o_proj": Place(inputs=6, outputs=4, a=28, b=40),
    },
)
HOSTILE = 'a"b\\(fatalError())\\\n*/ // "# \u2028 \u202e\x00'


def function(tokens):
    inputs = {
        "inputIds": {"dtype": "int32", "shape": [1, tokens]},
        "position": {"dtype": "int32", "shape": [1]},
    }
    if tokens > 1:
        inputs["last"] = {"dtype": "int32", "shape": [1]}
    logits = {"logits": {"dtype": "fp16", "shape": [1, 1, 48]}}
    return {"tokens": tokens, "inputs": inputs, "outputs": logits}


def manifest(**changes):
    """The values of a macai.json: two lengths of prefill, an adapter, and a slot for others."""
    lengths = {"decode": 1, "prefill_64": 64, "prefill_16": 16}
    lengths |= {"decode_pirate": 1, "prefill_pirate": 16}
    adapter = {"prefill": "prefill_pirate", "decode": "decode_pirate"}
    whole = Manifest(
        name="Pirate-2-9M",
        package="Pirate-2-9M.mlpackage",
        sha256="ab" * 32,
        bytes=1234,
        functions={},
        states={name: {"dtype": "fp16", "shape": STATE} for name in ("valueCache", "keyCache")},
        context=128,
        vocab_size=48,
        eos_token_ids=[2, 3],
        bos_token_id=None,
        precision="fp16",
        weights="int4",
        source={"model": "someone/pirate"},
        macai="0.1.0",
        slot=SLOT,
        adapters=[{"name": "pirate", "functions": adapter}],
    ).to_json()
    functions = {name: function(tokens) for name, tokens in lengths.items()}
    return whole | {"functions": functions} | changes


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("smollm2-135m", "Smollm2_135m"),
        ("Qwen/Qwen3-0.6B", "Qwen3_0_6B"),
        ("1abc", "Model1abc"),
        ("🦙", "Model"),
        ("🦙 llama", "Llama"),
        ("naïve-modèle", "NaiveModele"),
        ("a/b/", "B"),
        ("", "Model"),
        ("self", "SelfModel"),
        ("CoreML", "CoreMLModel"),
        ("language-model", "LanguageModelModel"),
    ],
)
def test_a_module_has_a_name_that_swift_takes(name, module):
    assert module_name(name) == module


@given(st.text())
def test_any_model_name_becomes_an_identifier(name):
    assert re.fullmatch(r"[A-Z][A-Za-z0-9_]*", module_name(name).capitalize())
    assert module_name(name).isascii()


def read_literal(literal):
    """The value of a Swift string literal without interpolation; an independent reading."""
    body = re.fullmatch(r'"((?:[^"\\\n\r]|\\["\\]|\\u\{[0-9a-f]{1,8}\})*)"', literal)
    assert body, literal
    return re.sub(
        r"\\(?:u\{([0-9a-f]+)\}|(.))",
        lambda m: chr(int(m[1], 16)) if m[1] else m[2],
        body[1],
    )


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_string_literal_reads_back_whatever_it_holds(text):
    assert read_literal(string(text)) == text


def test_half_a_surrogate_pair_is_replaced():
    assert string("a\ud800b") == '"a\\u{fffd}b"'


@pytest.mark.parametrize("value", [1.0, True, "1", None])
def test_only_integers_are_written_as_numbers(value):
    with pytest.raises(TypeError, match="not an integer"):
        number(value)


def test_the_manifest_is_in_the_contract():
    text = contract_source(manifest(), "Pirate")
    for line in (
        f"static let version = {CONTRACT}",
        'static let name = "Pirate-2-9M"',
        'static let packageName = "Pirate-2-9M.mlpackage"',
        f'static let sha256 = "{"ab" * 32}"',
        "static let packageBytes = 1234",
        "static let context = 128",
        "static let vocabularySize = 48",
        "static let eosTokenIDs: Set<Int> = [2, 3]",
        "static let bosTokenID: Int? = nil",
        'static let weights = "int4"',
        'static let computeUnits = "cpuAndGPU"',
        '"keyCache": [2, 1, 1, 128, 4], "valueCache": [2, 1, 1, 128, 4]',
        'static let sourceModel = "someone/pirate"',
        "public typealias PirateModel = LanguageModel",
    ):
        assert line in text


def test_the_slot_is_in_the_contract():
    text = re.sub(r"\s+", " ", contract_source(manifest(), "Pirate"))
    assert (
        'slot: AdapterSlot? = AdapterSlot( rank: 2, state: "adapter", shape: [6, 8], '
        'base: ["tokenizer": "bb", "weights": "aa"], layers: [ '
        '"model.layers.0.q_proj": [4, 6, 0, 16], "model.layers.0.o_proj": [6, 4, 28, 40], ])'
    ) in text
    assert "slot: AdapterSlot? = nil\n" in contract_source(manifest(slot=None), "Pirate")


def test_functions_are_sorted_into_variants():
    text = re.sub(r"\s+", " ", contract_source(manifest(), "Pirate"))
    own = (
        'adapter: nil, prefill: [ModelFunction(name: "prefill_16", tokens: 16), '
        'ModelFunction(name: "prefill_64", tokens: 64)], '
        'decode: ModelFunction(name: "decode", tokens: 1))'
    )
    assert own in text
    assert text.index(own) < text.index('adapter: "pirate"')
    assert 'prefill: [ModelFunction(name: "prefill_pirate", tokens: 16)]' in text


def test_a_model_without_adapters_or_prefill_has_one_variant():
    text = contract_source(manifest(adapters=[], functions={"decode": function(1)}), "Pirate")
    assert text.count("ModelVariant(") == 1
    assert "prefill: []," in text


def test_a_bundle_of_adapters_alone_begins_with_the_first():
    functions = {n: f for n, f in manifest()["functions"].items() if n.endswith("pirate")}
    text = contract_source(manifest(functions=functions), "Pirate")
    assert "adapter: nil" not in text


def hostile():
    values = manifest()
    names = {name: f"{name}{HOSTILE}" for name in values["functions"]}
    return (
        values
        | {
            "functions": {names[name]: f for name, f in values["functions"].items()},
            "adapters": [
                {
                    "name": HOSTILE,
                    "functions": {
                        "decode": names["decode_pirate"],
                        HOSTILE: names["prefill_pirate"],
                    },
                }
            ],
            "states": {f"{name}{HOSTILE}": state for name, state in values["states"].items()},
            "source": {"model": HOSTILE},
            "slot": values["slot"]
            | {"state": HOSTILE, "base": {HOSTILE: HOSTILE}}
            | {"layers": {HOSTILE: values["slot"]["layers"]["model.layers.0.q_proj"]}},
        }
        | dict.fromkeys(
            ["name", "package", "sha256", "precision", "weights", "compute_units", "macai"], HOSTILE
        )
    )


def test_hostile_strings_stay_strings():
    text = contract_source(hostile(), "Pirate")
    plain = len(contract_source(manifest(), "Pirate").splitlines())
    assert len(text.splitlines()) == plain - 1  # its slot has one layer, not two
    literals = re.findall(r'"(?:[^"\\\n]|\\.)*"', text)
    assert sum(HOSTILE in read_literal(literal) for literal in literals) >= 15
    rest = re.sub(r'"(?:[^"\\\n]|\\.)*"', "", text)
    assert "fatalError" not in rest
    assert '"' not in rest
    assert "\\" not in rest


@pytest.mark.parametrize(
    "change",
    [
        {"context": "1; evil()"},
        {"vocab_size": 1.5},
        {"eos_token_ids": ["2"]},
        {"bytes": None},
        {"contract": True},
        {"slot": asdict(SLOT) | {"rank": "2"}},
        {"slot": asdict(SLOT) | {"shape": ["6; evil()", 8]}},
        {"slot": asdict(SLOT) | {"layers": {"x": dict.fromkeys(("inputs", "outputs"), 1.5)}}},
    ],
)
def test_what_is_no_number_is_not_written(change):
    with pytest.raises(TypeError, match="not an integer"):
        contract_source(manifest(**change), "Pirate")


def test_what_is_no_version_of_a_system_is_not_written():
    with pytest.raises(ValueError, match="not a version"):
        package_source(manifest(minimum_os={"iOS": '18"), evil("', "macOS": "15.0"}), "Pirate")


def test_the_package_has_a_library_a_program_and_tests(tmp_path):
    text = package_source(manifest(), "Pirate")
    for line in (
        "// swift-tools-version: 6.0\n",
        '.library(name: "Pirate", targets: ["Pirate"])',
        '.iOS("18.0"), .macOS("15.0")',
        '.executableTarget(name: "PirateChat", dependencies: ["Pirate"])',
        '.executableTarget(name: "PirateBench", dependencies: ["Pirate"])',
        '.testTarget(name: "PirateTests", dependencies: ["Pirate"])',
    ):
        assert line in text


def test_all_templates_are_written_under_the_module_s_name(tmp_path):
    files = write_swift_package(tmp_path / "Swift", manifest())
    assert files == sorted(path for path in (tmp_path / "Swift").rglob("*") if path.is_file())
    names = {str(path.relative_to(tmp_path / "Swift")) for path in files}
    templates = {str(p.relative_to(TEMPLATES)) for p in TEMPLATES.rglob("*") if p.is_file()}
    generated = {"Package.swift", "Sources/Pirate2_9M/Contract.swift"}
    assert names == {t.replace(PLACEHOLDER, "Pirate2_9M") for t in templates} | generated
    for path in files:
        assert PLACEHOLDER not in path.read_text(encoding="utf-8"), path


def test_the_app_can_be_left_out(tmp_path):
    files = write_swift_package(tmp_path, manifest(), sample_app=False)
    assert not [path for path in files if "App" in path.relative_to(tmp_path).parts]
    assert tmp_path / "Package.swift" in files


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(OutputError, match="is not empty"):
        write_swift_package(tmp_path, manifest())


@pytest.mark.parametrize("change", [{"kind": "vision"}, {"contract": CONTRACT + 1}])
def test_a_manifest_of_something_else_is_refused(tmp_path, change):
    with pytest.raises(UsageError, match="a manifest of kind"):
        write_swift_package(tmp_path, manifest(**change))


def test_swift_reads_keys_that_the_manifest_has():
    text = (TEMPLATES / f"Sources/{PLACEHOLDER}/Manifest.swift").read_text(encoding="utf-8")
    keys = re.search(r"enum CodingKeys.*?\}", text, re.DOTALL)[0]
    plain = re.search(r"case ([a-z, 0-9]+)\n", keys)[1].split(", ")
    renamed = re.findall(r'= "(\w+)"', keys)
    assert set(plain + renamed) <= {field.name for field in fields(Manifest)}
    assert len(plain + renamed) == 7


def test_swift_writes_the_members_of_a_benchmark_report():
    text = (TEMPLATES / f"Sources/{PLACEHOLDER}/Benchmark.swift").read_text(encoding="utf-8")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    parts = schema["definitions"]
    kinds = {
        "BenchmarkReport": schema,
        "BenchmarkRun": parts["run"],
        "Machine": parts["machine"],
        "Settings": parts["settings"],
        "BenchmarkFigure": parts["figure"],
    }
    for name, definition in kinds.items():
        body = re.search(rf"( *)struct {name}: .*?\n\1}}", text, re.DOTALL)[0]
        body = re.sub(r"\n    struct .*?\n    }", "", body, flags=re.DOTALL)
        members = set(
            re.findall(r"\n +(?:let|var) (\w+)(?:: .*| = .*)", body.partition("init(")[0])
        )
        assert members <= set(definition["properties"]), name
        assert members >= set(definition["required"]), name
    units = set(re.findall(r'add\([\w" ]+, "([\w/]+)"', text))
    assert units <= set(parts["figure"]["properties"]["unit"]["enum"])
    assert units == {"s", "tokens/s", "bytes"}


def test_swift_plans_prompts_as_python_does():
    text = (TEMPLATES / f"Sources/{PLACEHOLDER}/PrefillPlan.swift").read_text(encoding="utf-8")
    assert f"static let decodeAtMost = {DECODE_AT_MOST}\n" in text


def test_the_xcode_project_refers_to_nothing_that_it_does_not_define():
    text = (TEMPLATES / "App/Chat.xcodeproj/project.pbxproj").read_text(encoding="utf-8")
    defined = re.findall(r"^\t\t(AC[0-9A-F]{22})(?: /\*[^*]*\*/)? = \{", text, re.MULTILINE)
    assert len(set(defined)) == len(defined)
    assert set(re.findall(r"\bAC[0-9A-F]{22}\b", text)) == set(defined)
    assert text.count("{") == text.count("}")
    assert text.count("(") == text.count(")")


def swift_errors(path):
    """Where a parser of Swift finds something that is not Swift."""
    tree_sitter = pytest.importorskip("tree_sitter", reason="needs the test extra's parser")
    grammar = pytest.importorskip("tree_sitter_swift", reason="needs the test extra's grammar")
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    waiting, errors = [parser.parse(path.read_bytes()).root_node], []
    while waiting:
        node = waiting.pop()
        waiting += node.children
        if node.is_error or node.is_missing or node.type == "interpolated_expression":
            errors.append(f"{path.name}:{node.start_point[0] + 1}: {node.type}")
    return errors


def test_all_sources_parse(tmp_path):
    files = write_swift_package(tmp_path, manifest())
    sources = [path for path in (*files, *ON_LINUX.iterdir()) if path.suffix == ".swift"]
    assert len(sources) >= 29
    errors = [error for path in sources for error in swift_errors(path)]
    assert [error for error in errors if not error.endswith("interpolated_expression")] == []


def test_a_hostile_contract_parses_without_interpolation(tmp_path):
    path = tmp_path / "Contract.swift"
    path.write_text(contract_source(hostile(), "Pirate"), encoding="utf-8")
    assert swift_errors(path) == []


def counting_up():
    """An adapter of rank 2 for SLOT whose bits count up, layer by layer, A before B."""
    layers, start = {}, 1
    for path, place in sorted(SLOT.layers.items()):
        pair = []
        for width in (place.inputs, place.outputs):
            bits = np.arange(start, start + 2 * width, dtype=np.uint16)
            pair.append(bits.view(np.float16).reshape(2, width))
            start += 2 * width
        layers[path] = (pair[0], pair[1])
    return AdapterFile(name="sample", base=SLOT.base, layers=layers)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the stand-ins are for Linux")
@pytest.mark.skipif(shutil.which("swift") is None, reason="needs a Swift 6 toolchain")
def test_the_package_compiles_and_talks(tmp_path):
    """Against stand-ins for Core ML and the tokenizer, with a pretended model."""
    write_swift_package(tmp_path / "Swift", manifest(name=PLACEHOLDER))
    made, here = tmp_path / "Swift", tmp_path / "Linux"
    for part in ("Sources", "Tests"):
        shutil.copytree(made / part, here / part)
    places = {
        "CoreML.swift": "Sources/CoreML",
        "Tokenizers.swift": "Sources/Tokenizers",
        "Darwin.swift": f"Sources/{PLACEHOLDER}",
        "SecurityScope.swift": "Sources/ChatApp",
        "ConversationTests.swift": f"Tests/{PLACEHOLDER}Tests",
        "Package.swift": ".",
    }
    for name, folder in places.items():
        (here / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(ON_LINUX / name, here / folder)
    shutil.copy(made / "App/Chat/ChatSession.swift", here / "Sources/ChatApp")
    write_adapter_file(here / f"Tests/{PLACEHOLDER}Tests/macai.macaiadapter", counting_up())
    command = ["swift", "test", "--disable-sandbox", "-Xswiftc", "-warnings-as-errors"]
    run = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-5000:]
    assert re.search(r"Executed \d\d tests, with 1 test skipped and 0 failures", run.stdout)
