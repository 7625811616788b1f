"""`python -m search.priors`: log weights worked out by hand, and searches that take them up or refuse them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from data.records import ChainResult, SearchRecord, pareto_front, read_records
from data.scoring import ChainScorer
from data.tasks import load_task
from router.chain import Chain
from router.command import run_command
from router.fingerprint import Fingerprints
from router.models import load_model
from router.storage import save_router
from search.__main__ import main as search
from search.prior_file import read_prior
from search.prior_sources import SMOOTHING, from_records, from_redundancy, from_router
from search.priors import main as make_prior
from tests.tiny import NUM_LAYERS, random_router, tiny_samples, write_project

PREFIX = 1


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, samples, and a finished search of them."""
    folder = write_project(tmp_path_factory.mktemp("project"))
    search(run_arguments(folder, folder / "records"))
    return folder


@pytest.fixture(scope="module")
def scorer(project: Path) -> ChainScorer:
    model, tokenizer = load_model(str(project / "model"))
    return ChainScorer(model, tokenizer, load_task("arc_easy"))


def run_arguments(project: Path, out: Path, **changes: object) -> list[str]:
    settings = {
        "data": project / "data",
        "out": out,
        "model": project / "model",
        "splits": "[train]",
        "prefix_layers": PREFIX,
        "dtype": "float32",
        "search.simulations": 16,
        "search.max_depth": 9,
    } | {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--{name}={value}" for name, value in settings.items()]


def prior_arguments(project: Path, kind: str, out: Path, **changes: object) -> list[str]:
    named: dict[str, dict[str, object]] = {
        "records": {"records": project / "records" / "train.jsonl"},
        "redundancy": {"data": project / "data", "model": project / "model", "prefix_layers": PREFIX},
        "router": {"data": project / "data", "model": project / "model"},
    }
    values = {"kind": kind, "out": out, "dtype": "float32"} | named[kind] | changes
    return [f"--{name}={value}" for name, value in values.items()]


def record(sample_id: str, *tried: tuple[str, bool]) -> SearchRecord:
    """A record of a model of 4 layers: the full chain was right, then the given chains."""
    found = [("0-3", True), *tried]
    results = tuple(
        ChainResult.from_scores(Chain.parse(text, 4), [1.0, 0.0] if right else [0.0, 1.0], 0) for text, right in found
    )
    return SearchRecord(
        sample_id=sample_id, task="t", split="train", metadata={}, mode="continuation", num_layers=4, prefix_layers=1,
        dtype="float32", reward_target="gold", target=0, seed=0, simulations=len(results), nominal_layers=1,
        executed_layers=1, results=results, pareto=pareto_front(results),
        fingerprints=Fingerprints("a" * 64, "b" * 64, "c" * 64), search="s" * 64,
    )  # fmt: skip


def test_weights_from_records_are_smoothed_log_ratios() -> None:
    # Oracle: by hand. Six edited chains were tried, three right: rate 1/2. Layer 3 was skipped 3 times, right 3 times;
    # layer 2 twice, never right; layer 1 once, right never; layer 1 repeated once, right never.
    records = [
        record("a", ("0-2", True), ("0,1,3", False), ("0,1*2,2,3", False)),
        record("b", ("0-2", True), ("0,2", True), ("0,1,3", False)),
    ]
    weights, known = from_records(records, 10)
    rate = 3 / 6

    def expected(right: int, tried: int) -> float:
        return math.log((right + SMOOTHING * rate) / (tried + SMOOTHING) / rate)

    assert weights.skip == pytest.approx((0.0, expected(1, 1), expected(0, 2), expected(3, 3)))
    assert weights.repeat == pytest.approx((0.0, expected(0, 1), 0.0, 0.0))
    # Known: tried on two samples at least and right somewhere: only 0-2, right twice.
    assert known == ((Chain.parse("0-2", 4), 2.0),)
    assert from_records(records, 0)[1] == ()


def test_the_most_solving_chains_are_known_shorter_first() -> None:
    # Oracle: by hand. "0,3" and "0-2" are right twice, "0,1,3" once.
    tried = (("0,3", True), ("0-2", True), ("0,1,3", True))
    records = [record("a", *tried), record("b", *tried[:2], ("0,1,3", False))]
    known = from_records(records, 2)[1]
    assert known == ((Chain.parse("0,3", 4), 2.0), (Chain.parse("0-2", 4), 2.0))


def test_records_without_a_right_edit_prefer_nothing() -> None:
    weights, known = from_records([record("a", ("0-2", False), ("0,3", False))], 5)
    assert weights.skip == weights.repeat == (0.0,) * 4
    assert known == ()


def test_redundancy_counts_the_answers_that_one_edit_keeps(scorer: ChainScorer) -> None:
    # Oracle: each chain scored alone.
    samples = tiny_samples("train", 8)
    kept = Counter[tuple[str, int]]()
    full = Chain.full(NUM_LAYERS)
    for sample in samples:
        block = scorer.load([scorer.encode(sample)])
        answer = scorer.score(block, [(0, full)])[0].prediction
        for layer in range(PREFIX, NUM_LAYERS):
            for kind, chain in (("skip", full.skip(layer, 1)), ("repeat", full.repeat(layer, 1, 1))):
                kept[kind, layer] += scorer.score(block, [(0, chain)])[0].prediction == answer
    rate = kept.total() / (2 * (NUM_LAYERS - PREFIX) * len(samples))
    weights = from_redundancy(scorer, samples, PREFIX)
    for kind, given in (("skip", weights.skip), ("repeat", weights.repeat)):
        hits = [kept[kind, layer] for layer in range(PREFIX, NUM_LAYERS)]
        wanted = [math.log((h + SMOOTHING * rate) / (len(samples) + SMOOTHING) / rate) for h in hits]
        assert given == pytest.approx((0.0,) * PREFIX + tuple(wanted))
    assert len(set(weights.skip)) > 2  # the model tells layers apart, so the test can fail


def test_a_routers_weights_are_its_log_odds_centred(scorer: ChainScorer) -> None:
    # Oracle: the head's own output for each sample alone, in torch.
    samples = tiny_samples("train", 4)
    router = random_router(scorer, 2)
    found = from_router(router, scorer, samples)
    assert list(found) == [sample.id for sample in samples]
    for sample in samples:
        state = scorer.states(scorer.load([scorer.encode(sample)]), 2)[0]
        with torch.inference_mode():
            logits = router.head(state[None], torch.ones(1, len(state), dtype=torch.bool))[0].double()
        for kind, given in ((0, found[sample.id].skip), (2, found[sample.id].repeat)):
            odds = logits[:, kind] - logits[:, 1]
            assert given[:2] == (0.0, 0.0)
            assert torch.allclose(torch.tensor(given[2:]).double(), odds - odds.mean(), atol=1e-4)
    assert len({weights.skip for weights in found.values()}) == len(samples)  # of each sample its own


@pytest.mark.parametrize("kind", ["records", "redundancy"])
@pytest.mark.parametrize("algorithm", ["puct", "gumbel", "beam"])
def test_a_search_takes_a_prior_up(project: Path, tmp_path: Path, kind: str, algorithm: str) -> None:
    path = tmp_path / "prior.json"
    make_prior(prior_arguments(project, kind, path, strength=3.0))
    prior = read_prior(path)
    assert (prior.kind, prior.num_layers, prior.prefix_layers) == (kind, NUM_LAYERS, PREFIX)
    for name, given in (("with", {"prior": path}), ("without", {})):
        search(run_arguments(project, tmp_path / name, search__algorithm=algorithm, **given))
    one, other = (
        {r.sample_id: [x.chain for x in r.results] for r in read_records(tmp_path / name / "train.jsonl")}
        for name in ("with", "without")
    )
    assert one.keys() == other.keys()
    assert one != other
    # Another prior is another search: records of the first are not taken for it.
    make_prior(prior_arguments(project, kind, path, strength=0.5))
    arguments = run_arguments(project, tmp_path / "with", search__algorithm=algorithm, prior=path)
    assert run_command(search, arguments) == 2


def test_a_routers_prior_is_each_samples_own(project: Path, scorer: ChainScorer, tmp_path: Path) -> None:
    save_router(tmp_path / "router", random_router(scorer, PREFIX))
    path = tmp_path / "prior.json"
    make_prior(prior_arguments(project, "router", path, router=tmp_path / "router", limit=3))
    prior = read_prior(path)
    assert sorted(prior.samples) == sorted(sample.id for sample in tiny_samples("train", 8)[:3])
    search(run_arguments(project, tmp_path / "found", search__algorithm="puct", prior=path))
    assert len(read_records(tmp_path / "found" / "train.jsonl")) == 8


def test_strength_scales_the_weights(project: Path, tmp_path: Path) -> None:
    for strength in (0, 1, 2):
        make_prior(prior_arguments(project, "records", tmp_path / f"{strength}.json", strength=strength))
    none, one, two = (read_prior(tmp_path / f"{strength}.json") for strength in (0, 1, 2))
    assert set(none.skip) == {0.0}
    assert two.skip == pytest.approx([2 * weight for weight in one.skip])
    assert any(one.skip)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("records", {"records": "nowhere.jsonl"}, "records: expected"),
        ("records", {"strength": -1}, "strength: expected"),
        ("records", {"known": -1}, "known: expected"),
        ("redundancy", {"split": "test"}, "split: expected train or validation"),
        ("redundancy", {"prefix_layers": 99}, "prefix_layers: expected 0.."),
        ("router", {"router": "nowhere"}, "router: expected"),
    ],
)
def test_bad_input_is_one_line(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, changes: dict[str, object], said: str
) -> None:
    arguments = prior_arguments(project, kind, tmp_path / "prior.json", **changes)
    assert run_command(make_prior, arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]
    assert "Traceback" not in "\n".join(lines)
    assert not (tmp_path / "prior.json").exists()


def test_records_of_the_test_split_and_of_controls_make_no_prior(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_records(project / "records" / "train.jsonl")
    for name, change, said in (
        ("test", {"split": "test"}, "expected those of a training split"),
        ("wrong", {"reward_target": "wrong"}, "expected a search told the right answers"),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(dataclasses.replace(r, **change).to_json()) + "\n" for r in found))
        arguments = prior_arguments(project, "records", tmp_path / "prior.json", records=path)
        assert run_command(make_prior, arguments) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"search__algorithm": "uct"}, "prior: expected none with the algorithm uct"),
        ({"search__algorithm": "puct", "prefix_layers": 2}, "prefix_layers 2, got 1"),
    ],
)
def test_a_search_refuses_a_prior_that_it_cannot_use(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], said: str
) -> None:
    path = tmp_path / "prior.json"
    make_prior(prior_arguments(project, "records", path))
    assert run_command(search, run_arguments(project, tmp_path / "out", prior=path, **changes)) == 2
    assert said in capsys.readouterr().err
