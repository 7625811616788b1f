"""`python -m eval` on a mixture: letters compared, letters generated and free answers, judged in the real mode."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from data.prompts import LETTERS
from data.sample import Sample, read_samples
from data.scoring import ChainScorer
from data.statistics import wilson_interval
from data.tasks import Task, TaskSet
from eval.__main__ import main
from eval.baselines import StaticByKind, StaticChoice
from eval.report import REPORT_FILE
from eval.results import RESULTS_FILE, RUN_FILE
from eval.run import CANDIDATES_FILE
from router.chain import Chain
from router.decision import Operation
from router.engine.load import load_model
from router.engine.view import chain_view
from router.files import read_json
from router.storage import load_router
from router.validation import from_plain
from tests.evaluation import ARM_NAMES, PREFIX, TRIED, World, prepared
from tests.tiny import FULL, NUM_LAYERS, scorer_of, tiny_model, tiny_tokenizer

COLUMNS = {"question": "q", "answer": "a"}
LETTER = {"columns": COLUMNS | {"choices": "c"}, "answer_kind": "index", "mode": "letter"}
# Free answers end in a parenthesis and compare without case, so `exact` is stricter than what is generated and graded.
SPELL = {"columns": COLUMNS, "answer_kind": "text", "mode": "exact", "grading": "text", "max_new_tokens": 8}
TASKS = TaskSet.of(
    [
        from_plain(Task, {"name": "riddles", **LETTER}),
        from_plain(Task, {"name": "quiz", **LETTER, "real_mode": "generate", "max_new_tokens": 1}),
        from_plain(Task, {"name": "spelling", **SPELL, "prompt": {"opening": "(", "end": ")"}}),
    ]
)
BY_KIND = ("static_by_kind", "permuted")
"""Arms that tell tasks apart: those of a mixture only."""
BASELINES = ("static_by_kind", "mixture", "permuted", "early_exit", "pruned")
"""All but random chains, whose free answers are written one by one."""
ALL_ARMS = [*ARM_NAMES[:5], BY_KIND[0], ARM_NAMES[5], BY_KIND[1], *ARM_NAMES[7:]]
EMITTED = "abcdefgh)"
SIZES = {"train": 4, "validation": 4, "test": 10}
"""Riddles, as many quiz questions, and half of the free answers."""


def save_model(folder: Path) -> None:
    """Save a tiny model whose head knows few tokens, so that greedy answers are short words that end now and then.

    The other tokens' logits are 0, below the highest of the random ones.
    """
    model, tokenizer = tiny_model("llama", seed=2), tiny_tokenizer()
    letters = [tokenizer(f" {letter}").input_ids[0] for letter in LETTERS[:4]]
    kept = [*tokenizer.convert_tokens_to_ids(list(EMITTED)), *letters]
    head = model.get_output_embeddings().weight
    rows = torch.zeros_like(head)
    rows[kept] = head[kept]
    rows[tokenizer.convert_tokens_to_ids(")")] *= 2
    head.data.copy_(rows)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_mixture(scorer: ChainScorer) -> dict[str, list[Sample]]:
    """Samples of the three tasks. Of the free answers that full depth gives, the samples call a third right as they
    stand, a third in capitals, a third not at all.
    """
    made = {}
    for split, size in SIZES.items():
        samples = []
        for i in range(size):
            texts = tuple(f"{word}{i}" for word in ("ice", "tea", "oil", "ash"))
            told = {"difficulty": 9 + i % 2} if i % 3 else {}
            samples.append(Sample("riddles", split, f"Which {split} is number {i}?", texts, i % 4, told))
            samples.append(Sample("quiz", split, f"Name the {split} of number {i}.", texts, i % 4))
        free = []
        for i in range(2 * size):
            told = {"difficulty": f"Level {9 + i % 3}", "subject": "ab"[i % 2]}
            free.append(Sample("spelling", split, f"Spell {split} {i * 7}.", (), "zz", told))
        block = scorer.load([scorer.encode(sample) for sample in free])
        given = [str(one.prediction or "") for one in scorer.judge(block, [(i, FULL) for i in range(len(free))])]
        said = [i for i, text in enumerate(given) if text]
        gold = {i: given[i] if place % 3 == 0 else given[i].upper() for place, i in enumerate(said) if place % 3 < 2}
        made[split] = [*samples, *(dataclasses.replace(one, answer=gold.get(i, "zz")) for i, one in enumerate(free))]
    return made


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("mixture")
    save_model(folder / "model")
    world = prepared(folder, TASKS, make_mixture(scorer_of(folder, TASKS)), TRIED[:5])
    with redirect_stdout(StringIO()) as printed, pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.figures.DRAWINGS", ())  # drawing them takes longer than all else
        # Controls have tests of their own.
        main(world.arguments(control_samples=0, baselines=f"[{','.join(BASELINES)}]"))
    (folder / "printed.txt").write_text(printed.getvalue())
    return world


def lines_of(world: World, arm: str | None = None) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (world.out / RESULTS_FILE).read_text().splitlines()]
    return [line for line in lines if arm in (None, line["arm"])]


def samples_of(world: World) -> dict[str, Sample]:
    return {sample.id: sample for sample in read_samples(world.folder / "data" / "test.jsonl")}


def test_every_answer_is_judged_in_its_tasks_real_mode(mixture: World) -> None:
    # Oracle: prompts written here, the library's own greedy decoding of each chain's view, answers cut and compared
    # by hand; for riddles, whose letters are compared in evaluation too, the logits after the prompt.
    model, tokenizer = load_model(str(mixture.folder / "model"), dtype="float32", device="cpu")
    samples, outcomes = samples_of(mixture), Counter[tuple[str, bool, bool]]()

    @cache
    def answer_of(sample_id: str, layers: tuple[int, ...]) -> int | str | None:
        sample = samples[sample_id]
        order = TASKS[sample.task].query(sample).order
        listed = [f"\n {letter}. {sample.choices[i]}" for letter, i in zip(LETTERS, order, strict=False)]
        prompt = f"Question: {sample.question}{''.join(listed)}\nAnswer:" + ("" if listed else " (")
        ids = torch.tensor([tokenizer(prompt).input_ids])
        view = chain_view(model, Chain(layers, NUM_LAYERS))
        if sample.task == "riddles":
            logits = view(ids).logits[0, -1]
            return order[max(range(4), key=lambda j: float(logits[tokenizer(f" {LETTERS[j]}").input_ids[0]]))]
        out = view.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8 if not listed else 1)
        text = tokenizer.decode(out[0, ids.shape[1] :])
        if sample.task == "quiz":
            return order["ABCD".index(text[-1])] if text in (" A", " B", " C", " D") else None
        return text.split(")")[0].strip() or None if ")" in text else None

    for line in lines_of(mixture):
        sample = samples[line["sample_id"]]
        expected = answer_of(sample.id, tuple(line["chain"]))
        right = expected == sample.answer if sample.choices else str(expected).casefold() == sample.gold.casefold()
        assert len(line["scores"]) == (4 if sample.task == "riddles" else 0)
        assert (line["prediction"], line["correct"]) == (expected, right)
        outcomes[sample.task, right, expected is None] += 1
    for task in ("quiz", "spelling"):  # right, wrong and unreadable
        assert min(outcomes[task, True, False], outcomes[task, False, False], outcomes[task, False, True]) >= 5
    assert min(outcomes["riddles", True, False], outcomes["riddles", False, False]) >= 5


def test_the_real_mode_differs_from_the_cheap_one(mixture: World) -> None:
    # Oracle: the search's records, which hold full depth's cheap answer beside the real one of the results.
    records = [json.loads(line) for line in (mixture.folder / "records" / "test.jsonl").read_text().splitlines()]
    cheap = {record["sample_id"]: record["results"][0]["correct"] for record in records}
    differ = Counter((one["task"], cheap[one["sample_id"]], one["correct"]) for one in lines_of(mixture, "full"))
    assert differ["spelling", False, True] >= 3, "exact wants the very letters, the grader folds case"
    assert differ["quiz", True, False] >= 1, "the best of four letters need not be what is generated"
    assert differ["riddles", True, False] == differ["riddles", False, True] == 0
    # The oracle knows of the chains that the cheap mode found and the real one confirmed.
    found = [any(one["correct"] and one["verified"] for one in record["results"]) for record in records]
    cheaply = [any(one["correct"] for one in record["results"]) for record in records]
    oracle = read_json(mixture.out / REPORT_FILE)["oracle"]
    assert oracle["right_chain_in_records"] == sum(found) < sum(cheaply)
    assert oracle["right_when_run_again"] == sum(line["correct"] for line in lines_of(mixture, "oracle"))
    run = read_json(mixture.out / RUN_FILE)
    assert (run["task"], run["mode"], run["judged_mode"]) == (
        "quiz+riddles+spelling",
        "exact+letter",
        "generate+letter",
    )


def test_static_candidates_are_judged_in_the_cheap_mode(mixture: World) -> None:
    # Oracle: the kind of answer: compared letters and teacher-forced tokens have scores, generated answers none.
    lines = [json.loads(line) for line in (mixture.out / CANDIDATES_FILE).read_text().splitlines()]
    assert {line["task"] for line in lines} == set(TASKS.tasks)
    assert all(line["scores"] for line in lines)
    assert all(line["prediction"] is not None for line in lines)
    assert read_json(mixture.out / StaticChoice.FILE)["mode"] == "exact+letter"
    report = read_json(mixture.out / REPORT_FILE)
    assert "mode generate+letter" in report["caveats"][-1]
    assert "mode exact+letter" in report["caveats"][-1]


def test_each_kind_has_its_own_static_chain_and_together_they_are_no_deeper_than_the_router(mixture: World) -> None:
    # Oracle: the candidates' lines, counted here, all their combinations, and the router's chains one by one.
    scorer, router = scorer_of(mixture.folder, TASKS), load_router(mixture.folder / "router")
    validation = read_samples(mixture.folder / "data" / "validation.jsonl")
    counts = Counter(sample.task for sample in validation)
    lines = [json.loads(line) for line in (mixture.out / CANDIDATES_FILE).read_text().splitlines()]
    chosen = read_json(mixture.out / StaticByKind.FILE)["kinds"]
    assert set(chosen) == set(TASKS.tasks)
    depths = []
    for sample in validation:
        states = scorer.states(scorer.load([scorer.encode(sample)]), PREFIX)
        depths += [one.chain.depth for one in router.decide(states, Operation(budget=4.2))]
    bound = sum(depths) / len(depths)
    options: dict[str, list[tuple[int, float]]] = {}
    for kind, choice in chosen.items():
        assert choice["router_validation_depth"] == pytest.approx(bound)
        right: dict[tuple[int, ...], dict[str, bool]] = {}
        for line in lines:
            if line["task"] == kind:
                right.setdefault(tuple(line["chain"]), {})[line["sample_id"]] = line["correct"]
        # The kind's candidates ran on all its samples; what another kind alone has ran on none of them.
        assert {len(of) for of in right.values()} == {len(right[FULL.layers])} == {choice["n"]}
        assert sum(right[tuple(choice["chain"])].values()) == choice["correct"]
        options[kind] = [(len(chain), sum(of.values()) / len(of)) for chain, of in right.items()]
        of_test = [line for line in lines_of(mixture, "static_by_kind") if line["task"] == kind]
        assert {tuple(line["chain"]) for line in of_test} == {tuple(choice["chain"])}
    own = {kind: (choice["depth"], choice["correct"] / choice["n"]) for kind, choice in chosen.items()}

    def mean(of_kind: dict[str, tuple[int, float]], place: int) -> float:
        return sum(counts[kind] * of_kind[kind][place] for kind in of_kind) / counts.total()

    every = [dict(zip(options, combination, strict=True)) for combination in itertools.product(*options.values())]
    within = [(mean(one, 1), -mean(one, 0)) for one in every if mean(one, 0) <= bound]
    assert (mean(own, 1), -mean(own, 0)) == pytest.approx(max(within))
    report = read_json(mixture.out / REPORT_FILE)
    assert report["baselines"]["static_by_kind"]["kinds"] == chosen
    assert {*BY_KIND, "static", "pruned"} <= report["router_against"].keys()
    differences = {
        group["task"]: next(arm["difference"] for arm in group["arms"] if arm["name"] == "router")
        for group in report["groups"][:3]
    }
    assert differences[report["worst_kind"]] == min(differences.values())


def test_permuted_chains_are_the_routers_on_other_samples_of_the_task(mixture: World) -> None:
    # Oracle: the results' lines, counted here.
    chains = {
        name: {line["sample_id"]: (line["task"], *line["chain"]) for line in lines_of(mixture, name)}
        for name in ("router", "permuted")
    }
    assert Counter(chains["router"].values()) == Counter(chains["permuted"].values())
    assert chains["router"] != chains["permuted"]


def test_groups_are_counted_by_task_difficulty_and_subject(mixture: World) -> None:
    # Oracle: the results' lines, counted here; what a line says of its sample is what the sample's file says.
    lines, samples = lines_of(mixture), samples_of(mixture)
    for line in lines:
        sample = samples[line["sample_id"]]
        assert (line["task"], line["choices"]) == (sample.task, len(sample.choices))
        assert [line[key] for key in ("difficulty", "subject")] == [
            sample.metadata.get(key) for key in ("difficulty", "subject")
        ]
    report = read_json(mixture.out / REPORT_FILE)
    expected = [("task", task, task) for task in ("quiz", "riddles", "spelling")]
    expected += [("difficulty", "riddles", value) for value in ("9", "10", None)]
    expected += [("difficulty", "spelling", f"Level {i}") for i in (9, 10, 11)]
    expected += [("subject", "spelling", value) for value in "ab"]
    assert [(group["kind"], group["task"], group["value"]) for group in report["groups"]] == expected
    for group in report["groups"]:
        members = [line for line in lines if line["task"] == group["task"]]
        if group["kind"] != "task":
            given = [None if line[group["kind"]] is None else str(line[group["kind"]]) for line in members]
            members = [line for line, value in zip(members, given, strict=True) if value == group["value"]]
        full = sum(line["correct"] for line in members if line["arm"] == "full")
        assert [arm["name"] for arm in group["arms"]] == ALL_ARMS
        for arm in group["arms"]:
            of_arm = [line for line in members if line["arm"] == arm["name"]]
            right = sum(line["correct"] for line in of_arm)
            assert group["n"] == arm["n"] == len(of_arm) > 0
            assert (arm["correct"], arm["accuracy"]) == (right, right / len(of_arm))
            assert arm["accuracy_interval"] == list(wilson_interval(right, len(of_arm)))
            assert arm["mean_depth"] == pytest.approx(sum(len(line["chain"]) for line in of_arm) / len(of_arm))
            assert arm["no_answer"] == sum(line["prediction"] is None for line in of_arm)
            if arm["name"] == "full":
                assert arm["difference"] is arm["difference_interval"] is None
            else:
                assert arm["difference"] == pytest.approx((right - full) / len(of_arm))
                assert arm["difference_interval"][0] <= arm["difference"] <= arm["difference_interval"][1]
    # Half of the samples have four choices, half none.
    assert report["chance_accuracy"] == 0.125
    assert [group["chance_accuracy"] for group in report["groups"][:3]] == [0.25, 0.25, 0]


def test_the_tables_rows_are_the_reports(mixture: World) -> None:
    # Oracle: the report of the run.
    report = read_json(mixture.out / REPORT_FILE)
    printed = (mixture.folder / "printed.txt").read_text()
    assert "quiz+riddles+spelling (generate+letter, searched by exact+letter)" in printed
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if "|" in line]
    for arm in report["arms"]:
        (row,) = [row for row in rows if row[0] == arm["label"]]
        assert row[-1] == str(arm["no_answer"])
    level = next(group for group in report["groups"] if group["value"] == "Level 10")
    arms = [next(arm for arm in level["arms"] if arm["name"] == name) for name in ("full", "router", "oracle")]
    counts = "/".join(str(arm["no_answer"]) for arm in arms)
    accuracies = [f"{arm['accuracy']:.3f}" for arm in arms]
    assert ["spelling, difficulty Level 10", str(level["n"]), *accuracies, counts] in rows
    for kind in report["groups"][:3]:
        (row,) = [row for row in rows if row[0] == kind["task"]]
        shown = {arm["name"]: arm for arm in kind["arms"]}
        for name, cell in zip(("full", "router", "static", "static_by_kind", "oracle"), row[2:], strict=False):
            (low, high), arm = shown[name]["accuracy_interval"], shown[name]
            assert cell == f"{arm['accuracy']:.3f} ({low:.3f}..{high:.3f}) at {arm['mean_depth']:.2f}"
        assert row[7].startswith(f"{shown['router']['difference']:+.3f} (")
    assert f"worst kind: {report['worst_kind']}, router " in printed
    assert {"riddles, difficulty none given", "spelling, difficulty Level 10", "spelling, subject b"} <= {
        row[0] for row in rows
    }
