"""Priors from routers of every head, priors and weights taken to another task."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from data.records import read_records
from data.sample import read_samples, write_samples
from data.scoring import ChainScorer
from data.tasks import TaskSet, load_task, write_tasks
from router.command import run_command
from router.head import Head
from router.layerwise import LayerwiseHead
from router.menu_head import MenuHead
from router.models import load_model
from router.program import ProgramHead
from router.storage import Router, RouterConfig, save_router
from search.__main__ import main as search
from search.prior import LOG_LIMIT, SamplePrior
from search.prior_file import read_prior
from search.prior_sources import (
    LEAST_SHARE,
    MENU_TEMPERATURE,
    LayerWeights,
    chosen_chains,
    from_router,
    split_common,
    weights_of_output,
)
from search.priors import main as make_prior
from tests.tiny import NUM_LAYERS, tiny_samples, write_project

PREFIX = 2
MENU = ("0-4", "0-2,4", "0-3", "0-2,3*2,4", "0,1,3,4")
OTHER_MENU = ("0-4", "0,1,3,4", "0-1", "0-3")
SETTINGS: dict[str, dict[str, Any]] = {
    "layerwise": {"windows": 2},
    "menu": {"chains": list(MENU), "agreement": 0.25},
    "program": {"max_block": 2, "max_times": 1, "beam": 400},
}
HEADS = list(SETTINGS)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, samples, their menu table, and another task: other questions, asked otherwise."""
    folder = write_project(tmp_path_factory.mktemp("project"), train=20)
    (folder / "other").mkdir()
    write_tasks(folder / "other", TaskSet.of(load_task("arc_easy", "letter")))
    for split, count in (("train", 12), ("validation", 4)):
        write_samples(folder / "other" / f"{split}.jsonl", tiny_samples(split, 60)[-count:])
    for name, chains in (("menu", MENU), ("other_menu", OTHER_MENU)):
        value = {"schema": 1, "num_layers": NUM_LAYERS, "prefix_layers": PREFIX, "chains": chains}
        (folder / f"{name}.json").write_text(json.dumps(value))
    for data, out, menu in (("data", "table", "menu"), ("other", "other_table", "other_menu")):
        search(run_arguments(folder, folder / out, data=data, menu=folder / f"{menu}.json"))
    return folder


@pytest.fixture(scope="module")
def scorer(project: Path) -> ChainScorer:
    model, tokenizer = load_model(str(project / "model"))
    return ChainScorer(model, tokenizer, load_task("arc_easy"))


def run_arguments(project: Path, out: Path, data: str = "data", **changes: object) -> list[str]:
    settings = {
        "data": project / data, "out": out, "model": project / "model", "splits": "[train,validation]",
        "prefix_layers": PREFIX, "dtype": "float32", "search.simulations": 8, "search.algorithm": "puct",
    } | {name.replace("__", "."): value for name, value in changes.items()}  # fmt: skip
    return [f"--{name}={value}" for name, value in settings.items()]


def prior_arguments(project: Path, out: Path, **changes: object) -> list[str]:
    values = {
        "kind": "router", "out": out, "router": project / "router", "data": project / "data",
        "model": project / "model", "dtype": "float32",
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in (values | changes).items()]


def train_arguments(project: Path, out: Path, kind: str, **changes: object) -> list[str]:
    settings = {
        "out": out, "data.data": project / "data", "data.records": project / "table",
        "data.base_model": project / "model", "model.kind": kind, "model.hidden": 8, "trainer.max_epochs": 3,
        "trainer.enable_progress_bar": "false", "tracking.mode": "disabled",
    } | {name.replace("__", "."): value for name, value in changes.items()}  # fmt: skip
    return [f"--{name}={value}" for name, value in settings.items()]


