"""The benchmarks can be imported, and what is cheap of them runs on a tiny model."""

from __future__ import annotations

import functools
import importlib
import random
import sys
from pathlib import Path

import pytest

from data.sample import write_samples
from data.scoring import ChainScorer
from data.tasks import load_task
from router.engine.executor import ChainExecutor
from router.validation import InputError
from search.run import BatchSearch
from search.settings import SearchSettings
from tests.tiny import tiny_model, tiny_samples, tiny_tokenizer

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks are scripts: they import their neighbours by name."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_a_benchmark_can_be_imported(name: str) -> None:
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def test_the_throughput_benchmark_runs_the_search_and_its_rivals() -> None:
    # Oracle: chains counted by hand; in float32 the other ways predict what the search does.
    benchmark = importlib.import_module("benchmarks.search_throughput")
    model = tiny_model("llama")
    scorer = ChainScorer(model, tiny_tokenizer(), load_task("arc_easy"))
    search = BatchSearch(scorer, SearchSettings(simulations=6, in_flight=2), 1, verify=False)
    others = {
        "published": (functools.partial(benchmark.published, model), 1),
        "batched": (functools.partial(benchmark.batched, ChainExecutor(model, state_bytes=0)), 2),
    }
    samples = scorer.encode_all(tiny_samples("train", 3))
    found = benchmark.compare(search, samples, others, random.Random(0), benchmark.Meter(scorer._executor))
    assert found.figures["chains"] == 3 * 6
    assert 0 < found.figures["bookkeeping_share"] < 1
    assert found.agreeing == {"published": [True] * 3, "batched": [True] * 6}


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("tales", '{"text": "x"}', "line 1: expected text under one of question, problem, prompt, got None"),
        ("tales", '{"question": "x"', "line 1: expected JSON"),
        ("known", '{"question": "x"}', "more: expected NAME=FILE with the name of another kind, got 'known="),
    ],
)
def test_bad_foreign_prompts_are_refused(tmp_path: Path, name: str, line: str, message: str) -> None:
    write_samples(tmp_path / "test.jsonl", tiny_samples("test", 2))
    (tmp_path / "more.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        importlib.import_module("benchmarks.foreign_prompts").foreign(tmp_path, 1, [f"{name}={tmp_path}/more.jsonl"])
