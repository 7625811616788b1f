"""Robust rewards: what a search with several variants finds is what running them one by one gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from data.records import ChainResult, SearchRecord, VariantResult, pareto_front, read_records
from data.sample import Sample, write_samples
from data.tasks import TaskSet, write_tasks
from router.chain import Chain
from router.command import run_command
from router.validation import to_plain
from search.__main__ import main
from search.actions import ActionSpace
from search.algorithms import make_searcher
from search.menu import Menu, outcomes_of, write_menu
from search.settings import SearchSettings
from search.variants import VariantSettings
from tests.conftest import Refusal
from tests.sums import LETTERS, SUMS, digit_model, sums
from tests.test_search_run import arguments
from tests.tiny import NUM_LAYERS, edit_json, save_tiny, scorer_of, tiny_model, tiny_samples, tiny_tokenizer
from train.objectives import MenuObjective, MenuSettings

WORDINGS = tuple(f"Question{mark} {{question}}" for mark in ";.,!-")
TASKS = TaskSet.of([replace(SUMS, prompt=replace(SUMS.prompt, wordings=WORDINGS)), LETTERS])
SAMPLES = [*sums("train", 5), *[one for one in tiny_samples("train", 20) if len(one.choices) > 2][:5]]
SEARCH = {"search__simulations": 12, "search__max_depth": "null", "variants": 3}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    model, tokenizer = digit_model(), tiny_tokenizer()
    rows, own = model.get_output_embeddings().weight.data, tiny_model("llama", seed=9).get_output_embeddings().weight
    letters = tokenizer(" A B C D")["input_ids"]
    rows[letters] = own[letters] / 100  # letters differ, and are hardly ever what greedy decoding emits
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return prepared(folder, SAMPLES)


def prepared(folder: Path, samples: Sequence[Sample]) -> Path:
    (folder / "data").mkdir(parents=True)
    write_tasks(folder / "data", TASKS)
    write_samples(folder / "data" / "train.jsonl", list(samples))
    return folder


def search(project: Path, out: Path, **changes: object) -> list[SearchRecord]:
    assert run_command(main, arguments(project, out, **(SEARCH | changes))) == 0
    return read_records(out / "train.jsonl")


@pytest.fixture(scope="module")
def found(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search with three variants and two held out."""
    folder = tmp_path_factory.mktemp("found")
    search(project, folder, held_out=2)
    return folder


class OneByOne:
    """Runs one chain on one sample in one variant: a scorer for each, separate rows, no reuse of states."""

    def __init__(self, project: Path) -> None:
        one_row = {"packed": False, "state_bytes": 0, "batch_tokens": 1}
        self._scorers = [scorer_of(project, TASKS.varied(variant), **one_row) for variant in range(5)]

    def __call__(self, sample: Sample, chain: Chain, variant: int, target: int | str | None = None) -> ChainResult:
        scorer = self._scorers[variant]
        return scorer.score(scorer.load([scorer.encode(sample, target)]), [(0, chain)])[0]

    def judged(self, sample: Sample, chain: Chain, variant: int) -> VariantResult:
        scorer = self._scorers[variant]
        return VariantResult.of(scorer.judge(scorer.load([scorer.encode(sample)]), [(0, chain)])[0])


@pytest.fixture(scope="module")
def alone(project: Path) -> OneByOne:
    return OneByOne(project)


def assert_same(one: ChainResult | VariantResult, other: ChainResult | VariantResult) -> None:
    assert (one.prediction, one.correct) == (other.prediction, other.correct)
    assert one.scores == pytest.approx(other.scores, abs=1e-4)
    assert one.margin == pytest.approx(other.margin, abs=1e-4)


