"""What `macai data check` finds, and what a run refuses by itself."""

import json

import pytest

from macai.data.batches import plan_epoch
from macai.data.check import check, histogram, token_texts
from macai.data.pairs import answers_of, pair_lengths, prepare_pairs
from macai.data.repeats import duplicates, leaks, require_apart
from macai.data.rows import Row, Splits, read_rows, read_splits
from macai.data.tokens import prepare, require_ended, tokenise
from macai.errors import DataError
from tests.data.cases import chat
from tests.data.test_tokens import R1
from tests.tiny import END

MARKLESS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"


def text(said, line, file="train.jsonl"):
    return Row(source=f"{file}:{line}", text=said)


def splits_of(train, valid=("v",), test=()):
    return Splits(
        [text(said, n) for n, said in enumerate(train, 1)],
        [text(said, n, "valid.jsonl") for n, said in enumerate(valid, 1)],
        [text(said, n, "test.jsonl") for n, said in enumerate(test, 1)],
    )


@pytest.fixture
def look(tokenizer):
    def look(splits, *, tokenizer=tokenizer, max_length=64, truncation="error", tokens=256, **more):
        ends = frozenset([tokenizer.eos_token_id])
        options = {"max_length": max_length, "truncation": truncation, "tokens": tokens, **more}
        return check(splits, tokenizer, end_ids=ends, **options)

    return look


def found(report):
    return {(p.severity, p.name): p.rows for p in report.problems}


def test_sound_rows_have_no_problems_and_all_is_counted(look, tokenizer):
    splits = splits_of(["a b c", "d e", "f " * 30], ["x y"], ["z"])
    report = look(splits)
    assert report.problems == report.errors == []
    examples = [tokenise(row, tokenizer) for row in splits.train]
    facts = report.splits["train"]
    assert facts.rows == 3
    assert facts.tokens == sum(len(e.ids) for e in examples)
    assert facts.learnt_tokens == sum(e.learnt_tokens for e in examples)
    assert facts.longest == max(len(e.ids) for e in examples)
    assert list(report.splits) == ["train", "valid", "test"]
    assert sum(count for _, _, count in report.lengths) == 3
    assert json.loads(json.dumps(report.to_json()))["problems"] == []


def test_rows_over_the_limit_stop_a_run_unless_it_says_what_becomes_of_them(look):
    splits = splits_of(["a", "b " * 90])
    (problem,) = found(look(splits)).items()
    assert problem[0] == ("error", "over-limit")
    assert problem[1][0].startswith("train.jsonl:2: ")
    for truncation in ("drop", "split", "keep-end"):
        assert set(found(look(splits, truncation=truncation))) == {("warning", "over-limit")}


def test_rows_with_nothing_to_learn_are_named(look, with_template):
    tokenizer = with_template(None)
    tokenizer._tokenizer.eos_token = None
    report = check(
        splits_of(["a", "b c d e"]),
        tokenizer,
        end_ids=frozenset(),
        max_length=64,
        truncation="error",
        tokens=256,
    )
    assert found(report)["error", "nothing-learnt"] == ("train.jsonl:1", "valid.jsonl:1")


def test_a_reply_that_nothing_ends_is_named(look, with_template):
    splits = Splits([chat("a", "Hello")], [], [])
    tokenizer = with_template(MARKLESS)
    assert found(look(splits, tokenizer=tokenizer)) == {("error", "no-end"): ("rows.jsonl:1",)}
    assert found(look(splits)) == {}


def test_a_run_refuses_it_and_says_how_to_go_on(with_template):
    tokenizer = with_template(MARKLESS)
    rows, options = [[chat("a", "Hello")]], {"max_length": 64, "truncation": "error"}
    ends = frozenset([tokenizer.eos_token_id])
    with pytest.raises(DataError, match=r"rows.jsonl:1: no mark ends what is learnt") as caught:
        prepare(rows, tokenizer, end_ids=ends, **options)
    assert "data.strict = false" in caught.value.hint
    assert len(prepare(rows, tokenizer, **options)[0].examples) == 1


def test_every_turn_that_is_learnt_must_end(tokenizer):
    example = tokenise(chat("a", "Hello", "b", "there"), tokenizer)
    ends = frozenset([tokenizer.eos_token_id])
    require_ended(example, ends)
    first_end = next(i for i, t in enumerate(example.ids) if example.learn[i] and t in ends)
    example.learn[first_end] = False
    with pytest.raises(ValueError, match="no mark ends"):
        require_ended(example, ends)


def test_rows_to_check_with_that_are_learnt_too_are_paired_with_the_first(look):
    splits = splits_of(["a", "b", "a"], ["c", "a"], ["b"])
    assert leaks(splits) == [("valid.jsonl:2", "train.jsonl:1"), ("test.jsonl:1", "train.jsonl:2")]
    assert found(look(splits)) == {
        ("error", "in-train"): (
            "valid.jsonl:2: as train.jsonl:1",
            "test.jsonl:1: as train.jsonl:2",
        ),
        ("warning", "duplicate"): ("train.jsonl:3: as train.jsonl:1",),
    }


def test_a_run_refuses_validation_rows_that_it_learns_and_minds_no_test_rows():
    with pytest.raises(DataError) as caught:
        require_apart(splits_of(["a", "b"], ["b", "a"], ["b"]), hint="do this")
    assert caught.value.message.splitlines() == [
        "2 validation rows in the training data:",
        "  valid.jsonl:1 is the same as train.jsonl:2",
        "  valid.jsonl:2 is the same as train.jsonl:1",
    ]
    assert caught.value.hint == "do this"
    require_apart(splits_of(["a", "b"], ["c"], ["b"]), hint="")


