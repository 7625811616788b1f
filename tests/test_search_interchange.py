"""`python -m search.interchange`: PoLar's file read, its chains run again, our records written in its form."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.records import ChainResult, SearchRecord, read_records
from data.sample import Sample, write_samples
from data.scoring import ChainScorer
from data.tasks import load_task
from router.chain import Chain
from router.command import run_command
from router.models import load_model
from search.__main__ import main as search
from search.interchange import GivenChains, main
from search.polar_file import INVALID, VALID, PolarSample, read_polar, verdict
from tests.evaluation import write_records
from tests.tiny import NUM_LAYERS, write_project

FULL = [0, 1, 2, 3, 4]
SKIP, REPEAT, MOVED = [0, 1, 2, 4], [0, 1, 2, 2, 3, 4], [0, 2, 1, 3, 4]
EDITS_PREFIX = ([1, 2, 3, 4], [0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 0])
PREFIX = 1


def made_samples() -> list[Sample]:
    """Choices of one length, so that none wins by length alone and chains of a random model differ."""
    words = ("ice", "tea", "oil", "ash", "mud", "fog")
    questions = ((f"Which is number {i}?", tuple(words[(i * 5 + j) % 6] for j in range(3))) for i in range(8))
    return [Sample("arc_easy", "train", question, choices, i % 3) for i, (question, choices) in enumerate(questions)]


SAMPLES = made_samples()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, samples, and a finished search of the training split."""
    folder = write_project(tmp_path_factory.mktemp("project"))
    write_samples(folder / "data" / "train.jsonl", SAMPLES)
    search(
        [
            *(f"--{name}={folder / name}" for name in ("data", "model")),
            f"--out={folder / 'records'}",
            "--splits=[train]",
            f"--prefix_layers={PREFIX}",
            "--dtype=float32",
            "--search.simulations=12",
            "--search.max_depth=9",
        ]
    )
    return folder


def arguments(project: Path, **changes: object) -> list[str]:
    values: dict[str, object] = {
        "kind": "import", "data": project / "data", "model": project / "model", "prefix_layers": PREFIX,
        "dtype": "float32", "batch_samples": 3,
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in (values | changes).items()]


def export(project: Path, records: Path, out: Path) -> list[str]:
    return [
        f"--{name}={v}"
        for name, v in {"kind": "export", "data": project / "data", "records": records, "out": out}.items()
    ]


def theirs(sample: Sample, valid: list[list[int]], invalid: list[list[int]]) -> dict[str, Any]:
    return {"question": sample.question, "gt_ans": sample.gold, VALID: valid, INVALID: invalid}


def write(path: Path, samples: object) -> Path:
    path.write_text(json.dumps({"samples": samples}))
    return path


def results(record: SearchRecord) -> dict[Chain, ChainResult]:
    return {result.chain: result for result in record.results}


# The form


def test_every_published_shape_is_read_alike(tmp_path: Path) -> None:
    # Oracle: by hand, from PoLar's README and loader and RE-PoLar's schema.
    plain = {"question": "q", "gt_ans": "7", VALID: [SKIP, FULL], INVALID: [MOVED]}
    aliases = {
        "sample_info": {"question": "q", "ground_truth": "7"},
        "initial_score": 1.0,
        VALID: [{"path": SKIP, "score": 1.0}, FULL],
        INVALID: [MOVED],
    }
    asked = {"question": "q", "options": ["6", "7"], "category": "math"}
    values = (
        {"samples": [plain], "BASE_MODEL": "m"}, [plain], {"0": plain}, [aliases], [plain | {"gt_ans": 7}],
        [plain | {"question": asked, "gt_ans": 1}],
    )  # fmt: skip
    for value in values:
        path = tmp_path / "merged_mcts_samples.json"
        path.write_text(json.dumps(value))
        (read,) = read_polar(path)
        assert dataclasses.replace(read, where="") == PolarSample(
            "", "q", "7", (tuple(SKIP), tuple(FULL)), (tuple(MOVED),)
        )
    packed = tmp_path / "merged_mcts_samples.json.gz"
    packed.write_bytes(gzip.compress(json.dumps([plain]).encode()))
    assert read_polar(packed)[0].valid == (tuple(SKIP), tuple(FULL))
    # The list of wrong chains may be missing, and the full chain may be all that is right.
    path.write_text(json.dumps([{"question": "q", "gt_ans": "7", VALID: [FULL]}]))
    assert read_polar(path)[0].verdicts(5) == {Chain.full(5): True}


