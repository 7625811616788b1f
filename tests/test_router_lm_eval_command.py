"""`python -m router lm-eval`: caches, refusals, and how lm-eval knows the model."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import lm_eval.caching.cache
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

import router.routed.lm_eval
from router.__main__ import main
from router.command import run_command
from router.routed.lm_eval import RoutedLM
from router.validation import InputError
from tests.harness import (
    BUDGET,
    asked,
    documents,
    make_project,
    make_quick,
    routed_arguments,
    run,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("lm_eval"))


def test_lm_evals_cache_of_requests_works_and_that_of_answers_is_refused(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: the first run, which fills the cache. An answer would be kept by its request alone, whatever the budget.
    monkeypatch.setattr(lm_eval.caching.cache, "PATH", str(tmp_path / "requests"))
    options = [*routed_arguments(project, f"budget={BUDGET}"), "--cache_requests", "true"]
    (first, one), (second, other) = (
        run(tmp_path / name, project / "tasks", "tiny_blank", *options) for name in ("one", "other")
    )
    assert one["tiny_blank"] == other["tiny_blank"]
    assert first["results"] == second["results"]
    assert list((tmp_path / "requests").iterdir())
    with pytest.raises(InputError, match="use_cache: expected none with a routed model"):
        run(tmp_path / "third", project / "tasks", "tiny_blank", *options, "--use_cache", str(tmp_path / "answers"))


def test_the_full_model_is_back_after_an_error(project: Path) -> None:
    lm = RoutedLM(str(project / "router"), budget=2.5, max_length=30)
    full = lm.model
    long = [Instance("loglikelihood", {}, ("Which?", " " + "x" * 40), 0, ("tiny_choice", 0, 1))]
    with pytest.raises(AssertionError):  # lm-eval's own: the continuation does not fit
        lm.loglikelihood(long)
    assert lm.model is full
    fresh = RoutedLM(str(project / "router"), budget=2.5, max_length=30)
    assert lm.loglikelihood(asked(documents())) == fresh.loglikelihood(asked(documents()))


def test_auto_finds_a_batch_for_chains_with_few_requests(project: Path) -> None:
    # Oracle: one by one. With auto:9 lm-eval divides the requests by 9.
    source, requests = str(project / "router"), asked(documents()[:2])
    found = RoutedLM(source, budget=BUDGET, batch_size="auto:9", max_batch_size=2).loglikelihood(requests)
    expected = RoutedLM(source, budget=BUDGET).loglikelihood(requests)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=2e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pretrained=x", "model_args: expected some of router, .*, got 'pretrained'"),
        ("budget=99", "budget: expected a mean depth in"),
        ("budget=deep", "budget"),
        ("budget=4,guaranteed=true", "budget: expected one of .*, got budget and guaranteed"),
        ("dtype=int8", "dtype: expected one of float32"),
        ("router=", "router: expected a router's folder or hub id"),
        ("router=/nowhere", "router"),
    ],
)
def test_bad_model_arguments_end_in_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], given: str, message: str
) -> None:
    source = [] if given.startswith("router") else [f"router={project / 'router'}"]
    words = ["lm-eval", "--include_path", str(project / "tasks"), "--tasks", "tiny_choice"]
    assert run_command(main, [*words, "--model_args", *source, given]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "nothing"], "lm-eval: Tasks not found: nothing"),
        (["--limit", "3"], "lm-eval: No tasks specified"),
        (["--tasks", "tiny_choice", "--log_samples"], "lm-eval: Specify --output_path"),
        (["--tasks", "tiny_choice", "--model", "other"], "lm-eval: Attempted to load model 'other'"),
        (["--config", "/nowhere"], "Config file not found"),
    ],
)
def test_what_lm_eval_refuses_ends_in_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    kept = list(sys.argv)
    assert run_command(main, ["lm-eval", "--include_path", str(project / "tasks"), *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sys.argv == kept


def test_several_processes_and_a_missing_package_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(InputError, match="lm-eval: expected one process, got WORLD_SIZE=2"):
            RoutedLM(str(project / "router"))
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert run_command(main, ["lm-eval", "--tasks", "tiny_choice"]) == 2
    assert "pip install 'cola-router[lm-eval]'" in capsys.readouterr().err


def test_lm_eval_knows_the_name_once() -> None:
    # Oracle: lm-eval's registry, which refuses a second class under a name; and the line that later releases read.
    path = Path(router.routed.lm_eval.__file__)
    spec = importlib.util.spec_from_file_location("imported_again", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert get_model("cola-router") is RoutedLM
    assert get_model("hf") is RoutedLM.__base__
    content = tomllib.loads((path.parents[2] / "pyproject.toml").read_text())
    (line,) = content["project"]["entry-points"]["lm_eval.models"].items()
    assert EntryPoint(*line, "lm_eval.models").load() is RoutedLM
    assert line[0] == "cola-router"
