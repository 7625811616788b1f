"""Arms, and how the arms without training are chosen: static chain, mixture, early exit, pruned layers."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from data.records import ChainResult, SearchRecord
from data.sample import Sample
from data.scoring import ChainScorer, SampleBlock, confidences
from data.tasks import load_task
from eval.arms import (
    EarlyExitArm,
    RandomArm,
    RouterArm,
    StatesReader,
    exit_chain,
    mixture_arm,
    permuted_arm,
    random_chain,
)
from eval.baselines import (
    Candidate,
    MixtureChoice,
    candidate_pool,
    choose_by_kind,
    choose_early_exit,
    choose_mixture,
    choose_pruned,
    choose_static,
    common_chains,
    kept,
    routed_chains,
)
from router.chain import Chain
from router.decision import Router
from router.heads.head import known_late
from router.validation import InputError
from tests.menus import record_of
from tests.routed_folders import LATE, late_router
from tests.tiny import FULL, NUM_LAYERS, random_router, tiny_model, tiny_samples, tiny_tokenizer

PREFIX = 2


def chain(text: str) -> Chain:
    return Chain.parse(text, NUM_LAYERS)


def record(sample_id: str, tried: Sequence[tuple[str, bool]]) -> SearchRecord:
    """A record of two choices whose right one is 0; margins fall with the order of trial."""
    results = tuple(
        ChainResult.from_scores(chain(text), (1.0 - i / 100, 0.0) if right else (0.0, 1.0), 0)
        for i, (text, right) in enumerate(tried)
    )
    return record_of(sample_id, results, first_editable=PREFIX)


@pytest.fixture(scope="module")
def scorer() -> ChainScorer:
    return ChainScorer(tiny_model("llama"), tiny_tokenizer(), load_task("arc_easy"))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    choices = ("ice", "tea", "oil")
    return [Sample("arc_easy", "test", f"What is {'very ' * (i % 4)}cold, {i}?", choices, i % 3) for i in range(12)]


@pytest.fixture(scope="module")
def block(scorer: ChainScorer, samples: list[Sample]) -> SampleBlock:
    return scorer.load([scorer.encode(sample) for sample in samples])


@pytest.fixture(scope="module")
def router(scorer: ChainScorer) -> Router:
    return random_router(scorer, PREFIX)


@pytest.fixture(scope="module")
def riddles() -> list[Sample]:
    return tiny_samples("validation", 24)


def test_a_router_that_reads_twice_decides_as_when_asked_alone(scorer: ChainScorer, samples: list[Sample]) -> None:
    # Oracle: each sample alone, its states at both layers from the executor, then Router.decide.
    twice = late_router(scorer.model, seed=6)
    loaded = scorer.load([scorer.encode(sample) for sample in samples])
    chosen = RouterArm(StatesReader(scorer), twice).decide(loaded)
    alone = []
    for sample in samples:
        one = scorer.load([scorer.encode(sample)])
        first, late = (scorer.states(one, layer) for layer in twice.config.read_layers)
        alone += twice.decide(first, read_on=known_late(late))
    assert [one.chain for one in chosen] == [one.chain for one in alone]
    assert any(one.chain.unedited_prefix < LATE for one in chosen)
    assert any(one.chain.unedited_prefix >= LATE for one in chosen)


def test_random_chains_match_the_routers_depth_and_edit_after_the_prefix(
    scorer: ChainScorer, samples: list[Sample], router: Router
) -> None:
    # Oracle: the properties that the docstring states; the same seed and sample give the same chain in any batch.
    loaded = scorer.load([scorer.encode(sample) for sample in samples])
    routed = RouterArm(StatesReader(scorer), router)
    arm = RandomArm(routed, NUM_LAYERS, PREFIX, seed=3)
    drawn = arm.chains(loaded)
    assert [one.depth for one in drawn] == [one.depth for one in routed.chains(loaded)]
    assert len({one.depth for one in drawn}) > 1
    assert all(one.layers[:PREFIX] == (0, 1) and one.layers.count(1) == 1 for one in drawn)
    reversed_block = scorer.load([scorer.encode(sample) for sample in reversed(samples)])
    assert arm.chains(reversed_block) == drawn[::-1]
    assert dataclasses.replace(arm, seed=4).chains(reversed_block) != drawn[::-1]


def test_random_chain_is_uniform() -> None:
    # Oracle: counting: each of the C(5, 2) subsets comes 300 times of 3000, give or take 5 standard deviations (83).
    rng = random.Random(0)
    shorter = Counter(random_chain(6, 8, 3, rng) for _ in range(3000))
    assert len(shorter) == 10
    assert all(abs(count - 300) < 83 for count in shorter.values())
    assert all(one.layers[:3] == (0, 1, 2) and one.depth == 6 for one in shorter)
    # One more layer than the model: one of five editable layers runs twice.
    longer = Counter(random_chain(9, 8, 3, rng) for _ in range(3000))
    assert {str(one) for one in longer} == {"0-2,3*2,4-7", "0-3,4*2,5-7", "0-4,5*2,6-7", "0-5,6*2,7", "0-6,7*2"}
    assert all(abs(count - 600) < 110 for count in longer.values())
    assert random_chain(8, 8, 3, rng) == Chain.full(8)
    assert random_chain(3, 8, 3, rng) == Chain((0, 1, 2), 8)


def test_candidates_are_the_best_of_each_depth() -> None:
    # Oracle: a hand-made table. 0-3 is right 3 of 4 times, 0-2,4 always but tried less, 0-1,3-4 2 of 4; depth 3: one.
    tried = [("0-4", True), ("0-3", True), ("0-1,3-4", True), ("0-4,4", True)]
    records = [record("a", [*tried, ("0-2,4", True), ("0-2", False)]), record("b", [*tried, ("0-2", False)])]
    records += [record("c", [*tried[:2], ("0-1,3-4", False)]), record("d", [("0-4", True), ("0-3", False)])]
    records += [record("e", [("0-4", True), ("0-1,3-4", False)])]

    def pool(**changed: float) -> list[str]:
        settings = {"pool": 1, "trials": 2, "max_depth": 4.5} | changed
        return [str(one) for one in candidate_pool(records, **settings)]  # type: ignore[arg-type]

    assert pool() == ["0-4", "0-2", "0-3"]
    assert pool(pool=3) == ["0-4", "0-2", "0-3", "0-1,3-4", "0-2,4"]  # less tried ones fill up
    assert pool(pool=2) == ["0-4", "0-2", "0-3", "0-1,3-4"]
    assert pool(pool=3, trials=1) == ["0-4", "0-2", "0-3", "0-2,4", "0-1,3-4"]
    assert pool(max_depth=3.9) == ["0-4", "0-2"]
    assert pool(trials=9) == ["0-4", "0-2", "0-3"]
    assert pool(max_depth=9) == ["0-4", "0-2", "0-3", "0-3,4*2"]


def test_the_static_chain_is_the_most_accurate_within_the_depth() -> None:
    # Oracle: hand-made tables.
    table = [Candidate(FULL, 90, 100), Candidate(chain("0-3"), 70, 100), Candidate(chain("0-2,4"), 80, 100)]
    table += [Candidate(chain("0-2"), 80, 100), Candidate(chain("0-1,4"), 80, 100)]
    assert choose_static(table, 5.0).chain == FULL
    assert choose_static(table, 4.99).chain == chain("0-2")  # ties: shorter, then first by layers
    with pytest.raises(ValueError, match=r"of depth at most 2\.5"):
        choose_static(table, 2.5)


@pytest.mark.parametrize("seed", range(30))
def test_static_chains_by_kind_are_the_best_choice_within_the_depth(seed: int) -> None:
    # Oracle: all choices of one candidate a kind, in exact fractions.
    rng, texts = random.Random(seed), ["0-4", "0-3", "0-2,4", "0-2", "0-1,2*2,3-4", "0-1"]
    kinds = {
        kind: [Candidate(chain(text), rng.randint(0, 20), 20) for text in rng.sample(texts, rng.randint(1, len(texts)))]
        for kind in ("a", "b", "c")
    }
    samples = {kind: rng.randint(1, 9) for kind in kinds}
    bound = rng.uniform(1.5, 5.5)
    total = sum(samples.values())

    def means(choice: Sequence[Candidate]) -> tuple[Fraction, Fraction]:
        pairs = list(zip(samples.values(), choice, strict=True))
        right = sum(Fraction(count * one.correct, one.n) for count, one in pairs)
        return right / total, -Fraction(sum(count * one.chain.depth for count, one in pairs), total)

    every = [means(choice) for choice in itertools.product(*kinds.values())]
    within = [one for one in every if -one[1] <= bound]
    chosen = choose_by_kind(kinds, samples, bound)
    assert list(chosen) == list(kinds)
    if within:
        assert means(list(chosen.values())) == max(within)
    else:
        assert means(list(chosen.values()))[1] == max(one[1] for one in every)


def test_the_routers_most_common_chains_are_candidates() -> None:
    # Oracle: counted by hand; whatever the router does, its shallowest chain is within its mean depth.
    routed = [chain(text) for text in ("0-2", "0-2,4", "0-2,4", "0-3", "0-4", "0-4", "0-1,4", "0-1,4")]
    assert [str(one) for one in common_chains(routed, pool=1, max_depth=4.0)] == ["0-1,4", "0-2,4"]
    assert [str(one) for one in common_chains(routed, pool=5, max_depth=3.9)] == ["0-1,4", "0-2"]


def test_routed_chains_do_not_hang_on_batches(scorer: ChainScorer, samples: list[Sample], router: Router) -> None:
    # Oracle: the chains of one big batch.
    arms = [RouterArm(StatesReader(scorer), router) for _ in range(2)]
    whole = arms[0].chains(scorer.load([scorer.encode(sample) for sample in samples]))
    assert routed_chains(arms[1], samples, scorer, 5) == whole


def test_permuted_chains_stay_within_their_kind() -> None:
    # Oracle: the property: each kind keeps its chains, and not all of them their places; the seed decides.
    kinds = ["a"] * 12 + ["b"] * 8
    made = [Sample(kind, "test", f"What is {i}?", ("x", "y"), 0) for i, kind in enumerate(kinds)]
    chains = [exit_chain(1 + i % 2 if kind == "a" else 3 + i % 2, NUM_LAYERS) for i, kind in enumerate(kinds)]

    def permuted_by(seed: int) -> list[Chain]:
        return list(map(permuted_arm(chains, made, seed).chain_of, made))

    permuted = permuted_by(0)
    assert permuted != chains
    for own in (slice(0, 12), slice(12, 20)):
        assert Counter(permuted[own]) == Counter(chains[own])
    assert permuted_by(0) == permuted != permuted_by(1)


def test_the_mixture_is_the_best_of_its_mean_depth(tmp_path: Path) -> None:
    # By hand: 3 layers are right on 4 of 20, 4 on 12, 5 on 14. At most 4.5 layers: half of 4 and 5 gives 13 of 20,
    # a quarter of 3 and the rest 5 only 11.5.
    chains = [exit_chain(3, NUM_LAYERS), exit_chain(4, NUM_LAYERS), FULL]
    candidates = [Candidate(chain, right, 20) for chain, right in zip(chains, (4, 12, 14), strict=True)]
    choice = kept(tmp_path, MixtureChoice, NUM_LAYERS, lambda: choose_mixture(candidates, 4.5))
    assert (choice.share, choice.mean_depth, choice.accuracy) == (0.5, 4.5, pytest.approx(0.65))
    assert (choice.first, choice.second) == (chains[1], FULL)


@pytest.mark.parametrize("depth", [2.0, 2.3, 3.0, 3.5, 5.0])
def test_the_best_mixture_beats_every_other_mixture_of_that_depth(depth: float) -> None:
    # Oracle: all pairs on a fine grid of shares.
    chains = [FULL, exit_chain(4, NUM_LAYERS), exit_chain(3, NUM_LAYERS), exit_chain(2, NUM_LAYERS), chain("0-1,4")]
    for seed in range(5):
        rng = random.Random(seed)
        candidates = [Candidate(one, rng.randint(0, 20), 20) for one in chains]
        found = choose_mixture(candidates, depth)
        assert found.mean_depth <= depth + 1e-9
        best = max(
            (share * one.correct + (1 - share) * other.correct) / 20
            for one, other in itertools.product(candidates, repeat=2)
            for share in np.linspace(0, 1, 101)
            if share * one.chain.depth + (1 - share) * other.chain.depth <= depth + 1e-9
        )
        assert found.accuracy >= best - 1e-9


def test_each_sample_draws_for_itself(scorer: ChainScorer) -> None:
    # Oracle: the batch does not matter, another seed draws otherwise, the share is met.
    many = tiny_samples("test", 200)
    short = exit_chain(3, NUM_LAYERS)
    arm = mixture_arm(short, FULL, 0.3, 0)
    whole = arm.chains(scorer.load(scorer.encode_all(many)))
    assert [arm.chains(scorer.load([scorer.encode(one)]))[0] for one in many[:9]] == whole[:9]
    assert 0.2 < sum(chain == short for chain in whole) / 200 < 0.4
    assert mixture_arm(short, FULL, 0.3, 1).chains(scorer.load(scorer.encode_all(many))) != whole


def test_confidence_is_the_softmax_over_choices_and_needs_no_answer(scorer: ChainScorer, riddles: list[Sample]) -> None:
    block = scorer.load(scorer.encode_all(riddles))
    chain = exit_chain(3, NUM_LAYERS)
    found = confidences(scorer, block, chain)
    for i, value in enumerate(found):
        (result,) = scorer.score(block, [(i, chain)])
        weights = [math.exp(score) for score in result.scores]
        assert value == pytest.approx(max(weights) / sum(weights), abs=1e-6)
    others = [dataclasses.replace(one, answer=(one.answer + 1) % len(one.choices)) for one in riddles]
    assert confidences(scorer, scorer.load(scorer.encode_all(others)), chain) == pytest.approx(found, abs=1e-6)


def test_confidence_of_a_free_answer_is_its_first_tokens(riddles: list[Sample]) -> None:
    # Oracle: the stock model cut after three layers, its logits after the prompt.
    task = dataclasses.replace(load_task("gsm8k"), name="arc_easy", mode="exact")
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    scorer = ChainScorer(model, tokenizer, task)
    free = [Sample("arc_easy", "test", one.question, (), "ice") for one in riddles[:5]]
    block = scorer.load(scorer.encode_all(free))
    found = confidences(scorer, block, exit_chain(3, NUM_LAYERS))
    model.model.layers = model.model.layers[:3]
    for one, value in zip(block.samples, found, strict=True):
        logits = model(torch.tensor([one.prompt]), use_cache=False).logits[0, -1]
        assert value == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)


def test_early_exit_is_the_most_accurate_one_within_the_depth(scorer: ChainScorer, riddles: list[Sample]) -> None:
    # Oracle: every layer and threshold tried here, one sample at a time.
    choice = choose_early_exit(scorer, riddles, 2, 4.3, 5)
    block = scorer.load(scorer.encode_all(riddles))
    best = -1.0
    for layer in range(2, NUM_LAYERS):
        chain = exit_chain(layer, NUM_LAYERS)
        sure = confidences(scorer, block, chain)
        for threshold in [*sure, 2.0]:
            arm = EarlyExitArm(scorer, layer, threshold)
            chains = arm.chains(block)
            if sum(one.depth for one in chains) / len(chains) <= 4.3:
                results = scorer.score(block, list(enumerate(chains)))
                best = max(best, sum(one.correct for one in results) / len(riddles))
    assert choice.accuracy == pytest.approx(best)
    assert choice.mean_depth <= 4.3
    chains = EarlyExitArm(scorer, choice.layer, choice.threshold).chains(block)
    assert sum(one.depth for one in chains) / len(chains) == pytest.approx(choice.mean_depth)
    assert sum(one.correct for one in scorer.score(block, list(enumerate(chains)))) == round(best * len(riddles))


def test_where_no_exit_is_so_shallow_the_first_layer_allowed_is_taken(
    scorer: ChainScorer, riddles: list[Sample]
) -> None:
    choice = choose_early_exit(scorer, riddles, 3, 2.5, 5)
    assert (choice.layer, choice.threshold, choice.mean_depth) == (3, 0.0, 3.0)


def test_pruning_leaves_out_the_layers_that_change_the_states_least(scorer: ChainScorer, riddles: list[Sample]) -> None:
    # Oracle: the library's own hidden states, one sample at a time.
    choice = choose_pruned(scorer, riddles, 3.9, 5)
    model = tiny_model("llama")
    similar, tokens = [0.0] * NUM_LAYERS, 0
    for one in scorer.encode_all(riddles):
        seen = scorer.load([one])
        states = [scorer.states(seen, layer)[0] for layer in range(1, NUM_LAYERS + 1)]
        prompt = model(torch.tensor([one.prompt]), output_hidden_states=True).hidden_states
        for layer in range(1, NUM_LAYERS - 1):  # the library norms its last states
            torch.testing.assert_close(states[layer][: len(one.prompt)], prompt[layer + 1][0], atol=1e-4, rtol=1e-4)
        tokens += len(states[0])
        for layer in range(1, NUM_LAYERS):
            similar[layer] += float(cosine_similarity(states[layer - 1], states[layer], dim=-1).sum())
    influence = {layer: 1 - similar[layer] / tokens for layer in range(1, NUM_LAYERS)}
    assert {int(key): value for key, value in choice.influence.items()} == pytest.approx(influence, abs=1e-5)
    least = sorted(influence, key=lambda layer: influence[layer])[: NUM_LAYERS - 3]
    assert choice.chain.layers == tuple(layer for layer in range(NUM_LAYERS) if layer not in least)
    assert choose_pruned(scorer, riddles, NUM_LAYERS + 0.5, 5).chain.is_full


def test_states_that_overflow_choose_no_layers(riddles: list[Sample]) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight.data *= float("inf")
    with pytest.raises(InputError, match="dtype: expected finite hidden states, got others in float32"):
        choose_pruned(ChainScorer(model, tiny_tokenizer(), load_task("arc_easy")), riddles, 3.0, 5)
