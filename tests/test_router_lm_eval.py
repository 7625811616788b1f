"""lm-evaluation-harness with a routed model: full depth is `--model hf`, every document runs under its own chain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from router.engine.choices import Question
from router.engine.view import chain_view
from router.routed.lm_eval import question_of_requests
from tests.harness import (
    BUDGET,
    TASKS,
    documents,
    hand_chains,
    loglikelihood,
    make_project,
    make_quick,
    prompt_of,
    routed_arguments,
    run,
    states_of,
    stock_arguments,
    values,
    write_tasks,
)
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("lm_eval"))


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.mark.parametrize(
    "more",
    [
        ["--batch_size", "1"],
        ["--batch_size", "4"],
        ["--batch_size", "4", "--num_fewshot", "2", "--limit", "5"],
    ],
    ids=["one by one", "batches", "few shots"],
)
def test_full_depth_is_lm_evals_own_model(project: Path, tmp_path: Path, more: list[str]) -> None:
    # Oracle: `--model hf` on the same base model; every number and text is the same, to the last bit.
    names, tasks = ",".join(TASKS), project / "tasks"
    stock, expected = run(tmp_path / "hf", tasks, names, *stock_arguments(project / "model"), *more)
    routed, got = run(tmp_path / "routed", tasks, names, *routed_arguments(project, "guaranteed=true"), *more)
    for name in TASKS:
        assert [one["resps"] for one in got[name]] == [one["resps"] for one in expected[name]]
        assert [one["arguments"] for one in got[name]] == [one["arguments"] for one in expected[name]]
    assert routed["results"] == stock["results"]
    told = routed["config"]["cola_router"]
    count = 5 if "--limit" in more else 12
    assert (told["documents"], told["mean_depth"], told["guaranteed"]) == (4 * count, 5.0, True)
    assert told["chains"] == {"0-4": 4 * count}


@pytest.mark.parametrize(
    ("more", "batch"), [("add_bos_token=true", "4"), ("max_length=40", "auto:9")], ids=["first token", "short rows"]
)
def test_what_lm_evals_class_takes_passes_on(project: Path, tmp_path: Path, more: str, batch: str) -> None:
    # Oracle: `--model hf` with the same arguments, and a chat template.
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    save_tiny(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "model")
    chat = ["--apply_chat_template", "--num_fewshot", "1", "--batch_size", batch, "--max_batch_size", "2"]
    # The template makes it another tokenizer than the router's.
    other = routed_arguments(project, f"model={tmp_path / 'model'}", "verify=false", "guaranteed=true", more)
    names = "tiny_choice,tiny_written"
    _, expected = run(tmp_path / "hf", project / "tasks", names, *stock_arguments(tmp_path / "model", more), *chat)
    _, got = run(tmp_path / "routed", project / "tasks", names, *other[2:], *chat)
    assert got["tiny_choice"][0]["arguments"]["gen_args_0"]["arg_0"].startswith("<user>")
    for name in names.split(","):
        assert [one["resps"] for one in got[name]] == [one["resps"] for one in expected[name]]


def test_a_document_runs_under_the_chain_of_its_prompt_and_choices(
    project: Path, model: PreTrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: states choice by choice through the library, the router on them, and the view of its chain, by hand.
    rows, tokenizer = documents(), tiny_tokenizer()
    states = [states_of(model, prompt_of(row), [f" {one}" for one in row["choices"]]) for row in rows]
    chains = hand_chains(project, states)
    assert len(set(chains)) > 3
    arguments = [*routed_arguments(project, f"budget={BUDGET}"), "--batch_size", "4"]
    results, samples = run(tmp_path / "routed", project / "tasks", "tiny_choice", *arguments)
    for row, chain, sample in zip(rows, chains, samples["tiny_choice"], strict=True):
        view = chain_view(model, chain)
        prompt = tokenizer(prompt_of(row))["input_ids"]
        added = [tokenizer(f" {one}")["input_ids"] for one in row["choices"]]
        by_hand = [loglikelihood(view, prompt, one) for one in added]
        by_hand += [loglikelihood(view, [tokenizer.bos_token_id], one) for one in added]  # acc_mutual_info asks these
        assert values(sample) == pytest.approx(by_hand, abs=2e-4)
    depth = sum(chain.depth for chain in chains) / len(chains)
    told = results["config"]["cola_router"]
    assert told["tasks"]["tiny_choice"]["mean_depth"] == told["mean_depth"] == pytest.approx(depth)
    assert told["chains"] == {str(chain): chains.count(chain) for chain in chains}
    line = f"cola-router: loglikelihood: 12 documents, mean depth {depth:.2f} of 5 layers, {len(set(chains))} chains\n"
    assert line in capsys.readouterr().err

    # The order of the documents changes no number.
    tasks = write_tasks(tmp_path / "reversed", rows[::-1])
    _, again = run(tmp_path / "again", tasks, "tiny_choice", *arguments)
    assert [one["resps"] for one in again["tiny_choice"][::-1]] == [one["resps"] for one in samples["tiny_choice"]]


def test_choices_within_the_contexts_are_read_from_where_they_part(
    project: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    # Oracle: as above; the prompt is what the contexts share, a choice is the rest with what follows it.
    rows, tokenizer = documents(), tiny_tokenizer()
    prompts = [f"Of {row['question']} " for row in rows]
    texts = [[f"{one} {row['question']} it is." for one in row["choices"]] for row in rows]
    chains = hand_chains(project, [states_of(model, *one) for one in zip(prompts, texts, strict=True)])
    assert len(set(chains)) > 2
    assert chains != hand_chains(project, [states_of(model, prompt) for prompt in prompts])
    _, samples = run(tmp_path / "out", project / "tasks", "tiny_blank", *routed_arguments(project, f"budget={BUDGET}"))
    for row, chain, sample in zip(rows, chains, samples["tiny_blank"], strict=True):
        added = tokenizer(f" {row['question']} it is.")["input_ids"]
        contexts = [tokenizer(context)["input_ids"] for context in row["contexts"]]
        by_hand = [loglikelihood(chain_view(model, chain), context, added) for context in contexts]
        assert values(sample) == pytest.approx(by_hand, abs=2e-4)


def test_a_text_is_generated_under_the_chain_of_its_prompt(
    project: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    # Oracle: states of the prompt through the library, the router on them, and the view's own generate.
    rows, tokenizer = documents(), tiny_tokenizer()
    chains = hand_chains(project, [states_of(model, prompt_of(row)) for row in rows])
    assert len(set(chains)) > 2
    options = ["--batch_size", "4", *routed_arguments(project, f"budget={BUDGET}")]
    _, samples = run(tmp_path / "out", project / "tasks", "tiny_written", *options)
    for row, chain, sample in zip(rows, chains, samples["tiny_written"], strict=True):
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
