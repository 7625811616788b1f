"""Arms and the choice of the static chain."""

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from data.records import ChainResult, SearchRecord, pareto_front
from data.sample import Sample
from data.scoring import ChainScorer, SampleBlock
from data.tasks import load_task
from eval.arms import RandomArm, RouterArm, StatesReader, StaticArm, oracle_arm, random_chain
from eval.baselines import Candidate, candidate_pool, choose_static, common_chains, routed_chains
from router.chain import Chain
from router.fingerprint import Fingerprints
from router.storage import Router
from tests.tiny import NUM_LAYERS, random_router, tiny_model, tiny_tokenizer

PREFIX = 2
FULL = Chain.full(NUM_LAYERS)


def chain(text: str) -> Chain:
    return Chain.parse(text, NUM_LAYERS)


def record(sample_id: str, tried: Sequence[tuple[str, bool]]) -> SearchRecord:
    """A record of two choices whose right one is 0; margins fall with the order of trial."""
    results = tuple(
        ChainResult.from_scores(chain(text), (1.0 - i / 100, 0.0) if right else (0.0, 1.0), 0)
        for i, (text, right) in enumerate(tried)
    )
    return SearchRecord(
        sample_id=sample_id,
        task="arc_easy",
        split="train",
        metadata={},
        mode="continuation",
        num_layers=NUM_LAYERS,
        first_editable=PREFIX,
        dtype="float32",
        reward_target="gold",
        target=0,
        seed=0,
        simulations=len(tried),
        nominal_layers=0,
        executed_layers=0,
        results=results,
        pareto=pareto_front(results),
        fingerprints=Fingerprints("m", "t", "p"),
        search="s",
    )


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


def test_full_depth_and_static_give_every_sample_the_same_chain(block: SampleBlock) -> None:
    # Oracle: the definition.
    assert StaticArm(FULL, "full").chains(block) == [FULL] * 12
    assert StaticArm(chain("0-2")).chains(block) == [chain("0-2")] * 12


def test_the_router_decides_for_each_sample_alone(scorer: ChainScorer, samples: list[Sample], router: Router) -> None:
    # Oracle: each sample alone, without the arm: states of the executor, then Router.decide.
    loaded = scorer.load([scorer.encode(sample) for sample in samples])
    chosen = RouterArm(StatesReader(scorer, PREFIX), router).chains(loaded)
    alone = []
    for sample in samples:
        one = scorer.load([scorer.encode(sample)])
        alone += [one_choice.chain for one_choice in router.decide(scorer.states(one, PREFIX))]
    assert chosen == alone
    assert len(set(chosen)) >= 3, "the fixture must give several chains, or the test shows nothing"


def test_random_chains_match_the_routers_depth_and_edit_after_the_prefix(
    scorer: ChainScorer, samples: list[Sample], router: Router
) -> None:
    # Oracle: the properties that the docstring states; the same seed and sample give the same chain in any batch.
    loaded = scorer.load([scorer.encode(sample) for sample in samples])
    routed = RouterArm(StatesReader(scorer, PREFIX), router)
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


def test_the_oracle_takes_the_shortest_right_chain(block: SampleBlock, samples: list[Sample]) -> None:
    # Oracle: hand-made records.
    tried = [("0-4", True), ("0-2,4", True), ("0-1,4", False), ("0-3", True)]
    records = {sample.id: record(sample.id, [("0-4", False), ("0-2", False)]) for sample in samples}
    records[samples[2].id] = record(samples[2].id, tried)
    chains = oracle_arm(list(records.values())).chains(block)
    assert chains[2] == chain("0-2,4")
    assert chains[:2] + chains[3:] == [FULL] * 11


def test_a_refuted_chain_is_none_of_the_oracles() -> None:
    # Oracle: by hand. 0-3 and 0-2,4 are as deep, the first has the greater margin; 0-2 is shortest.
    found = record("a", [("0-4", True), ("0-3", True), ("0-2,4", True), ("0-2", True)])

    def best(*verified: bool | None) -> str | None:
        marked = [dataclasses.replace(one, verified=mark) for one, mark in zip(found.results, verified, strict=True)]
        standing = dataclasses.replace(found, results=tuple(marked), pareto=pareto_front(marked)).shortest
        return None if standing is None else str(standing.chain)

    assert best(None, None, None, None) == "0-2"
    assert best(True, True, True, False) == "0-3"
    assert best(True, None, True, False) == "0-3"  # what no second run refuted stands (`ChainResult.stands`)
    assert best(True, False, True, False) == "0-2,4"
    assert best(False, None, True, None) == "0-2"
    assert best(False, False, False, False) is None


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


def test_the_routers_most_common_chains_are_candidates() -> None:
    # Oracle: counted by hand; whatever the router does, its shallowest chain is within its mean depth.
    routed = [chain(text) for text in ("0-2", "0-2,4", "0-2,4", "0-3", "0-4", "0-4", "0-1,4", "0-1,4")]
    assert [str(one) for one in common_chains(routed, pool=1, max_depth=4.0)] == ["0-1,4", "0-2,4"]
    assert [str(one) for one in common_chains(routed, pool=5, max_depth=3.9)] == ["0-1,4", "0-2"]


def test_routed_chains_do_not_hang_on_batches(scorer: ChainScorer, samples: list[Sample], router: Router) -> None:
    # Oracle: the chains of one big batch.
    arms = [RouterArm(StatesReader(scorer, PREFIX), router) for _ in range(2)]
    whole = arms[0].chains(scorer.load([scorer.encode(sample) for sample in samples]))
    assert Counter(routed_chains(arms[1], samples, scorer, 5)) == Counter(whole)