def make_router(scorer: ChainScorer, kind: str) -> Router:
    """A router whose weights are wide enough that samples get different chains."""
    config = RouterConfig(
        kind, {"hidden": 8, "dropout": 0.0, **SETTINGS[kind]}, NUM_LAYERS, PREFIX, scorer.d_model, "arc_easy",
        "continuation", "tiny", None, "float32", scorer.fingerprints,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    head = config.build()
    for name, parameter in head.named_parameters():
        parameter.data.normal_(0, 0.1 if name.endswith("bias") else 1, generator=generator)
    return Router(config, head.eval())


def shares_by_counting(head: Head, row: torch.Tensor, price: float) -> list[list[float]]:
    """p(skip), p(run), p(repeat) of each layer: all chains of the head one by one, weighed by exp(score)."""
    found = [[0.0, 0.0, 0.0] for _ in range(PREFIX, NUM_LAYERS)]
    total = 0.0
    for one in head.decode_at(row[None], price)[0]:
        scale = 0.05 if isinstance(head, MenuHead) else 1.0
        weight = math.exp((one.score - price * one.chain.depth) / scale)
        total += weight
        for i, layer in enumerate(range(PREFIX, NUM_LAYERS)):
            found[i][min(2, one.chain.layers.count(layer))] += weight
    return [[(x / total + LEAST_SHARE) / (1 + 3 * LEAST_SHARE) for x in layer] for layer in found]


@pytest.mark.parametrize("kind", ["menu", "program"])
@pytest.mark.parametrize("price", [0.0, 0.3])
def test_weights_are_the_centred_log_odds_of_the_ranked_chains(scorer: ChainScorer, kind: str, price: float) -> None:
    # Oracle: chains counted one by one, in plain Python.
    head = make_router(scorer, kind).head
    output = head.respond(torch.randn(5, 8, generator=torch.Generator().manual_seed(1))).detach()
    assert MENU_TEMPERATURE == 0.05
    for row, weights in zip(output, weights_of_output(head, output, price), strict=True):
        shares = shares_by_counting(head, row, price)
        for c, given in ((0, weights.skip), (2, weights.repeat)):
            odds = [math.log(layer[c] / layer[1]) for layer in shares]
            mean = sum(odds) / len(odds)
            assert given == pytest.approx((0.0,) * PREFIX + tuple(o - mean for o in odds), abs=1e-6)
            assert any(abs(value) > 0.01 for value in given)


def test_a_program_heads_shares_are_its_exact_marginals_where_the_beam_holds_all_programs(scorer: ChainScorer) -> None:
    # Oracle: the gradient of the log-partition is each segment's probability; summed over skips that cover a layer.
    head = make_router(scorer, "program").head
    assert isinstance(head, ProgramHead)
    output = head.respond(torch.randn(1, 8, generator=torch.Generator().manual_seed(2))).detach().double()
    assert len(head.decode_at(output, 0.0)[0]) < 400
    output.requires_grad_(True)
    (chance,) = torch.autograd.grad(head.lattice.log_partition(output).sum(), output)
    odds = []
    for layer in range(PREFIX, NUM_LAYERS):
        shares = [0.0, 0.0, 0.0]
        for segment, p in zip(head.lattice.segments, chance[0].tolist(), strict=True):
            if segment.start <= layer < segment.stop:
                shares[min(2, segment.times)] += p
        assert sum(shares) == pytest.approx(1)
        odds.append(math.log((shares[0] + LEAST_SHARE) / (shares[1] + LEAST_SHARE)))
    weights = weights_of_output(head, output.detach())[0]
    assert weights.skip[PREFIX:] == pytest.approx([o - sum(odds) / len(odds) for o in odds], abs=1e-6)


@pytest.mark.parametrize("kind", HEADS)
def test_weights_of_a_head_that_is_certain_stay_within_a_priors_bounds(scorer: ChainScorer, kind: str) -> None:
    head = make_router(scorer, kind).head
    if isinstance(head, LayerwiseHead):
        return  # as large as its logits: cut when scaled
    output = 1e4 * head.respond(torch.randn(4, 8, generator=torch.Generator().manual_seed(1))).detach()
    for weights in weights_of_output(head, output):
        values = [*weights.skip, *weights.repeat]
        assert max(map(abs, values)) < LOG_LIMIT / 2
        SamplePrior(weights.skip, weights.repeat)  # takes them


@pytest.mark.parametrize("kind", HEADS)
def test_a_router_of_every_head_becomes_a_prior_that_a_search_takes_up(
    project: Path, scorer: ChainScorer, tmp_path: Path, kind: str
) -> None:
    # Oracle: the router's routes sample by sample; the searches' own records.
    router = make_router(scorer, kind)
    save_router(tmp_path / "router", router)
    path = tmp_path / "prior.json"
    make_prior(prior_arguments(project, path, router=tmp_path / "router", more_splits="[validation]", known=3))
    prior = read_prior(path)
    samples = [s for split in ("train", "validation") for s in read_samples(project / "data" / f"{split}.jsonl")]
    assert list(prior.samples) == [sample.id for sample in samples]
    alone = [scorer.states(scorer.load([scorer.encode(sample)]), PREFIX)[0] for sample in samples]
    counts = Counter(one.chain for one in router.route(alone) if not one.chain.is_full)
    assert counts
    known = dict(prior.known)
    assert len(known) == min(3, len(counts))
    assert all(counts[chain] == times for chain, times in known.items())
    assert sorted(known.values(), reverse=True) == sorted(counts.values(), reverse=True)[: len(known)]
    expected = from_router(router, scorer, samples)
    assert len(set(prior.samples.values())) > len(samples) / 2  # each sample's own
    for name, (skip, repeat) in prior.samples.items():
        assert (*skip, *repeat) == pytest.approx((*expected[name].skip, *expected[name].repeat), abs=1e-6)
    for name, given in (("with", {"prior": path}), ("without", {})):
        search(run_arguments(project, tmp_path / name, splits="[train]", **given))
    one, other = (
        [[x.chain for x in r.results] for r in read_records(tmp_path / name / "train.jsonl")]
        for name in ("with", "without")
    )
    assert one != other


def test_chosen_chains_hang_on_the_operating_point(scorer: ChainScorer) -> None:
    # Oracle: at a price beyond all values every sample gets the shallowest chain.
    head = make_router(scorer, "menu").head
    output = head.respond(torch.randn(40, 8, generator=torch.Generator().manual_seed(1))).detach()
    shallowest = Counter(ranked[0].chain for ranked in head.decode_at(output, 1e3))
    assert {chain.depth for chain in shallowest} == {4}
    chosen = chosen_chains(head, output, 1e3, 5)
    assert dict(chosen) == shallowest
    assert [n for _, n in chosen] == sorted(shallowest.values(), reverse=True)
    assert len(chosen_chains(head, output, 1e3, 1)) == 1
    counts = Counter(ranked[0].chain for ranked in head.decode_at(output, 0.0))
    assert dict(chosen_chains(head, output, 0.0, 9)) == {c: n for c, n in counts.items() if not c.is_full}
    assert chosen_chains(head, output, 0.0, 0) == ()


def test_common_weights_change_no_routed_sample_and_reach_the_others(
    project: Path, scorer: ChainScorer, tmp_path: Path
) -> None:
    # Oracle: the same prior without common weights, and the mean over its samples.
    save_router(tmp_path / "router", make_router(scorer, "menu"))
    priors = []
    for common in (False, True):
        make_prior(prior_arguments(project, tmp_path / "p.json", router=tmp_path / "router", common=common))
        priors.append(read_prior(tmp_path / "p.json"))
    plain, common = priors
    for name in plain.samples:
        one, other = plain.for_sample(name), common.for_sample(name)
        assert (*one.skip, *one.repeat) == pytest.approx((*other.skip, *other.repeat), abs=1e-9)
    mean = [sum(skip[i] for skip, _ in plain.samples.values()) / len(plain.samples) for i in range(NUM_LAYERS)]
    assert plain.for_sample("unknown").skip == (0.0,) * NUM_LAYERS
    assert common.for_sample("unknown").skip == pytest.approx(mean)
    assert any(mean)


def test_common_and_own_weights_add_up_within_a_priors_bounds() -> None:
    # Oracle: the sums, at the bounds themselves, where rounding could leave them.
    rng = random.Random(0)
    weights = [LayerWeights(*(tuple(rng.choice([20.0, -20.0, rng.uniform(-20, 20)]) for _ in range(9)) for _ in "ab"))
               for _ in range(50)]  # fmt: skip
    common, own = split_common(weights)
    for before, one in zip(weights, own, strict=True):
        for first, second, wanted in ((common.skip, one.skip, before.skip), (common.repeat, one.repeat, before.repeat)):
            for a, b, c in zip(first, second, wanted, strict=True):
                assert abs(a) <= LOG_LIMIT
                assert abs(b) <= LOG_LIMIT
                assert abs(a + b) <= LOG_LIMIT
                assert a + b == pytest.approx(c, abs=1e-9) or abs(c - a) > LOG_LIMIT


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": 99}, "budget: expected"),
        ({"prefix_layers": 3}, "prefix_layers: expected 0..2, where the router reads, got 3"),
        ({"more_splits": "[train]"}, "more_splits: expected others"),
        ({"data": "other"}, "expected it to be made for the prompt"),
    ],
)
def test_bad_input_is_one_line(
    project: Path, scorer: ChainScorer, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    changes: dict[str, object], said: str,
) -> None:  # fmt: skip
    save_router(tmp_path / "router", make_router(scorer, "program"))
    if "data" in changes:
        changes = {"data": project / "other"}
    arguments = prior_arguments(project, tmp_path / "prior.json", router=tmp_path / "router", **changes)
    assert run_command(make_prior, arguments) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_prior_of_another_task_is_taken_only_when_asked_for(
    project: Path, scorer: ChainScorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the messages; another prior of the other task is another search, so its hash counts.
    save_router(tmp_path / "router", make_router(scorer, "menu"))
    paths = [tmp_path / f"{strength}.json" for strength in (1, 2)]
    for path, strength in zip(paths, (1, 2), strict=True):
        make_prior(prior_arguments(project, path, router=tmp_path / "router", strength=strength, common=True))
    named = {"data": "other", "splits": "[train]"}
    assert run_command(search, run_arguments(project, tmp_path / "out", prior=paths[0], **named)) == 2
    assert "prior: expected it to be made for the prompt" in capsys.readouterr().err
    told = {**named, "prior_of_other_task": True}
    search(run_arguments(project, tmp_path / "out", prior=paths[0], **told))
    assert "0 of 12 samples have their own" in capsys.readouterr().out
    search(run_arguments(project, tmp_path / "without", **named))
    one, other = (
        [[x.chain for x in r.results] for r in read_records(tmp_path / name / "train.jsonl")]
        for name in ("out", "without")
    )
    assert one != other
    assert run_command(search, run_arguments(project, tmp_path / "out", prior=paths[1], **told)) == 2
    assert "the same search settings" in capsys.readouterr().err
    value = json.loads(paths[0].read_text())
    value["fingerprints"]["tokenizer"] = "e" * 64
    paths[0].write_text(json.dumps(value))
    assert run_command(search, run_arguments(project, tmp_path / "new", prior=paths[0], **told)) == 2
    assert "made for the tokenizer" in capsys.readouterr().err
    assert run_command(search, run_arguments(project, tmp_path / "new", **told)) == 2
    assert "prior_of_other_task: expected a prior with it, got none" in capsys.readouterr().err
