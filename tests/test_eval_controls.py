"""The oracle's controls that run chains again: choices in another order, and real generation.

What chains write is read and graded, whatever mode the task is in.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from data.prompts import LETTERS
from data.records import SearchRecord
from data.sample import Sample
from data.scoring import ChainScorer
from data.tasks import TaskSet, load_task
from eval.arms import FULL, oracle_arm, static_arm
from eval.controls import (
    GENERATED_FILE,
    PLAN_FILE,
    Controls,
    GenerationJudge,
    Plan,
    choice_of,
    controls_finished,
    controls_of,
    plan_controls,
    run_controls,
    shuffles,
)
from eval.results import ArmResult, result_store, run_arms
from router.chain import Chain
from router.engine.view import chain_view
from router.validation import InputError, to_plain
from tests.evaluation import TRIED, make_records
from tests.sums import SUMS, digit_model
from tests.tiny import NUM_LAYERS, tiny_model, tiny_tokenizer

LETTER = load_task("arc_easy", "letter", max_new_tokens=2)
IDENTITY = {"of": "a test"}
WORDS = ("ice", "tea", "oil", "ash")


def questions(count: int, words: Sequence[str] = WORDS) -> list[Sample]:
    """Questions of two to four choices."""
    return [
        Sample("arc_easy", "test", f"Which {'really ' * (i % 3)}is number {i}?", tuple(words[: 2 + i % 3]), i % 2)
        for i in range(count)
    ]


def letter_model() -> PreTrainedModel:
    """A random llama that writes little but letters, so that some of its answers can be read."""
    model = tiny_model("llama")
    kept = tiny_tokenizer()(" A B C D\n")["input_ids"]
    for token, row in enumerate(model.get_output_embeddings().weight.data):
        if token not in kept:
            row.zero_()
    return model


@dataclasses.dataclass(frozen=True)
class Run:
    """An evaluation of full depth and the oracle, in memory."""

    model: PreTrainedModel
    scorer: ChainScorer
    samples: list[Sample]
    records: list[SearchRecord]
    results: list[ArmResult]

    def plan(self, count: int = 24, seed: int = 1) -> Plan:
        return plan_controls(count, 2, seed, self.scorer.tasks, self.samples, self.records)

    def control(self, out: Path) -> None:
        out.mkdir(exist_ok=True)
        run_controls(out, self.plan(), IDENTITY, self.scorer, self.samples, self.results, 5)

    def finished(self, out: Path) -> bool:
        return controls_finished(out, self.plan(), IDENTITY, NUM_LAYERS)

    def right(self, arm: str) -> dict[str, bool]:
        return {one.sample_id: one.correct for one in self.results if one.arm == arm}


def evaluated(model: PreTrainedModel, tasks: TaskSet, samples: list[Sample], folder: Path) -> Run:
    scorer = ChainScorer(model, tiny_tokenizer(), tasks)
    records = make_records(scorer, samples, "test")
    arms = [static_arm(Chain.full(NUM_LAYERS), FULL), oracle_arm(records)]
    store = result_store(folder / "results.jsonl", IDENTITY, NUM_LAYERS)
    run_arms(arms, samples, scorer, scorer.judge, store, 5, "test")
    return Run(model, scorer, samples, records, list(store.rows()))


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in files_of(out) for line in path.read_text().splitlines()]


def files_of(out: Path) -> list[Path]:
    """The results files of the controls."""
    return [*sorted(out.glob("reshuffled-*[0-9].jsonl")), out / GENERATED_FILE]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    return evaluated(letter_model(), TaskSet.of(LETTER), questions(30), folder)


@pytest.fixture(scope="module")
def done(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done")
    run.control(out)
    return out


def test_reshuffled_choices_are_shown_in_another_order_and_mean_the_same(run: Run, done: Path) -> None:
    # Oracle: prompts written here in the order that the shuffle says, the stock model's view and its letter logits.
    tokenizer, samples = tiny_tokenizer(), {sample.id: sample for sample in run.samples}
    chains = {(one.arm, one.sample_id): one.chain for one in run.results}
    orders = set()
    lines = [line for line in lines_of(done) if "/reshuffled-" in line["arm"]]
    assert len(lines) == 2 * 2 * 24
    for line in lines:
        arm, shuffle = line["arm"].split("/reshuffled-")
        sample = samples[line["sample_id"]]
        order = dataclasses.replace(LETTER, shuffle=int(shuffle)).query(sample).order
        assert sorted(order) == list(range(len(sample.choices)))
        assert order != LETTER.query(sample).order
        orders.add((sample.id, order))
        listed = [f"\n {letter}. {sample.choices[i]}" for letter, i in zip(LETTERS, order, strict=False)]
        prompt = f"Question: {sample.question}{''.join(listed)}\nAnswer:"
        chain = Chain(tuple(line["chain"]), NUM_LAYERS)
        assert chain == chains[arm, sample.id]
        view = chain_view(run.model, chain)
        logits = view(torch.tensor([tokenizer(prompt).input_ids])).logits[0, -1].log_softmax(-1)
        scores = [logits[tokenizer(f" {LETTERS[order.index(i)]}").input_ids[0]].item() for i in range(len(order))]
        assert line["scores"] == pytest.approx(scores, abs=1e-4)
        assert line["prediction"] == scores.index(max(scores))
        assert line["correct"] == (line["prediction"] == sample.answer)
    assert len(orders) > 24  # the two shuffles differ, but where there are two choices


def test_the_block_counts_what_stays_right(run: Run, done: Path) -> None:
    # Oracle: counted here from the lines on the disk.
    again = {(line["arm"], line["sample_id"]): line["correct"] for line in lines_of(done)}
    read = {(line["arm"], line["sample_id"]) for line in lines_of(done) if line["prediction"] is not None}
    drawn = sorted({key for _, key in again})
    full, oracle = run.right("full"), run.right("oracle")
    rescued = [key for key in drawn if oracle[key] and not full[key]]
    assert len(drawn) == 24
    assert len(rescued) >= 3
    block = to_plain(controls_of(done, run.results, NUM_LAYERS))
    assert (block["luck"], block["random_search"]) == (None, None)

    def kept(arm: str, keys: Sequence[str]) -> float:
        outcomes = [again[f"{arm}/reshuffled-{shuffle}", key] for shuffle in shuffles(2, 1) for key in keys]
        return sum(outcomes) / len(outcomes)

    found = block["reshuffled"]
    assert (found["n"], found["reshuffles"], found["rescued"]["n"]) == (24, 2, len(rescued))
    assert found["rescued"]["oracle"]["share"] == pytest.approx(kept("oracle", rescued))
    assert found["rescued"]["full"]["share"] == pytest.approx(kept("full", rescued))
    difference = found["rescued"]["difference"]
    assert difference["value"] == pytest.approx(kept("oracle", rescued) - kept("full", rescued))
    choices = {sample.id: len(sample.choices) for sample in run.samples}
    assert found["rescued"]["chance"] == pytest.approx(sum(1 / choices[key] for key in rescued) / len(rescued))
    right = [key for key in drawn if full[key]]
    assert (found["full_right"]["n"], found["full_right"]["share"]) == (len(right), pytest.approx(kept("full", right)))
    both = [key for key in right if oracle[key]]
    assert found["both_right"]["share"] == pytest.approx(kept("oracle", both))
    assert found["retained"]["value"] == pytest.approx(kept("oracle", rescued) - kept("full", right))
    for name, arms in (("usual", (full, oracle)), ("reshuffled", None)):
        for i, arm in enumerate(("full", "oracle")):
            expected = kept(arm, drawn) if arms is None else sum(arms[i][key] for key in drawn) / 24
            assert found[name][arm]["share"] == pytest.approx(expected)
    generated = block["generated"]
    assert (generated["n"], generated["modes"]) == (24, ["letter"])
    for arm, usual in (("full", full), ("oracle", oracle)):
        own = [key for key in drawn if usual[key]]
        confirmed = [key for key in own if again[f"{arm}/generated", key]]
        assert generated[arm]["right"] == len(own)
        assert generated[arm]["confirmed"]["share"] == len(confirmed) / len(own)
        of_read = [key for key in own if (f"{arm}/generated", key) in read]
        assert generated[arm]["right_no_answer"] == len(own) - len(of_read) > 0
        assert generated[arm]["confirmed_of_read"]["share"] == len(confirmed) / len(of_read)
        assert generated[arm]["judged"]["share"] == len(own) / 24


def test_a_killed_run_goes_on_and_leaves_the_same_files(
    run: Run, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: the bytes of an unbroken run; a torn line does not count; a finished run loads nothing into the model.
    assert run.finished(done)
    assert not run.finished(tmp_path)
    out = tmp_path / "killed"
    shutil.copytree(done, out)
    last = files_of(out)[-1]
    lines = last.read_bytes().splitlines(keepends=True)
    last.with_suffix(".partial.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:20])
    last.unlink()
    assert not run.finished(out)
    run.control(out)
    assert run.finished(out)
    for one, other in zip(files_of(out), files_of(done), strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert (out / PLAN_FILE).read_bytes() == (done / PLAN_FILE).read_bytes()
    monkeypatch.delattr(ChainScorer, "load")
    run.control(out)


def test_other_controls_are_other_plans_and_broken_ones_are_refused(run: Run, done: Path, tmp_path: Path) -> None:
    # Oracle: the messages; more samples hold those that fewer do.
    assert not controls_finished(done, run.plan(seed=2), IDENTITY, NUM_LAYERS)
    fewer, plan = run.plan(count=10), json.loads((done / PLAN_FILE).read_text())
    assert len(fewer.generated) == 10
    assert set(fewer.generated) < set(plan["generated"])
    (tmp_path / PLAN_FILE).write_text(json.dumps(plan | {"schema": 0}))
    with pytest.raises(InputError, match="schema: expected one of 3, got 0"):
        controls_of(tmp_path, run.results, NUM_LAYERS)
    assert controls_of(tmp_path / "none", run.results, NUM_LAYERS) is None


def test_what_is_generated_already_or_lists_no_choices_has_no_such_control(tmp_path: Path) -> None:
    # Oracle: the tasks: sums are generated and graded anyway; of the cloze, whose prompt lists no choices, no text
    # could be read.
    samples = [Sample("sums", "test", f"What is {i}?", (), "12") for i in range(4)]
    free = evaluated(digit_model(), TaskSet.of(SUMS), samples, tmp_path)
    free.control(tmp_path / "free")
    assert not (tmp_path / "free" / GENERATED_FILE).exists()
    assert free.finished(tmp_path / "free")
    assert controls_of(tmp_path / "free", free.results, NUM_LAYERS) == Controls(None, None, None, None)
    cloze = plan_controls(24, 2, 1, TaskSet.of(load_task("arc_easy")), questions(5), free.records)
    assert (cloze.shuffles, cloze.reshuffled, cloze.generated) == ((), (), ())


def test_a_letter_is_generated_as_a_task_does_that_is_judged_so() -> None:
    # Oracle: the same task with real_mode generate.
    model, samples = tiny_model("llama", seed=2), questions(6)
    jobs = [*itertools.product(range(6), TRIED[:4])]
    found = []
    for task in (LETTER, load_task("arc_easy", "letter", max_new_tokens=2, real_mode="generate")):
        scorer = ChainScorer(model, tiny_tokenizer(), task)
        judge = GenerationJudge.of(scorer) if task is LETTER else scorer.judge
        found.append(judge(scorer.load(scorer.encode_all(samples)), jobs))
    assert found[0] == found[1]
    assert [one.chain for one in found[0]] == [chain for _, chain in jobs]


def test_an_answer_ends_where_the_models_positions_do() -> None:
    # Oracle: GPT2 has no embedding for a 513th position, so that a longer answer would end in an IndexError.
    model, sample = tiny_model("gpt2"), Sample("arc_easy", "test", f"Which {'is ' * 155}it?", ("ice", "tea"), 0)
    scorer = ChainScorer(model, tiny_tokenizer(), load_task("arc_easy", "letter", max_new_tokens=32))
    encoded = scorer.encode(sample)
    assert 512 - 32 < len(encoded.prompt) < 512
    (result,) = GenerationJudge.of(scorer)(scorer.load([encoded]), [(0, TRIED[0])])
    assert result.prediction is None


def test_a_choice_is_generated_as_text() -> None:
    # Oracle: the library's greedy decoding of each chain's view, cut at the end of the line and compared by hand.
    model, tokenizer = digit_model(1), tiny_tokenizer()
    scorer = ChainScorer(model, tokenizer, load_task("arc_easy", prompt={"cue": ""}, max_new_tokens=1))
    samples = questions(8, ("1", "2", "22", "11"))
    judge = GenerationJudge.of(scorer)
    jobs = [*itertools.product(range(8), TRIED)]
    said = set()
    for (i, chain), result in zip(jobs, judge(scorer.load(scorer.encode_all(samples)), jobs), strict=True):
        sample = samples[i]
        ids = torch.tensor([tokenizer(f"Question: {sample.question}\n").input_ids])
        longest = max(map(len, sample.choices)) + 1
        view = chain_view(model, chain)
        new = view.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=longest, do_sample=False, pad_token_id=0
        )[0, ids.shape[1] :]
        text = tokenizer.decode(new, skip_special_tokens=True)
        ended = "\n" in text or tokenizer.eos_token_id in new
        text = text.partition("\n")[0]
        expected = sample.choices.index(text) if ended and text in sample.choices else None
        assert (result.chain, result.prediction, result.correct) == (chain, expected, expected == sample.answer)
        said.add(expected)
    assert len(said) >= 4


@pytest.mark.parametrize(
    ("text", "listed", "expected"),
    [
        (" Tea.", True, 1), ("tea", False, 1), ("B", True, 2), ("B. oil", True, 2), ("B", False, None),
        ("D", True, None), ("a tea", True, None), ("A", True, 0), ("", True, None),
    ],
)  # fmt: skip
def test_a_choice_is_named_by_its_text_or_its_listed_letter(text: str, listed: bool, expected: int | None) -> None:
    # Oracle: by hand; the second and third of three choices are listed the other way round.
    task = load_task("arc_easy", list_choices=listed)
    encoded = ChainScorer(tiny_model("llama"), tiny_tokenizer(), task).encode(questions(2)[1])
    turned = dataclasses.replace(encoded, query=dataclasses.replace(encoded.query, order=(0, 2, 1)))
    assert choice_of(text, turned) == expected