def test_the_same_words_in_another_role_are_another_row():
    rows = [chat("a", "b"), chat("a", "b", roles="sa"), Row(source="x:9", text="a")]
    assert duplicates(rows) == []


def test_of_one_file_rows_that_are_there_twice_are_on_one_side(tmp_path):
    for count in range(2, 40):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps({"text": f"row {n // 2}"}) + "\n" for n in range(count)))
        splits = read_splits(file)
        if count > 2:
            assert leaks(splits) == [], count
        assert len(splits.train) + len(splits.valid) == len(read_rows(file))


def test_a_prompt_that_is_no_prefix_is_a_note(look, with_template):
    splits = Splits([chat("a", "Hello", "b", "there")], [], [])
    assert found(look(splits, tokenizer=with_template(R1))) == {
        ("note", "no-prefix"): ("rows.jsonl:1",)
    }


def test_what_the_template_refuses_is_said_with_its_row(look, with_template):
    tokenizer = with_template("{{ raise_exception('roles must alternate') }}")
    report = look(Splits([chat("a", "b")], [], []), tokenizer=tokenizer)
    ((key, (row,)),) = found(report).items()
    assert key == ("error", "refused")
    assert row.startswith("rows.jsonl:1: the chat template refuses it: roles must alternate")
    assert report.epoch is None


def test_an_epoch_is_that_of_a_run(look, tokenizer):
    splits = splits_of(["a " * n for n in (3, 20, 40, 41, 60)])
    report = look(splits, tokens=128)
    (prepared,) = prepare([splits.train], tokenizer, max_length=64, truncation="error")
    lengths = [e.read_tokens for e in prepared.examples]
    assert 0.5 < report.epoch.real_share <= 1
    assert report.epoch.steps >= sum(lengths) // 128
    assert all(width % 8 == 0 for width in report.epoch.widths)
    cut = look(splits_of(["a " * 200]), truncation="split")
    assert cut.epoch.steps > 0


def test_lengths_are_counted_in_ranges_that_double():
    assert histogram([1, 2, 3, 4, 7, 8, 40]) == [
        (1, 2, 1),
        (2, 4, 2),
        (4, 8, 2),
        (8, 16, 1),
        (16, 32, 0),
        (32, 64, 1),
    ]
    assert histogram([]) == []


def test_the_texts_of_tokens_are_the_whole_text_and_no_character_is_torn(tokenizer):
    example = tokenise(chat("Hi 🐋", "naïve 日本語 🙂"), tokenizer)
    texts = token_texts(example, tokenizer)
    assert "".join(t for t, _ in texts) == tokenizer.decode(example.ids.tolist())
    assert not any("\ufffd" in t for t, _ in texts)
    learnt = "".join(t for t, is_learnt in texts if is_learnt)
    assert learnt == f"naïve 日本語 🙂{END}"


def pair(prompt, chosen, rejected, line):
    return Row(source=f"train.jsonl:{line}", prompt=prompt, chosen=chosen, rejected=rejected)


def test_of_two_answers_both_are_looked_at(look, tokenizer):
    rows = [
        pair("a", "b c d e", "b", 1),
        pair("a", "b", "c d e f", 2),
        pair("a", "b c d", "e", 3),
        pair("a", "b", "c " * 90, 4),
        pair("a", "b c d e", "b", 5),
        text("no answers", 6),
    ]
    report = look(Splits(rows, [pair("v", "w", "x", 1)], []), form="pairs", shown=3)
    facts = report.splits["train"]
    answers = [tokenise(row, tokenizer) for r in rows[:5] for row in answers_of(r, r, "pairs")]
    assert (facts.rows, len(report.examples)) == (5, 3)
    assert facts.tokens == sum(len(e.ids) for e in answers)
    assert facts.learnt_tokens == sum(e.learnt_tokens for e in answers)
    assert facts.chosen_longer == 3 / 5
    problems = found(report)
    assert problems["error", "refused"] == ("train.jsonl:6: has no 'chosen' and 'rejected'",)
    assert problems["error", "over-limit"][0].startswith("train.jsonl:4: ")
    assert problems["warning", "duplicate"] == ("train.jsonl:5: as train.jsonl:1",)
    options = {"max_length": 64, "truncation": "drop"}
    (made,) = prepare_pairs([rows[:5]], tokenizer, form="pairs", **options)
    lengths = pair_lengths(made.examples)
    planned = plan_epoch(lengths, tokens=256, micro_tokens=256, seed=0, epoch=0)
    padded = sum(plan.padded_tokens for step in planned for plan in step)
    dropped = look(Splits(rows[:5], [], []), form="pairs", truncation="drop").epoch
    assert (dropped.steps, dropped.real_share) == (len(planned), lengths.sum() / padded)


def test_rows_of_another_form_than_the_loss_needs_are_refused(look):
    labelled = Row(source="train.jsonl:1", prompt="a", completion="b", label=True)
    for form, rows in ((None, [pair("a", "b", "c", 1)]), ("labels", [pair("a", "b", "c", 1)])):
        assert ("error", "refused") in found(look(Splits(rows, [], []), form=form))
    report = look(Splits([labelled], [], []), form="labels")
    assert report.problems == []
    assert report.splits["train"].chosen_longer is None