GOOD = {"question": "q", "gt_ans": "7", VALID: [SKIP], INVALID: []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON, got a corrupt file"),
        ("[" * 100_000, "expected JSON, got a corrupt file"),
        ("7", "expected a list of samples, got int"),
        ("[]", "expected at least one sample, got an empty list"),
        ({"samples": {"a": GOOD}}, "expected a list of samples, got dict"),
        ([GOOD, 7], "sample 1: expected an object, got int"),
        ([{k: v for k, v in GOOD.items() if k != "question"}], "sample 0: expected the field 'question', got none"),
        ([{k: v for k, v in GOOD.items() if k != "gt_ans"}], "sample 0: expected the field 'gt_ans', got none"),
        ([{k: v for k, v in GOOD.items() if k != VALID}], f"sample 0: expected the field '{VALID}', got none"),
        ([GOOD | {"question": " "}], "sample 0: question: expected text, got ' '"),
        ([GOOD | {"gt_ans": ["7"]}], "sample 0: gt_ans: expected text, got ['7']"),
        ([GOOD | {"question": {"question": "q", "options": ["7"]}, "gt_ans": 1}], "expected gt_ans to be the index"),
        ([GOOD | {VALID: {"a": SKIP}}], f"sample 0: {VALID}: expected a list of lists of layer indices, got dict"),
        (
            [GOOD | {INVALID: [SKIP, [0, "1"]]}],
            f"sample 0: {INVALID}[1]: expected a list of layer indices, got [0, '1']",
        ),
        ([GOOD | {VALID: [[[0, 1], [1, 2]]]}], f"sample 0: {VALID}[0]: expected a list of layer indices"),
        ([GOOD | {VALID: [[0] * 5000]}], f"sample 0: {VALID}[0]: expected at most 4096 layers, got 5000"),
        ([GOOD], "expected samples of the split train"),
    ],
)
def test_a_file_of_another_shape_is_refused_in_one_line(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str
) -> None:
    path = tmp_path / "merged_mcts_samples.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert run_command(main, arguments(project, file=path, out=tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("valid", "changes", "message"),
    [
        ([SKIP, [0, 5]], {}, f"sample 0: {VALID}[1]: layers[1]: expected an integer in 0..4, got 5"),
        ([[0, -1]], {}, "expected an integer in 0..4, got -1"),
        ([[]], {}, "expected at least one layer index, got an empty chain"),
        ([], {}, "expected chains that leave the first 1 layers alone, got 0 chains on 1 samples"),
        ([*EDITS_PREFIX], {}, "expected chains that leave the first 1 layers alone, got 3 chains on 1 samples"),
        ([SKIP], {"prefix_layers": 5}, "prefix_layers: expected fewer than the model's 5 layers, got 5"),
        ([SKIP], {"prefix_layers": -1}, "prefix_layers: expected at least 0, got -1"),
        ([SKIP], {"limit": 0}, "limit: expected at least 1, got 0"),
        ([SKIP], {"split": "trial"}, "splits: expected some of train"),
        ([SKIP], {"file": "nowhere.json"}, "file: expected an existing file, got 'nowhere.json'"),
        ([SKIP], {"data": "nowhere"}, "data: expected an existing directory, got 'nowhere'"),
        ([SKIP], {"kind": "export"}, "records: expected a value with kind export, got none"),
    ],
)
def test_what_does_not_fit_is_refused(
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    valid: list[list[int]],
    changes: dict[str, object],
    message: str,
) -> None:
    path = write(tmp_path / "theirs.json", [theirs(SAMPLES[0], valid, [])])
    out = tmp_path / "out"
    assert run_command(main, arguments(project, **({"file": path, "out": out} | changes))) == 2
    assert message in capsys.readouterr().err
    assert not list(out.glob("*")) if out.exists() else True


# The import


