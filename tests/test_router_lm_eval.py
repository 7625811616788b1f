"""lm-evaluation-harness with a routed model: full depth is `--model hf`, every document runs under its own chain."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import lm_eval.caching.cache
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from transformers import PreTrainedModel

import router.routed.lm_eval
from router.__main__ import main
from router.decision import Operation
from router.engine.choices import Question
from router.engine.view import chain_view
from router.routed.lm_eval import RoutedLM, question_of_requests
from router.storage import load_router, save_router
from router.validation import InputError
from tests.conftest import Refusal
from tests.harness import (
    BUDGET,
    TASKS,
    asked,
    documents,
    hand_chains,
    loglikelihood,
    make_project,
    prompt_of,
    quick,  # noqa: F401
    routed_arguments,
    run,
    states_of,
    stock_arguments,
    values,
    write_tasks,
)
from tests.routed_folders import scoped, write_routed
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

TEMPLATES = {"one": "{{ messages[0].content }}"}
ROUTED = ("tiny_choice", "tiny_blank", "tiny_written")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("lm_eval"))


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def ran(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results and samples of the tasks that are routed, at BUDGET."""
    arguments = [*routed_arguments(project, f"budget={BUDGET}"), "--batch_size", "4"]
    return run(tmp_path_factory.mktemp("ran") / "out", project / "tasks", ",".join(ROUTED), *arguments)


def test_full_depth_is_lm_evals_own_model(project: Path, tmp_path: Path) -> None:
    # Oracle: `--model hf` on the same base model; every number and text is the same, to the last bit.
    names, tasks, count = ",".join(TASKS), project / "tasks", 7
    more = ["--batch_size", "4", "--num_fewshot", "2", "--limit", str(count)]
    stock, expected = run(tmp_path / "hf", tasks, names, *stock_arguments(project / "model"), *more)
    routed, got = run(tmp_path / "routed", tasks, names, *routed_arguments(project, "guaranteed=true"), *more)
    for name in TASKS:
        assert [one["resps"] for one in got[name]] == [one["resps"] for one in expected[name]]
        assert [one["arguments"] for one in got[name]] == [one["arguments"] for one in expected[name]]
    assert routed["results"] == stock["results"]
    told = routed["config"]["cola_router"]
    assert (told["documents"], told["mean_depth"], told["guaranteed"]) == (4 * count, 5.0, True)
    assert told["chains"] == {"0-4": 4 * count}


def test_what_lm_evals_class_takes_passes_on(project: Path, tmp_path: Path) -> None:
    # Oracle: `--model hf` with the same arguments, and a chat template.
    more = ("add_bos_token=true", "max_length=40")
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    save_tiny(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "model")
    chat = ["--apply_chat_template", "--num_fewshot", "1", "--batch_size", "auto:9", "--max_batch_size", "2"]
    chat += ["--limit", "4"]
    # The template makes it another tokenizer than the router's.
    other = routed_arguments(project, f"model={tmp_path / 'model'}", "verify=false", "guaranteed=true", *more)
    names = "tiny_choice,tiny_written"
    _, expected = run(tmp_path / "hf", project / "tasks", names, *stock_arguments(tmp_path / "model", *more), *chat)
    _, got = run(tmp_path / "routed", project / "tasks", names, *other[2:], *chat)
    assert got["tiny_choice"][0]["arguments"]["gen_args_0"]["arg_0"].startswith("<user>")
    for name in names.split(","):
        assert [one["resps"] for one in got[name]] == [one["resps"] for one in expected[name]]