def test_records_are_what_trying_variants_one_by_one_finds(found: Path, alone: OneByOne) -> None:
    # Oracle: the search by hand, each chain in one variant after the other up to the first wrong one (full depth in
    # all), its reward their mean, untried ones 0.
    settings, samples = SearchSettings(simulations=12), {sample.id: sample for sample in SAMPLES}
    stops = set()
    for record in read_records(found / "train.jsonl"):
        searcher = make_searcher(ActionSpace(settings, NUM_LAYERS, 1), settings.rng_for(record.sample_id))
        tried: list[tuple[Chain, list[ChainResult]]] = []
        while chains := searcher.ask():
            told = []
            for chain in chains:
                answers = [alone(samples[record.sample_id], chain, 0)]
                while len(answers) < 3 and (chain.is_full or answers[-1].correct):
                    answers.append(alone(samples[record.sample_id], chain, len(answers)))
                told.append((chain, answers))
            rights = [sum(one.correct for one in answers) == 3 for _, answers in told]
            rewards = [sum(settings.reward_for(one.correct, one.margin) for one in own) / 3 for _, own in told]
            searcher.tell(rewards, rights)
            tried += told
        assert [one.chain for one in record.results] == [chain for chain, _ in tried]
        for result, (_, answers) in zip(record.results, tried, strict=True):
            assert len(result.answers) == len(answers)
            for one, other in zip(result.answers, answers, strict=True):
                assert_same(one, other)
            assert result.robust == all(one.correct for one in answers)
            stops.add((len(answers), result.robust))
        assert record.variants == 3
        assert all(record.results[i].robust for i in record.pareto)
        assert record.nominal_layers == sum(chain.depth * len(answers) for chain, answers in tried)
        assert 0 < record.executed_layers < record.nominal_layers
    assert stops >= {(1, False), (2, False), (3, True)}  # the samples show every way to end


def test_held_out_variants_are_judged_for_full_depth_and_the_front_that_stands(found: Path, alone: OneByOne) -> None:
    # Oracle: the next variants, judged as evaluation judges, one by one.
    samples = {sample.id: sample for sample in SAMPLES}
    edited = 0
    for record in read_records(found / "train.jsonl"):
        standing = [one for one in record.results if one.stands]
        front = {standing[i].chain for i in pareto_front(standing)}
        assert record.shortest is None or record.shortest.chain in front
        for result in record.results:
            assert len(result.held_out) == (2 if result.chain.is_full or result.chain in front else 0)
            for number, one in enumerate(result.held_out, start=3):
                assert_same(one, alone.judged(samples[record.sample_id], result.chain, number))
            edited += bool(result.held_out) and not result.chain.is_full
    assert edited


def test_batches_and_kills_change_nothing_and_other_variants_are_another_search(
    project: Path, found: Path, tmp_path: Path, refusal: Refusal
) -> None:
    # Oracle: the records at the usual batch size; the first lines of their file stand for what a kill leaves.
    usual = {record.sample_id: record for record in read_records(found / "train.jsonl")}
    small = search(project, tmp_path / "small", held_out=2, batch_samples=3, batch_tokens=100, state_bytes=10_000)
    for record in small:
        for one, other in zip(record.results, usual[record.sample_id].results, strict=True):
            assert (one.chain, one.robust, len(one.held_out)) == (other.chain, other.robust, len(other.held_out))
            for mine, others in zip(one.answers, other.answers, strict=True):
                assert_same(mine, others)
    shutil.copytree(found, tmp_path / "cut")
    whole, meta = (tmp_path / "cut" / name for name in ("train.jsonl", "train.meta.json"))
    lines = whole.read_bytes().splitlines(keepends=True)
    (tmp_path / "cut" / "train.partial.jsonl").write_bytes(b"".join(lines[:4]))
    whole.unlink()
    edit_json(meta, count=None, sha256=None, replaces=None)
    search(project, tmp_path / "cut", held_out=2)
    assert whole.read_bytes() == b"".join(lines)
    for changes in ({"held_out": 1}, {"held_out": 2, "stand_share": 0.5}, {"held_out": 2, "variants": 2}):
        line = refusal(main, arguments(project, tmp_path / "cut", **(SEARCH | changes)))
        assert "made with another variants" in line


def test_without_variants_files_and_hashes_are_as_before(project: Path, tmp_path: Path) -> None:
    # Oracle: the fields that files had before there were variants; a folder of one variant goes on at any share.
    (plain, *_) = search(project, tmp_path, variants=1, limit=1)
    before = (tmp_path / "train.jsonl").read_bytes()
    assert not {"variants", "robust", "held_out"} & {*to_plain(plain), *to_plain(plain)["results"][0]}
    identity = json.loads((tmp_path / "train.meta.json").read_text())["identity"]
    assert set(identity) == {"search", "first_editable", "reward_target", "verify", "dtype", "fingerprints", "targets"}
    search(project, tmp_path, variants=1, stand_share=0.5, limit=1)
    assert (tmp_path / "train.jsonl").read_bytes() == before


