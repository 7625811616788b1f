"""The published-tables example: every shipped configuration, and the whole of it on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import data.sample
from data.records import read_records
from eval.analysis import ANALYSIS_FILE
from examples.published_tables import TablesSettings, main
from router.command import parse_settings
from search.__main__ import SearchRun
from tests.conftest import Refusal
from tests.sums import digit_model
from tests.tiny import NUM_LAYERS, tiny_tokenizer

ROOT = Path(data.sample.__file__).parent.parent
CONFIGS = sorted((ROOT / "configs" / "analysis").glob("*.yaml"))
HUB_IDS = {
    "llama3-8b": ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"),
    "llama3.2-3b": ("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"),
    "mistral-7b": ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"),
    "olmoe-1b-7b": ("allenai/OLMoE-1B-7B-0924", "allenai/OLMoE-1B-7B-0924-Instruct"),
    "smollm2": ("smollm2-135m-instruct",),
}
SIMULATIONS, SAMPLES = 12, 12


def parsed(config: Path) -> TablesSettings:
    return parse_settings(TablesSettings, ["--config", str(config)], "examples.published_tables", "")[0]


def searches(settings: TablesSettings) -> list[SearchRun]:
    arguments = [one for model in settings.models for one in settings.searches(model).values()]
    return [parse_settings(SearchRun, one, "search", "")[0] for one in arguments]


def test_every_family_has_its_configuration() -> None:
    assert [config.stem for config in CONFIGS] == sorted(HUB_IDS)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_every_shipped_configuration_is_accepted_down_to_its_tasks_and_searches(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: the searches' own settings. Nothing is loaded but files of the repository.
    monkeypatch.chdir(ROOT)
    settings = parsed(config)
    assert tuple(model.path for model in settings.models) == HUB_IDS[config.stem]
    for model in settings.models:
        assert model.data.wanted() == ("test",)
        tasks = {part.load().name: part for part in model.data.components()}
        model.data.sizes("test", tasks)
        if config.stem != "smollm2":
            assert set(tasks) == {"arc_easy", "arc_challenge", "dart_math"}
    run = searches(settings)
    assert [(one.search.action_set, one.reward_target) for one in run[:5]] == [
        ("skip", "gold"),
        ("repeat", "gold"),
        ("both", "gold"),
        ("both+move", "gold"),
        ("both", "wrong"),
    ]
    assert len({(one.search.simulations, one.first_editable, one.search.seed) for one in run}) == 1
    assert len({one.out for one in run}) == len(run) == 5 * len(settings.models)
    if config.stem != "smollm2":
        assert run[0].search.simulations == 200
        assert run[0].search.algorithm == "uct"
        assert (run[0].search.depth_penalty, run[0].search.random_share) == (5.0, 0.1)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.parent


def write_config(folder: Path) -> Path:
    """Write a tiny model, rows of sums with levels and of made-up rivers, and the example's settings."""
    digit_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    sums = [{"q": f"What is {i}?", "a": ("1", "2", "12", "21")[i % 4], "level": i % 2} for i in range(SAMPLES)]
    rivers = [
        {
            "id": f"r{i}",
            "question": f"How long is river {i}?",
            "choices": {"text": [f"{i} m", f"{i + 1} m", f"{i + 2} m"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[i % 3],
        }
        for i in range(SAMPLES)
    ]
    task = {
        "name": "sums",
        "columns": {"question": "q", "answer": "a", "metadata": {"difficulty": "level"}},
        "answer_kind": "text",
        "mode": "exact",
        "max_new_tokens": 4,
        "prompt": {"cue": ""},
    }
    (folder / "sums.yaml").write_text(yaml.safe_dump(task))
    mixture = [
        {"task": str(folder / "sums.yaml"), "path": str(write_rows(folder / "sums" / "test.jsonl", sums))},
        {"task": "arc_easy", "source": "local", "path": str(write_rows(folder / "rivers" / "test.jsonl", rivers))},
    ]
    sizes = {"train": {"size": 0}, "validation": {"size": 0}, "test": {"size": SAMPLES}}
    model = {
        "model": "tiny",
        "variant": "base",
        "path": str(folder / "model"),
        "dtype": "float32",
        "data": {"out": str(folder / "data"), "mixture": mixture, **sizes},
    }
    settings = {
        "out": str(folder / "out"),
        "action_sets": ["skip", "both"],
        "search_args": [f"--search.simulations={SIMULATIONS}"],
        "device": "cpu",
        "models": [model],
    }
    config = folder / "tables.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the example was run."""
    folder = tmp_path_factory.mktemp("tables")
    main(["--config", str(write_config(folder))])
    return folder


def test_the_example_searches_and_analyses(finished: Path) -> None:
    # Oracle: the records of its searches, counted here.
    told = json.loads((finished / "out" / ANALYSIS_FILE).read_text())
    assert {(one["action_set"], one["simulations"]) for one in told["searches"]} == {
        ("skip", SIMULATIONS),
        ("both", SIMULATIONS),
    }
    labels = {"all", "arc_easy", "sums", "sums, difficulty 0", "sums, difficulty 1"}
    searches = {one["action_set"]: one for one in told["searches"]}
    for name, search in searches.items():
        records = read_records(finished / "out" / "tiny" / "base" / name / "test.jsonl")
        assert set(search["groups"]) == labels
        for task in ("arc_easy", "sums"):
            own = [record for record in records if record.task == task]
            group = search["groups"][task]
            stood = [any(one.correct and one.verified is not False for one in record.results) for record in own]
            right = [record.full.correct and record.full.verified is not False for record in own]
            assert group["original"]["share"] == sum(right) / len(right)
            assert group["oracle"]["share"] == sum(stood) / len(stood)
        assert search["num_layers"] == NUM_LAYERS
        assert search["groups"]["all"]["use"]["repeat_rate"] == [0.0] * NUM_LAYERS or name == "both"
    wrong = read_records(finished / "out" / "tiny" / "base" / "both-wrong" / "test.jsonl")
    luck = searches["both"]["groups"]["all"]["set_right"]["luck"]
    assert 0 < luck["wrong"]["n"] <= len(wrong)
    assert searches["skip"]["groups"]["all"]["set_right"]["luck"] is None
    assert (finished / "out" / "layer_use_0.png").is_file()


def test_a_stopped_run_goes_on_and_finished_searches_are_left_alone(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the unbroken run's searches; the killed search is the only one to be made again.
    before = json.loads((finished / "out" / ANALYSIS_FILE).read_text())["searches"]
    shutil.rmtree(finished / "out" / "tiny" / "base" / "skip")
    (finished / "out" / ANALYSIS_FILE).unlink()
    left = {path: path.stat().st_mtime_ns for path in (finished / "out").rglob("*.jsonl")}
    arguments = ["--config", str(finished / "tables.yaml")]
    with monkeypatch.context() as patch:
        patch.delattr("examples.published_tables.search")  # none is asked for
        main([*arguments, "--commands_only", "true"])
    told = capsys.readouterr().out
    assert told.count("python -m search ") == 3
    assert "--search.action_set=skip" in told
    assert not (finished / "out" / ANALYSIS_FILE).exists()
    main(arguments)
    assert json.loads((finished / "out" / ANALYSIS_FILE).read_text())["searches"] == before
    assert {path: path.stat().st_mtime_ns for path in left} == left


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_sets": ["skip"]}, "wrong_searches: expected some of the action_sets, got both"),
        ({"action_sets": ["skip", "skip"], "wrong_searches": []}, "action_sets: expected each once"),
        ({"model": "org/tiny"}, "model: expected text like"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    finished: Path, tmp_path: Path, refusal: Refusal, changes: dict[str, Any], message: str
) -> None:
    settings = yaml.safe_load((finished / "tables.yaml").read_text())
    of_model = settings["models"][0] if "model" in changes else settings
    of_model |= changes
    (tmp_path / "tables.yaml").write_text(yaml.safe_dump(settings))
    assert message in refusal(main, ["--config", tmp_path / "tables.yaml"])