def test_a_document_runs_under_the_chain_of_its_prompt_and_choices(
    project: Path, model: PreTrainedModel, ran: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: states choice by choice through the library, the router on them, and the view of its chain, by hand.
    rows, tokenizer, (results, samples) = documents(), tiny_tokenizer(), ran
    states = [states_of(model, prompt_of(row), [f" {one}" for one in row["choices"]]) for row in rows]
    chains = hand_chains(project, states)
    assert len(set(chains)) > 3
    for row, chain, sample in zip(rows, chains, samples["tiny_choice"], strict=True):
        view = chain_view(model, chain)
        prompt = tokenizer(prompt_of(row))["input_ids"]
        added = [tokenizer(f" {one}")["input_ids"] for one in row["choices"]]
        by_hand = [loglikelihood(view, prompt, one) for one in added]
        by_hand += [loglikelihood(view, [tokenizer.bos_token_id], one) for one in added]  # acc_mutual_info asks these
        assert values(sample) == pytest.approx(by_hand, abs=2e-4)
    depth = sum(chain.depth for chain in chains) / len(chains)
    told = results["config"]["cola_router"]["tasks"]["tiny_choice"]
    assert told["mean_depth"] == pytest.approx(depth)
    assert told["chains"] == {str(chain): chains.count(chain) for chain in chains}

    # The order of the documents changes no number.
    tasks = write_tasks(tmp_path / "reversed", rows[::-1])
    arguments = [*routed_arguments(project, f"budget={BUDGET}"), "--batch_size", "4"]
    _, again = run(tmp_path / "again", tasks, ",".join(ROUTED), *arguments)
    for name in ROUTED:
        assert [one["resps"] for one in again[name][::-1]] == [one["resps"] for one in samples[name]]
    line = r"cola-router: loglikelihood: 24 documents, mean depth \d\.\d\d of 5 layers, \d+ chains\n"
    assert re.search(line, capsys.readouterr().err)


def test_choices_within_the_contexts_are_read_from_where_they_part(
    project: Path, model: PreTrainedModel, ran: Any
) -> None:
    # Oracle: as above; the prompt is what the contexts share, a choice is the rest with what follows it.
    rows, tokenizer = documents(), tiny_tokenizer()
    prompts = [f"Of {row['question']} " for row in rows]
    texts = [[f"{one} {row['question']} it is." for one in row["choices"]] for row in rows]
    chains = hand_chains(project, [states_of(model, *one) for one in zip(prompts, texts, strict=True)])
    assert len(set(chains)) > 2
    assert chains != hand_chains(project, [states_of(model, prompt) for prompt in prompts])
    for row, chain, sample in zip(rows, chains, ran[1]["tiny_blank"], strict=True):
        added = tokenizer(f" {row['question']} it is.")["input_ids"]
        contexts = [tokenizer(context)["input_ids"] for context in row["contexts"]]
        by_hand = [loglikelihood(chain_view(model, chain), context, added) for context in contexts]
        assert values(sample) == pytest.approx(by_hand, abs=2e-4)


def test_a_text_is_generated_under_the_chain_of_its_prompt(project: Path, model: PreTrainedModel, ran: Any) -> None:
    # Oracle: states of the prompt through the library, the router on them, and the view's own generate.
    rows, tokenizer = documents(), tiny_tokenizer()
    chains = hand_chains(project, [states_of(model, prompt_of(row)) for row in rows])
    assert len(set(chains)) > 2
    for row, chain, sample in zip(rows, chains, ran[1]["tiny_written"], strict=True):
        ids = torch.tensor([tokenizer(prompt_of(row))["input_ids"]])
        made = chain_view(model, chain).generate(input_ids=ids, max_new_tokens=6, do_sample=False)
        text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).split("\n")[0]
        assert sample["resps"] == [[text, text]]


@pytest.mark.parametrize(
    ("pairs", "most", "expected"),
    [
        ([([1, 5, 6], [7, 8]), ([1, 5, 6], [9])], 20, Question((1, 5, 6), ((7, 8), (9,)))),
        ([([1, 5, 6], [9]), ([1, 5, 7, 8], [9])], 20, Question((1, 5), ((6, 9), (7, 8, 9)))),
        ([([5, 6], [9]), ([7, 6], [9])], 20, Question((5, 6))),
        ([([1, 5, 6], []), ([1, 5, 6], [])], 20, Question((1, 5, 6))),
        # Six tokens: four of the prompt, two of the longest choice, whose last one is not read.
        ([([1, 2, 3, 4, 5, 6], [7, 8, 9]), ([1, 2, 3, 4, 5, 6], [7])], 6, Question((3, 4, 5, 6), ((7, 8, 9), (7,)))),
        ([([1, 2, 3], [7, 8, 9])], 1, Question((3,), ((7, 8, 9),))),
    ],
    ids=["one context", "contexts part", "nothing shared", "no continuation", "too long", "far too long"],
)
def test_what_the_router_reads(pairs: list[tuple[list[int], list[int]]], most: int, expected: Question) -> None:
    assert question_of_requests(pairs, most) == expected


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
        ("pretrained=x", "model_args: expected some of .*router, .*, got 'pretrained'"),
        ("budget=4,guaranteed=true", "budget: expected one of .*, got budget and guaranteed"),
        ("router=", "router: expected a router's folder or hub id"),
    ],
)
def test_bad_model_arguments_end_in_one_line(project: Path, refusal: Refusal, given: str, message: str) -> None:
    source = [] if given.startswith("router") else [f"router={project / 'router'}"]
    words = ["lm-eval", "--include_path", project / "tasks", "--tasks", "tiny_choice"]
    assert re.search(message, refusal(main, [*words, "--model_args", *source, given]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "nothing"], "lm-eval: Tasks not found: nothing"),
        (["--tasks", "tiny_choice", "--log_samples"], "lm-eval: Specify --output_path"),
        (["--tasks", "tiny_choice", "--model", "other"], "lm-eval: Attempted to load model 'other'"),
        (["--config", "/nowhere"], "Config file not found"),
    ],
)
def test_what_lm_eval_refuses_ends_in_one_line(project: Path, refusal: Refusal, words: list[str], message: str) -> None:
    kept = list(sys.argv)
    assert message in refusal(main, ["lm-eval", "--include_path", project / "tasks", *words])
    assert sys.argv == kept