@pytest.mark.parametrize(("variants", "share", "needed"), [(3, 0.5, 2), (4, 0.5, 2), (10, 0.7, 7), (4, 0.01, 1)])
def test_a_share_of_the_variants_is_enough(variants: int, share: float, needed: int) -> None:
    # Oracle: counting; a chain goes on exactly while some way of the rest to be right lets it stand.
    asked = VariantSettings(variants=variants, stand_share=share)
    assert asked.needed == needed
    right, wrong = (ChainResult.from_answer(Chain.full(3), "x", correct) for correct in (True, False))
    for wrongs in range(variants):
        further = [VariantResult.of(wrong)] * wrongs
        rest = [VariantResult.of(right)] * (variants - 1 - wrongs)
        assert asked.may_stand(right, further) == asked.with_variants(right, [*further, *rest]).robust
        assert asked.may_stand(right, further) == (variants - wrongs >= needed)
        assert not asked.may_stand(wrong, further)
        assert not asked.with_variants(wrong, rest).stands


MENU = [Chain.parse(text, NUM_LAYERS) for text in ("0-4", "0-3", "0-2,4", "0-1,3-4", "0-4,3-4")]


def test_a_menu_table_has_every_chain_in_every_variant_and_teaches_the_means(
    project: Path, tmp_path: Path, alone: OneByOne
) -> None:
    # Oracle: the scorer one by one; means taken by hand.
    write_menu(tmp_path / "menu.json", Menu(tuple(MENU), 1))
    samples = {sample.id: sample for sample in SAMPLES}
    records = search(project, tmp_path / "table", menu=tmp_path / "menu.json", read_layers="[2]")
    objective = MenuObjective(MenuSettings())
    objective.settings(records, 1)
    outcomes = outcomes_of(records, "both", 1)
    means = set()
    for row, record in enumerate(records):
        assert [result.chain for result in record.results] == MENU
        values, full = objective.target(record, 1)[: 2 * len(MENU)].tolist(), record.full.answers
        for i, result in enumerate(record.results):
            own = [alone(samples[record.sample_id], result.chain, variant) for variant in range(3)]
            for one, other in zip(result.answers, own, strict=True):
                assert_same(one, other)
            right = sum(one.correct for one in own) / 3
            same = sum(one.prediction == other.prediction for one, other in zip(own, full, strict=True)) / 3
            assert values[2 * i : 2 * i + 2] == pytest.approx([right, same])
            column = outcomes.chains.index(result.chain)
            assert outcomes.values[row, column] == pytest.approx((right + same) / 2)
            means.add(round(3 * right))
    assert means == {0, 1, 2, 3}


def test_the_control_is_told_the_same_wrong_answer_in_all_variants(project: Path, tmp_path: Path) -> None:
    # Oracle: the target against the predictions, which name choices, not letters; the samples' own answers.
    samples = {sample.id: sample for sample in SAMPLES}
    for record in search(project, tmp_path, reward_target="wrong"):
        assert record.target != samples[record.sample_id].answer
        if record.mode == "letter":
            assert all(one.correct == (one.prediction == record.target) for r in record.results for one in r.answers)
            assert len(record.full.answers) == 3


def test_samples_without_so_many_variants_are_refused_before_anything_runs(
    project: Path, tmp_path: Path, refusal: Refusal
) -> None:
    # Oracle: the message: two choices have two orders; three have six, and the sums six wordings.
    own = prepared(tmp_path / "own", [Sample("arc_easy", "train", "Which?", ("ice", "oak"), 0)])
    save_tiny(own / "model")
    message = "variant: expected below 2 for arc_easy, with 2 listed choices and 1 wordings (prompt.wordings), got 2"
    assert message in refusal(main, arguments(own, tmp_path / "a", variants=2, held_out=1))
    message = "variant: expected below 6 for sums, with no listed choices and 6 wordings"
    assert message in refusal(main, arguments(project, tmp_path / "b", variants=7))
