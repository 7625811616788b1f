"""lm-evaluation-harness on tiny tasks of local files, and what it should find, computed by hand."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import lm_eval.utils
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from torch import Tensor
from transformers import PreTrainedModel

from data.scoring import ChainScorer
from data.tasks import load_task
from router.__main__ import main
from router.chain import Chain
from router.decision import Guarantee, Operation, Router
from router.files import sha256_file, write_json
from router.heads.head import pad_states
from router.storage import WEIGHTS_FILE, load_router, save_router, write_guarantee
from tests.tiny import random_router, save_tiny, tiny_model, tiny_tokenizer

PREFIX = 2
THINGS = ("rain", "iron", "a fox", "the moon", "salt water", "glass")
BUDGET = 4.0
TASK = {
    "dataset_path": "json",
    "test_split": "test",
    "fewshot_split": "test",
    "fewshot_config": {"sampler": "first_n"},
    "metadata": {"version": 1},
}
ACCURACY = {"aggregation": "mean", "higher_is_better": True}
TASKS: dict[str, dict[str, Any]] = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": name} | ACCURACY for name in ("acc", "acc_norm", "acc_mutual_info")],
    },
    # The choices stand in the contexts, the continuation is the same for all, as in WinoGrande.
    "tiny_blank": {
        "output_type": "multiple_choice",
        "doc_to_text": "answer",
        "doc_to_choice": "{{contexts}}",
        "doc_to_target": "{{question}} it is.",
        "repeats": 2,
        "metric_list": [{"metric": "acc"} | ACCURACY],
    },
    "tiny_written": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "repeats": 2,
        "metric_list": [{"metric": "exact_match"} | ACCURACY],
    },
    "tiny_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
}


def documents(count: int = 12) -> list[dict[str, Any]]:
    rng = random.Random(0)
    letters = [rng.choices("abcdefgh XYZ?!", k=2 + 5 * (i % 5)) for i in range(count)]
    rows = [
        {"question": f"{''.join(one)} {i}", "choices": rng.sample(THINGS, 3), "answer": i % 3}
        for i, one in enumerate(letters)
    ]
    return [row | {"contexts": [f"Of {row['question']} {one}" for one in row["choices"]]} for row in rows]


def write_tasks(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    folder.mkdir()
    write_json(folder / "rows.json", list(rows))
    files = {"data_files": {"test": str(folder / "rows.json")}, "cache_dir": str(folder / "cache")}
    for name, task in TASKS.items():
        write_json(folder / f"{name}.yaml", {"task": name, "dataset_kwargs": files, **TASK, **task})
    return folder


def prompt_of(row: dict[str, Any]) -> str:
    return f"Question: {row['question']}\nAnswer:"


def states_of(model: PreTrainedModel, prompt: str, choices: Sequence[str] = ()) -> Tensor:
    """What a router reads, each choice in a row of its own: states of the prompt, then of each choice but its end."""
    tokenizer = tiny_tokenizer()
    start = len(tokenizer(prompt)["input_ids"])
    parts = []
    for choice in choices or ["?"]:
        ids = torch.tensor([tokenizer(prompt + choice)["input_ids"]])[:, :-1]
        parts.append(model(input_ids=ids, output_hidden_states=True).hidden_states[PREFIX][0])
    return torch.cat([parts[0], *(part[start:] for part in parts[1:])])


def loglikelihood(model: PreTrainedModel, context: list[int], added: list[int]) -> float:
    logprobs = model(input_ids=torch.tensor([context + added])).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(context) - 1 + i, token]) for i, token in enumerate(added))


def make_project(folder: Path) -> Path:
    """`model/`, a router for it in `router/` whose budgets were measured on the documents, and `tasks/`."""
    model = tiny_model("llama")
    save_tiny(folder / "model")
    made = random_router(ChainScorer(model, tiny_tokenizer(), load_task("arc_easy")), PREFIX)
    rows = documents()
    states = [states_of(model, prompt_of(row), [f" {one}" for one in row["choices"]]) for row in rows]
    with torch.inference_mode():
        made.head.calibrate(made.head(*pad_states(states)))
    points = made.head.budget_points
    config = dataclasses.replace(made.config, base_model=str(folder / "model"), budget_points=points, dtype="float32")
    save_router(folder / "router", Router(config, made.head))
    full_depth_only = Guarantee(0.1, 0.1, "accuracy", None, None, 10, 0.0, 5.0, None)
    write_guarantee(folder / "router", full_depth_only, sha256_file(folder / "router" / WEIGHTS_FILE), {})
    write_tasks(folder / "tasks", rows)
    return folder


def asked(rows: Sequence[dict[str, Any]]) -> list[Instance]:
    """Requests of tiny_choice, made by hand."""
    return [
        Instance("loglikelihood", row, (prompt_of(row), f" {choice}"), i, ("tiny_choice", document, 1))
        for document, row in enumerate(rows)
        for i, choice in enumerate(row["choices"])
    ]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Leave out what lm-eval does around a run: seconds that no test here is about."""
    monkeypatch = pytest.MonkeyPatch()
    # lm-eval reads its 13,000 task files and starts processes to describe the machine, for every run anew.
    monkeypatch.setattr(TaskManager.__init__, "__defaults__", (None, None, False, None))
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda _: None)
    # Its log handler would keep the stream that pytest captures for one test.
    monkeypatch.setattr(lm_eval.utils, "_LOGGING_CONFIGURED", True)
    yield
    monkeypatch.undo()


def run(out: Path, tasks: Path, names: str, *more: str) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Run lm-eval's command line; returns its results, and the samples of each task by document."""
    out.mkdir(parents=True)
    options = ["--include_path", str(tasks), "--tasks", names, "--output_path", str(out / "r.json"), "--log_samples"]
    main(["lm-eval", *options, *more])
    (results,) = out.glob("r_*.json")
    samples = {}
    for name in names.split(","):
        (path,) = out.glob(f"samples_{name}_*.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        samples[name] = sorted(lines, key=lambda line: line["doc_id"])
    return json.loads(results.read_text()), samples


def routed_arguments(project: Path, *more: str) -> list[str]:
    return ["--model", "cola-router", "--model_args", ",".join([f"router={project / 'router'}", "device=cpu", *more])]


def stock_arguments(model: Path, *more: str) -> list[str]:
    arguments = ",".join([f"pretrained={model}", "dtype=float32", *more])
    return ["--model", "hf", "--device", "cpu", "--model_args", arguments]


def hand_chains(project: Path, states: Sequence[Tensor]) -> list[Chain]:
    """The router's chains at BUDGET, of states computed by hand."""
    return [one.chain for one in load_router(project / "router").decide(states, Operation(budget=BUDGET))]


def values(sample: dict[str, Any]) -> list[float]:
    """The log-likelihoods of a logged sample's requests."""
    return [float(resps[0][0]) for resps in sample["resps"]]
