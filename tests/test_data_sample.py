"""Samples: stable ids, JSON round trip, split keys, and what is refused."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.manifest import Manifest, SplitCount
from data.sample import Sample, normalise_question, read_samples, write_samples
from router.files import sha256_file, write_json
from router.validation import InputError, explain, to_plain

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    choices = draw(st.one_of(st.just([]), st.lists(TEXT, min_size=2, max_size=5, unique=True)))
    answer = draw(st.integers(0, len(choices) - 1) if choices else TEXT)
    context = draw(st.one_of(st.just(""), TEXT))
    metadata = draw(st.dictionaries(TEXT, st.one_of(TEXT, st.integers(-9, 9), st.none()), max_size=2))
    split = draw(st.sampled_from(["train", "validation", "test"]))
    return Sample(draw(TEXT), split, draw(TEXT), tuple(choices), answer, metadata, context)


SAMPLE = Sample("made_up", "train", "Is ice cold?", ("yes", "no"), 0)


def test_ids_are_golden() -> None:
    # Oracle: golden, 16 digits of the sha256 of '["made_up", "Is ice cold?", ["yes", "no"], 0]', of
    # '["made_up", "Is ice cold?", [], "yes"]', and of that with ', "At home."'; they must never change.
    assert SAMPLE.id == "2389a5fae95eaffa"
    free = dataclasses.replace(SAMPLE, choices=(), answer="yes")
    assert free.id == hashlib.sha256(b'["made_up", "Is ice cold?", [], "yes"]').hexdigest()[:16] == "2b8767911db3ee2b"
    assert dataclasses.replace(free, context="At home.").id == "6bbb396059395bb0"
    assert (free.gold, SAMPLE.gold) == ("yes", "yes")


@given(samples(), samples())
def test_the_id_hangs_on_task_and_content_only(one: Sample, other: Sample) -> None:
    # Oracle: equality of task, question, choices, answer and context.
    assert dataclasses.replace(one, split="test", metadata={"x": 1}).id == one.id

    def content(sample: Sample) -> tuple[object, ...]:
        return sample.task, sample.question, sample.choices, sample.answer, sample.context

    assert (one.id == other.id) == (content(one) == content(other))


@settings(max_examples=20)
@given(st.lists(samples(), min_size=1, max_size=9, unique_by=lambda sample: sample.id))
def test_files_give_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, written: list[Sample]) -> None:
    # Oracle: the samples themselves.
    path = tmp_path_factory.mktemp("samples") / "train.jsonl"
    write_samples(path, written)
    assert read_samples(path) == written


@pytest.mark.parametrize(
    "reprint",
    ["is ICE cold", " Is  ice\ncold ?!", "\u201cIs ice cold?\u201d", "Is ice, cold?", "\uff29\uff53 ice cold?"],
)
def test_reprints_of_a_question_share_its_split_key(reprint: str) -> None:
    # Oracle: reprints written by hand.
    assert dataclasses.replace(SAMPLE, question=reprint).split_key == SAMPLE.split_key == "is ice cold"


@given(st.text())
@example("^)0")
def test_normalising_twice_changes_nothing(text: str) -> None:
    # Oracle: idempotence.
    assert normalise_question(normalise_question(text)) == normalise_question(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": " "}, "task: expected text"),
        ({"split": "dev"}, "split: expected one of train, validation, calibration, test, got 'dev'"),
        ({"choices": ("yes", "yes")}, "choices: expected at least two different"),
        ({"choices": ("yes", " ")}, r"choices\[1\]: expected text"),
        ({"answer": 2}, r"answer: expected an index in 0\.\.1, got 2"),
        ({"answer": True}, "answer: expected text, got True"),
        ({"choices": (), "answer": 0}, "answer: expected text, got 0"),
        ({"choices": (), "answer": " "}, "answer: expected text, got ' '"),
        ({"question": "\ud800"}, "question: expected text"),
    ],
)
def test_what_is_no_question_is_refused(change: dict, message: str) -> None:
    # Oracle: the field that was spoilt, in the message.
    with pytest.raises(ValidationError) as refused:
        dataclasses.replace(SAMPLE, **change)
    assert re.search(message, explain(refused.value))


def test_bad_files_are_refused_by_file_and_line(tmp_path: Path) -> None:
    # Oracle: the second line is the spoilt one.
    path = tmp_path / "train.jsonl"
    write_samples(path, [SAMPLE])
    good = path.read_text()
    other = {"schema": 1, "id": "0" * 16, **dataclasses.asdict(SAMPLE)}
    for line, message in (
        (json.dumps(other), f"expected id {SAMPLE.id}"),
        (json.dumps(other | {"schema": 9}), "expected a sample of schema 1"),
        (json.dumps(other | {"colour": "blue"}), "colour"),
        (json.dumps(other | {"answer": 7}), "answer: expected an index"),
        (good.strip(), "expected each sample once"),
        ("{", "expected JSON, got something corrupt"),
        (good.strip().replace("{", '{"task": "made_up", ', 1), "expected each key once, got 'task' twice"),
    ):
        path.write_text(good + line + "\n")
        with pytest.raises(InputError, match=rf"train\.jsonl, line 2: .*{message}"):
            read_samples(path)


def test_a_file_that_is_not_the_prepared_one_is_refused(tmp_path: Path) -> None:
    # Oracle: the file that the manifest names, then without its last line, then with other metadata.
    path = tmp_path / "train.jsonl"
    write_samples(path, [SAMPLE, dataclasses.replace(SAMPLE, question="Is fire cold?", answer=1)])
    counts = {"train": {"made_up": SplitCount(candidates=2, taken=2, used_elsewhere=0, repeated=0, not_needed=0)}}
    manifest = Manifest(files={path.name: sha256_file(path)}, counts=counts)
    write_json(tmp_path / "manifest.json", to_plain(manifest))
    assert len(read_samples(path)) == 2
    whole = path.read_text()
    path.write_text(whole.splitlines(keepends=True)[0])
    with pytest.raises(InputError, match=r"train\.jsonl: expected 2 lines with the SHA-256 in .*, got 1 lines"):
        read_samples(path)
    path.write_text(whole.replace('"metadata": {}', '"metadata": {"level": 1}'))
    with pytest.raises(InputError, match=r"train\.jsonl: expected 2 lines with the SHA-256 in .*, got 2 lines"):
        read_samples(path)