@pytest.mark.parametrize(
    ("templates", "words", "message"),
    [
        (None, [], "apply_chat_template: expected a tokenizer with a chat template, got one without"),
        (TEMPLATES, [], "apply_chat_template: This model has multiple chat templates"),
        (TEMPLATES, ["two"], "apply_chat_template: The specified chat template 'two'"),
    ],
)
def test_a_chat_template_that_is_not_there_ends_in_one_line(
    tmp_path: Path, project: Path, refusal: Refusal, templates: Any, words: list[str], message: str
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = templates
    router = write_routed(tmp_path, tokenizer)
    given = ["--model_args", f"router={router},verify=False", "--tasks", "tiny_choice"]
    command = ["lm-eval", "--include_path", project / "tasks", *given, "--apply_chat_template", *words]
    assert refusal(main, command).startswith(f"error: {message}")


def test_several_processes_and_a_missing_package_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(InputError, match="lm-eval: expected one process, got WORLD_SIZE=2"):
            RoutedLM(str(project / "router"))
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "pip install -c constraints.txt -e '.[lm-eval]'" in refusal(main, ["lm-eval", "--tasks", "tiny_choice"])


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


def test_documents_out_of_scope_run_at_full_depth_and_are_counted(
    project: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    # Oracle: the router with that scope, on states by hand; a scope that leaves out a quarter of the documents.
    states = [states_of(model, prompt_of(row), [f" {one}" for one in row["choices"]]) for row in documents()]
    router = scoped(load_router(project / "router"), states, 0.25)
    save_router(tmp_path / "router", router)
    arguments = ["--model_args", f"router={tmp_path / 'router'},device=cpu,budget={BUDGET}"]
    results, _ = run(tmp_path / "out", project / "tasks", "tiny_choice", *arguments, "--batch_size", "4")
    decided = router.decide(states, Operation(budget=BUDGET))
    told = results["config"]["cola_router"]["tasks"]["tiny_choice"]
    assert told["out_of_scope"] == sum(not one.in_scope for one in decided) == 3
    assert told["mean_depth"] == pytest.approx(sum(one.chain.depth for one in decided) / len(decided))


def test_a_text_ends_after_the_one_token_that_its_chain_was_judged_by(
    project: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    # Oracle: the same router that knows nothing of answers' lengths; its texts begin with that token.
    contexts = [prompt_of(row) for row in documents()]
    states = [states_of(model, one, []) for one in contexts]
    router = scoped(load_router(project / "router"), states, one_token=True)
    save_router(tmp_path / "router", router)
    settings = {"until": ["\n\n\n"], "max_gen_toks": 5}
    requests = [
        Instance("generate_until", {}, (one, dict(settings)), 0, ("tiny_text", i, 1)) for i, one in enumerate(contexts)
    ]
    whole, cut = (
        RoutedLM(str(folder / "router"), budget=BUDGET).generate_until(requests) for folder in (project, tmp_path)
    )
    decided = router.decide(states, Operation(budget=BUDGET))
    assert any(one.one_token for one in decided)
    for before, after, one in zip(whole, cut, decided, strict=True):
        assert before.startswith(after.rstrip("\ufffd"))  # a token may be a part of a character
        assert (after != before) == one.one_token
    assert all(request.args[1] == settings for request in requests)