def test_every_chain_is_measured_again_and_the_agreement_counted(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: each chain scored alone, in unpacked rows.
    lists = {sample.id: ([SKIP, REPEAT], [MOVED, *EDITS_PREFIX, SKIP[:3]]) for sample in SAMPLES[1:6]}
    path = write(
        tmp_path / "theirs.json",
        [
            *(theirs(sample, *lists[sample.id]) for sample in reversed(SAMPLES[1:6])),
            theirs(dataclasses.replace(SAMPLES[6], answer=1 - min(SAMPLES[6].answer, 1)), [SKIP], []),
            {"question": "Unheard of?", "gt_ans": "7", VALID: [[99]]},
        ],
    )
    main(arguments(project, file=path, out=tmp_path / "out"))
    printed = capsys.readouterr().out
    records = read_records(tmp_path / "out" / "train.jsonl")
    assert [record.sample_id for record in records] == [sample.id for sample in SAMPLES[1:6]]

    model, tokenizer = load_model(str(project / "model"))
    scorer = ChainScorer(model, tokenizer, load_task("arc_easy"), packed=False, state_bytes=0, batch_tokens=1)
    table = {name: {"chains": 0, "right": 0, "wrong": 0} for name in ("valid", "invalid")}
    for record, sample in zip(records, SAMPLES[1:6], strict=True):
        assert [r.chain.to_json() for r in record.results] == [FULL, SKIP, REPEAT, MOVED, SKIP[:3]]
        assert record.prefix_layers == PREFIX
        for result in record.results:
            (alone,) = scorer.score(scorer.load([scorer.encode(sample)]), [(0, result.chain)])
            assert (result.prediction, result.correct) == (alone.prediction, alone.correct)
            assert result.scores == pytest.approx(alone.scores, abs=1e-4)
            if result.chain.is_full:
                continue
            row = table["valid" if result.chain.to_json() in lists[sample.id][0] else "invalid"]
            row["chains"] += 1
            row["right" if alone.correct else "wrong"] += 1
        assert record.full.verified is not None
    assert table["valid"]["chains"] == table["invalid"]["chains"] == 10
    assert all(table["valid"].values())  # both verdicts come up, so the test can fail

    report = json.loads((tmp_path / "out" / "train.import.json").read_text())
    assert report["agreement"] == table
    assert report["samples"] == {"matched": 5, "other_question": 1, "other_answer": 1, "imported": 5}
    assert report["chains"] == {
        "given": 35, "different": 35, "contradictory": 0, "edit_prefix": 15, "without_chains": 0
    }  # fmt: skip
    assert "5 of their 7 samples are 5 of ours" in printed
    assert "no such question here: 1: 'Unheard of?' (sample 6)" in printed
    assert f"another answer here: 1: {SAMPLES[6].question!r} (sample 5)" in printed
    assert "35 chains there, 35 different; 15 edit the prefix and are left out" in printed
    assert f"of their 10 valid chains {table['valid']['right']} are right here" in printed
    assert f"of their 10 invalid ones {table['invalid']['wrong']} are wrong" in printed


def test_samples_with_unequal_numbers_of_chains_end_and_a_limit_takes_the_first(project: Path, tmp_path: Path) -> None:
    many = [Chain.full(5).repeat(i, k, n).to_json() for i in (1, 2, 3) for k in (1, 2) for n in (1, 2)]
    lists = [many[:i] for i in (1, 12, 2, 5)]
    path = write(tmp_path / "theirs.json", [theirs(s, [], own) for s, own in zip(SAMPLES, lists, strict=False)])
    main(arguments(project, file=path, out=tmp_path / "out", limit=3))
    records = read_records(tmp_path / "out" / "train.jsonl")
    assert [[r.chain.to_json() for r in record.results] for record in records] == [[FULL, *own] for own in lists[:3]]
    assert [record.simulations for record in records] == [2, 13, 3]
    main(arguments(project, file=path, out=tmp_path / "out"))  # more of the same is added
    more = read_records(tmp_path / "out" / "train.jsonl")
    assert more[:3] == records
    assert len(more) == 4


def test_a_stopped_import_goes_on_and_another_file_is_refused(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: an import that was not stopped.
    samples = [theirs(sample, [SKIP], [REPEAT]) for sample in SAMPLES]
    path = write(tmp_path / "theirs.json", samples)
    main(arguments(project, file=path, out=tmp_path / "whole"))
    original: Callable[..., list[SearchRecord]] = GivenChains.search
    batches: list[int] = []

    def stopped(self: GivenChains, batch: Any, *rest: Any) -> list[SearchRecord]:
        batches.append(len(batch))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return original(self, batch, *rest)

    monkeypatch.setattr(GivenChains, "search", stopped)
    out = tmp_path / "out"
    assert run_command(main, arguments(project, file=path, out=out)) == 130
    assert not (out / "train.jsonl").exists()
    assert not (out / "train.import.json").exists()
    main(arguments(project, file=path, out=out))
    assert sum(batches) == 8 + batches[1]  # only the batch that was stopped ran again
    for name in ("train.jsonl", "train.import.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    samples[0][INVALID] = [MOVED]
    write(path, samples)
    before = (out / "train.jsonl").read_bytes()
    assert run_command(main, arguments(project, file=path, out=out)) == 2
    assert "out: expected no records or records of the same search settings" in capsys.readouterr().err
    assert (out / "train.jsonl").read_bytes() == before


# The export


def test_an_exported_search_is_imported_as_the_same_chains(project: Path, tmp_path: Path) -> None:
    # Oracle: the records themselves.
    records = read_records(project / "records" / "train.jsonl")
    path = tmp_path / "merged_mcts_samples.json"
    main(export(project, project / "records" / "train.jsonl", path))
    exported = read_polar(path)
    samples = {sample.id: sample for sample in SAMPLES}
    for record, one in zip(records, exported, strict=True):
        sample = samples[record.sample_id]
        assert (one.question, one.answer) == (sample.question, sample.gold)
        assert one.verdicts(NUM_LAYERS) == {
            chain: verdict(result) for chain, result in results(record).items() if verdict(result) is not None
        }
    assert any(one.valid for one in exported)
    assert any(one.invalid for one in exported)
    raw = json.loads(path.read_text())
    assert raw["made"]["num_layers"] == NUM_LAYERS
    assert [s["initial_score"] for s in raw["samples"]] == [float(record.full.correct) for record in records]

    main(arguments(project, file=path, out=tmp_path / "back"))
    for record, again in zip(records, read_records(tmp_path / "back" / "train.jsonl"), strict=True):
        assert record.sample_id == again.sample_id
        assert set(results(record)) == set(results(again))
        for chain, result in results(record).items():
            assert results(again)[chain].correct == result.correct
            assert results(again)[chain].margin == pytest.approx(result.margin, abs=1e-4)
    table = json.loads((tmp_path / "back" / "train.import.json").read_text())["agreement"]
    assert table["valid"]["chains"] == table["valid"]["right"] > 0
    assert table["invalid"]["chains"] == table["invalid"]["wrong"] > 0


def test_a_chain_whose_second_run_disagreed_stands_in_neither_list(project: Path, tmp_path: Path) -> None:
    record = read_records(project / "records" / "train.jsonl")[0]
    changed = [dataclasses.replace(r, verified=i >= 3) for i, r in enumerate(record.results)]
    source = tmp_path / "records" / "train.jsonl"
    write_records(source, [dataclasses.replace(record, results=tuple(changed))])
    main(export(project, source, tmp_path / "theirs.json"))
    (one,) = json.loads((tmp_path / "theirs.json").read_text())["samples"]
    assert sorted(one[VALID] + one[INVALID]) == sorted(r.chain.to_json() for r in record.results[3:])
    assert "initial_score" not in one  # full depth itself is in doubt


@pytest.mark.parametrize("case", ["control", "other samples", "no records"])
def test_records_that_cannot_be_exported_leave_no_file(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    record = read_records(project / "records" / "train.jsonl")[0]
    change: dict[str, Any] = {"control": {"reward_target": "wrong"}, "other samples": {"sample_id": "0" * 16}}.get(
        case, {}
    )
    source = tmp_path / "records" / "train.jsonl"
    if case != "no records":
        write_records(source, [dataclasses.replace(record, **change)])
    assert run_command(main, export(project, source, tmp_path / "theirs.json")) == 2
    message = {"control": "got the control's", "other samples": "expected samples of", "no records": "existing file"}
    assert message[case] in capsys.readouterr().err
    assert not (tmp_path / "theirs.json").exists()
